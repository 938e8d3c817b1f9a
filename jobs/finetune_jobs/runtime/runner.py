"""The entry point of every stage: read the input, reuse or do the work, publish it, write the result, exit.

    def main() -> None:
        run_stage(Stage.PREPARE, prepare)

A stage is a function ``(Context) -> StageOutput``. The files in ``StageOutput.folder`` are published by their content,
with the record that lets the next run with the same input skip the work. Failures are raised, never returned.
"""

import argparse
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from finetune_api.layout import Lineage, StageRecord, output_folder
from finetune_api.meta import METRICS_DIR, ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import VerificationCheck
from finetune_api.stages import (
    PIPELINE,
    RECIPE_VERSIONS,
    Found,
    Outcome,
    Stage,
    StageInput,
    StageResult,
)
from finetune_api.usage import Usage, together, usage_of
from finetune_jobs.artifacts import folders, retention
from finetune_jobs.base.errors import StageError, StoppedError, require
from finetune_jobs.base.progress import Progress
from finetune_jobs.runtime import commandline, logs
from finetune_jobs.runtime.full_disk import full_disk, is_said
from finetune_jobs.runtime.results import MAX_MESSAGE, advised, failure, naming_log, write_result
from finetune_jobs.runtime.stage_input import read_input
from finetune_jobs.store.cache import FolderCache
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS: Final = 1.5
"""Longest that a stage waits at its end for the end of its log to reach the store."""


@dataclass(frozen=True)
class Context:
    """What a stage is given."""

    input: StageInput
    store: Store
    """The results' root: the FineTuneJob's output URI, or what stands before ``artifacts/<digest>`` of an artifact."""
    places: Places
    """Opens what the input names by other URIs, each as its own storage says."""
    progress: Progress
    scratch: Path
    """An empty folder of this attempt, removed at its end."""
    models: Path
    """Where fetch puts models and the server reads them."""
    metrics: Path = Path(METRICS_DIR)
    """What an evaluation and its metric containers exchange."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set on SIGTERM. A graceful stage looks at it, saves what it can and raises StoppedError."""
    model_cache: Path | None = None
    """A volume that keeps models for later pods; None: each downloads its own."""
    model_cache_limit: int = 0
    """Bytes that it may hold; 0: as many as the volume has."""
    models_room: int = 0
    """Bytes that fetch may put into ``models``; 0: not known."""

    @property
    def cache(self) -> FolderCache | None:
        """The folders on that volume."""
        return None if self.model_cache is None else FolderCache(self.model_cache, self.model_cache_limit)


@dataclass(frozen=True)
class StageOutput:
    """What a stage answers."""

    scalars: dict[str, str] = field(default_factory=dict)
    """Facts of what was made; those of a folder are in its manifest for good."""
    decided: dict[str, str] = field(default_factory=dict)
    """What this run decided about it, and another one may decide otherwise about the same content."""
    message: str = ""
    folder: Path | None = None
    """The files to publish, for the stages of the pipeline."""
    output_digest: str = ""
    """Content address, for stages that publish no folder."""
    waits_for: Reason | None = None
    """What the stage waits for: it has made nothing yet, and is to run again. None: it is done."""
    reusable: bool = True
    """Whether it stands for the same input later: not where it also depends on what the input does not name."""
    cut: bool = False
    """Whether ``StageInput.max_cost`` ended the work early: a higher budget would give a different result."""
    found: list[Found] = field(default_factory=list)
    checks: list[VerificationCheck] = field(default_factory=list)
    """What verify has compared."""
    tools: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that made it (lineage)."""
    before: Usage | None = None
    """What earlier parts of the same work used, in programs of their own, and maybe in a run of its own (lineage)."""


Work = Callable[[Context], StageOutput]
After = Callable[[Context, StageResult], StageResult]
Around = Callable[[Context], AbstractContextManager[None]]


def _nothing_around(_context: Context) -> AbstractContextManager[None]:
    return nullcontext()


def run_stage(  # noqa: PLR0913 # in what the stages differ
    stage: Stage,
    work: Work,
    *,
    around: Around = _nothing_around,
    after: After | None = None,
    graceful: bool = False,
    helper: bool = False,
    part: str = "",
) -> None:
    """Run a stage and exit the process with an ExitCode.

    ``around`` is entered for the work itself, not for a reused result.
    ``after`` is called with the result once the output exists, made or reused, before the result is written: with what
    it adds to it.
    ``graceful`` stages handle ``Context.stopping`` themselves; others end at once on SIGTERM.
    ``helper``: one of several processes, the first of which reports for all: it works, but reuses and publishes
    nothing.
    ``part``: name of the program, where it does a part of the stage in a container of its own: that of its log.
    """
    options = commandline.parse(stage, None)
    terminal = sys.stderr.isatty()
    kept_log = logs.KeptLog(logs.set_up(stage, terminal=terminal), name=part)
    log.info("stage starts, %.2f s after its process", logs.process_age())
    run = _help if helper else partial(execute, around=around, after=after)
    kept = None if helper else kept_log
    result, code = _guarded(stage, lambda context: run(context, work), graceful, options, terminal, kept)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # too late to stop: the rest takes no time
    logs.take_down()
    log.log(logging.INFO if code == ExitCode.OK else logging.ERROR, "%s: %s", result.reason, advised(result))
    write_result(options.result, naming_log(result, kept_log.finish(_LAST_WORDS_SECONDS)))
    # Not sys.exit: a thread of a transfer or of the metrics server must not keep a finished container alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def execute(
    context: Context, work: Work, *, around: Around = _nothing_around, after: After | None = None
) -> StageResult:
    """The stage itself: reuse an earlier result of this input, or do the work and publish it. Raises StageError."""
    given = context.input
    reused = earlier_result(context)
    if reused is None:
        with around(context):
            made = work(context)
        if made.waits_for:
            return _answer(given.stage, made)
        result = _publish(context, made) if made.folder else _answer(given.stage, made)
    else:
        result = reused
    if after:
        result = after(context, result)
    if given.stage is Stage.TRAIN:
        retention.remove_checkpoints(context.store, given.run, given.input_key, given.retention)
    return result


def _help(context: Context, work: Work) -> StageResult:
    return _answer(context.input.stage, work(context))


def results_root(given: StageInput) -> str:
    """URI of the place that ``finetune_api.layout`` describes. Raises StageError (SpecInvalid)."""
    if followed := given.params.follow:
        return followed.uri.rstrip("/")
    return given.output.uri if given.output else artifact_root(given.artifact_uri, given.artifact_digest)


def artifact_root(uri: str, digest: str) -> str:
    """The same of an artifact: what stands before its folder. Raises StageError (SpecInvalid)."""
    folder = f"/{output_folder(Stage.PUBLISH, digest)}"
    if not digest or not uri.rstrip("/").endswith(folder):
        raise StageError(Reason.SPEC_INVALID, f"the input names neither an output nor an artifact ({uri!r}).")
    return uri.rstrip("/").removesuffix(folder)


def lineage(given: StageInput, tools: dict[str, str], usage: Usage | None = None) -> Lineage:
    """How a result of this input comes to be, and what it has used."""
    return Lineage(
        run=given.run,
        upstream=given.upstream,
        input_key=given.input_key,
        recipe_version=RECIPE_VERSIONS[given.stage],
        base_model_uri=given.base_model_uri,
        operator_version=given.operator_version,
        image=given.image,
        usage=usage,
        tools=tools,
        created_at=now(),
    )


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def now() -> str:
    """The time as the API writes it: RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def earlier_result(context: Context) -> StageResult | None:
    """The result that stands for this input already, if the stage may use one."""
    given = context.input
    if given.stage not in PIPELINE or not (given.reuse or given.reuse_own):
        return None
    key = require(given.input_key or None, "inputKey")
    if given.reuse:
        record = folders.read_record(context.store, given.stage, key, given.max_cost)
        return _reused(record) if record else None
    own = folders.read_own_record(context.store, given.run, given.stage, key)
    if own is None:
        return None
    log.info("an earlier pod of this run has made this: %s", own.result.output_digest)
    return own.result


def _publish(context: Context, made: StageOutput) -> StageResult:
    given, folder = context.input, require(made.folder, "folder")
    used = usage_of(given.hardware, logs.process_age(), cpu_seconds())
    if made.before:
        used = together([made.before, used]).model_copy(update={"hardware": given.hardware})
    history = lineage(given, made.tools, used)
    context.progress.report(0.95, "publishing")
    digest = folders.publish_folder(
        context.store,
        folder,
        given.stage,
        facts=made.scalars,
        lineage=history,
        report=context.progress.part(0.95, 1.0, "publishing"),
    )
    result = _answer(given.stage, made).model_copy(update={"output_digest": digest})
    key, record = require(given.input_key or None, "inputKey"), StageRecord(result=result, lineage=history)
    if not given.reuse and given.reuse_own and made.reusable:  # should the pod be lost
        record = folders.publish_own_record(context.store, given.run, key, record)
        result = record.result
    if not made.reusable or (made.cut and not given.max_cost):
        return result  # cut: the input names no budget for which it could be kept
    ended_by = given.max_cost if made.cut else ""
    standing = folders.publish_record(context.store, given.stage, key, record, ended_by=ended_by)
    # Without reuse the record may be an older run's: this run then continues with its own output.
    return result if standing.result == result or not given.reuse else _reused(standing)


def _answer(stage: Stage, made: StageOutput) -> StageResult:
    return StageResult(
        stage=stage,
        outcome=Outcome.SUCCEEDED,
        reason=made.waits_for or Reason.STAGE_SUCCEEDED,
        message=made.message[:MAX_MESSAGE],
        output_digest=made.output_digest,
        scalars={**made.decided, **made.scalars},
        found=made.found,
        checks=made.checks,
    )


def _reused(record: StageRecord) -> StageResult:
    return record.result.model_copy(update={"reused": True, "reason": Reason.STAGE_REUSED})


def _guarded(
    stage: Stage,
    run: Callable[[Context], StageResult],
    graceful: bool,
    options: argparse.Namespace,
    terminal: bool,
    kept_log: logs.KeptLog | None,
) -> tuple[StageResult, ExitCode]:
    """Every outcome becomes a result and an exit code; tracebacks go to the log only. Without ``kept_log`` the process
    is a helper, whose progress and log are not shown either."""
    try:
        given = read_input(stage, options.input)
        progress = Progress(stage, show=terminal, quiet=kept_log is None)
        if kept_log:
            progress.serve(options.metrics_port)
        stopping = _on_sigterm(graceful)
        with _scratch(stage, options.scratch) as scratch:
            places = Places(given.storage)
            store = places.open(results_root(given), given.results_storage)
            if given.output and kept_log:  # serving may only read what the artifact's FineTuneJob wrote
                kept_log.begin(store, logs.log_object(given.run, kept_log.name or stage))
            context = Context(
                given,
                store,
                places,
                progress,
                Path(scratch),
                Path(options.models),
                Path(options.metrics),
                stopping,
                model_cache=Path(options.model_cache) if options.model_cache else None,
                model_cache_limit=options.model_cache_limit,
                models_room=options.models_room,
            )
            with _naming_a_full_disk(context):
                return run(context), ExitCode.OK
    except StageError as error:
        log.debug("the cause", exc_info=True)
        found = failure(stage, error.reason, error.message)
        return found.model_copy(update={"scalars": error.scalars, "checks": error.checks}), _exit_code(error)
    except StoppedError as error:
        return failure(stage, Reason.PREEMPTED, str(error) or "The pod was told to stop."), ExitCode.RETRIABLE
    except Exception as error:
        log.exception("the stage crashed")
        if is_said(error):  # outside of the work: the scratch folder cannot even be made
            text = f"The disk that holds {tempfile.gettempdir()} is full."
            return failure(stage, Reason.SCRATCH_FULL, text), ExitCode.RETRIABLE
        first_line = next(iter(logs.without_secrets(str(error)).splitlines()), "no message")
        text = f"{type(error).__name__}: {first_line[:200]}"
        return failure(stage, Reason.INTERNAL_ERROR, text), ExitCode.RETRIABLE


def _scratch(stage: Stage, given: str | None) -> AbstractContextManager[str]:
    if given:
        return nullcontext(given)
    # A tracker's process may still write there; the rest is deleted with the pod.
    return tempfile.TemporaryDirectory(prefix=f"finetune-{stage}-", ignore_cleanup_errors=True)


def _exit_code(error: StageError) -> ExitCode:
    if error.peer_initiated:
        return ExitCode.RESTART_GROUP
    return ExitCode.RETRIABLE if error.retriable else ExitCode.FATAL


@contextmanager
def _naming_a_full_disk(context: Context) -> Iterator[None]:
    """Within the scratch folder's life: afterwards the disk may have room again."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        if text := full_disk(error, context.scratch, context.input.hardware):
            log.exception("the disk is full")
            raise StageError(Reason.SCRATCH_FULL, text, retriable=True) from error
        raise


def _on_sigterm(graceful: bool) -> threading.Event:
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()
        if not graceful:
            raise StoppedError("The pod was told to stop before the stage had finished.")

    signal.signal(signal.SIGTERM, stop)
    return stopping
