"""Where a run stands: finished stages are recorded in the ledger, the first unfinished one decides the next step. Pure.

A stage's Job is found by its labels, not by its name: a Job that another version of the operator started with another
input belongs to this run too. If a stage completed without a readable result, one more resolve Job looks the result up
in the store; a result that it does not find is lost. Publish runs once more instead: it has the key and the logins
without which nobody can tell whether all is done, and does what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import takewhile
from typing import Final

from finetune_api.finetunejob import Reuse
from finetune_api.job_status import StageState
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Found, Stage, StageResult, input_key
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.ledger import STAGES, RunLedger
from finetune_operator.finetunejob.observe import StageJob
from finetune_operator.outcome.job import State

REVIEW_INTERVAL: Final = timedelta(hours=1)
"""How often votes are counted without being asked: a look is a pod of some seconds on a CPU."""

_FAILED_LOOK_PAUSE: Final = timedelta(minutes=5)
"""Between two looks at the votes while they fail, or the pods that look are gone before their result is read."""

_PASSES: Final = frozenset(
    {Reason.S3_UNREACHABLE, Reason.SCRATCH_FULL, Reason.PREEMPTED, Reason.NODE_LOST, Reason.STAGE_CRASHED}
)
"""Why a look may fail that the next one need not meet."""


@dataclass(frozen=True)
class Start:
    """A stage is to be started; ``recovers`` as in StageJob."""

    stage: Stage
    recovers: str = ""


@dataclass(frozen=True)
class Watch:
    """A stage's Job is running or waits."""

    stage: Stage
    job: StageJob


@dataclass(frozen=True)
class Fail:
    """The run has failed."""

    stage: Stage
    reason: Reason
    message: str


@dataclass(frozen=True)
class Await:
    """A stage has ended without a result, since it waits for what people say."""

    stage: Stage
    job: StageJob
    message: str
    again_in: timedelta
    """Until it is to look again."""


@dataclass(frozen=True)
class Finish:
    """All stages are done."""


Step = Start | Watch | Fail | Await | Finish


def next_step(context: RunContext) -> Step:
    """Record in the ledger what the run's Jobs reported, and say what comes next."""
    for stage in STAGES:
        if context.ledger.done(stage):
            continue
        job = _job(context, stage)
        if job is None:
            return Start(stage)
        step = _take(context, stage, job)
        if step is not None:
            return step
    if missed := context.ledger.missed_goals:
        return Fail(Stage.PUBLISH, Reason.GATE_FAILED, missed)
    return Finish()


def _take(context: RunContext, stage: Stage, job: StageJob) -> Step | None:
    """Record one stage's Job; None once its result is known."""
    ledger = context.ledger
    key = "" if stage is Stage.RESOLVE else input_key(stage, ledger.upstream, context.params)
    verdict = job.verdict
    if verdict.state is State.FAILED:
        ledger.enter(stage, job, StageState.FAILED, verdict.message, key)
        ledger.judged(verdict.result.scalars if verdict.result else {})
        if stage is Stage.PUBLISH and ledger.awaits_review and verdict.reason in _PASSES:
            return _look_again(context, job, f"The last look at the votes failed: {verdict.message}", key)
        return Fail(stage, verdict.reason, verdict.message)
    if job.unfinished:
        ledger.enter(stage, job, StageState.RUNNING, verdict.message, key)
        return Watch(stage, job)
    result = verdict.result
    if result is None and stage is Stage.PUBLISH and context.reviews:
        # It may have waited for days. It finds what it has published, or looks at the votes again.
        return _look_again(context, job, "The pod that last counted the votes is gone.", key)
    if result is None:
        return _publish_again(context, job) if stage is Stage.PUBLISH else _recover(context, stage, job)
    if stage is Stage.PUBLISH and result.reason is Reason.AWAITING_REVIEW:
        ledger.wait(stage, job, result.message, key)
        ledger.judged(result.scalars)
        return Await(stage, job, result.message, _until_next_look(context, job, REVIEW_INTERVAL))
    state = StageState.REUSED if result.reused else StageState.SUCCEEDED
    ledger.enter(stage, job, state, result.message, key)
    return _accept(context, stage, result, verdict.finished_at)


def _look_again(context: RunContext, job: StageJob, message: str, key: str) -> Await:
    """A look at the votes that counted nothing is no end of a run that has waited for days."""
    context.ledger.wait(Stage.PUBLISH, job, message, key)
    return Await(Stage.PUBLISH, job, message, _until_next_look(context, job, _FAILED_LOOK_PAUSE))


def _until_next_look(context: RunContext, job: StageJob, pause: timedelta) -> timedelta:
    """Somebody asks for it with a new value of the annotation; otherwise it is done by the clock."""
    return pause - job.age if context.review_asked == job.asked else timedelta()


def _accept(context: RunContext, stage: Stage, result: StageResult, moment: str | None) -> Step | None:
    ledger = context.ledger
    if stage is not Stage.RESOLVE:
        ledger.finish(stage, result.output_digest, result.scalars)
        return None
    ledger.resolved(result.scalars)
    if not (ledger.run.source_digest and ledger.run.model_digest):
        return Fail(stage, Reason.INTERNAL_ERROR, "resolve reported no digest of the sources or of the model.")
    if bool(ledger.run.metrics_digest) != any(each.data for each in context.spec.evaluation.metrics):
        return Fail(stage, Reason.INTERNAL_ERROR, "resolve reported no digest of the data of metric containers.")
    if context.spec.reuse is Reuse.ALLOWED:
        for found in _leading(result.found):
            ledger.reuse(found, input_key(found.stage, ledger.upstream, context.params), moment)
    return None


def _recover(context: RunContext, stage: Stage, lost: StageJob) -> Step | None:
    """The stage's pod is gone and its result with it: look the result up in the store, once."""
    ledger = context.ledger
    search = _job(context, Stage.RESOLVE, recovers=stage.value)
    ledger.enter(stage, lost, StageState.RUNNING, f"{lost.verdict.message} Looking up the result in the store.")
    if search is None:
        return Start(Stage.RESOLVE, recovers=stage.value)
    verdict = search.verdict
    if verdict.state is State.FAILED:
        ledger.enter(stage, lost, StageState.FAILED, verdict.message)
        return Fail(stage, verdict.reason, verdict.message)
    if search.unfinished:
        return Watch(stage, search)
    if verdict.result is not None and stage is Stage.RESOLVE:
        ledger.enter(stage, search, StageState.SUCCEEDED, verdict.result.message)
        return _accept(context, stage, verdict.result, verdict.finished_at)
    found = _found(verdict.result, ledger, stage) if verdict.result else None
    if found and context.spec.reuse is Reuse.NEVER and found.run != ledger.run.id:
        found = None  # an earlier run's, which this one was not to use
    if found is None:
        message = f"The Job of {stage} completed, but its pod is gone and the store holds no result for its input."
        ledger.enter(stage, lost, StageState.FAILED, message)
        return Fail(stage, Reason.RESULT_LOST, message)
    key = input_key(stage, ledger.upstream, context.params)
    ledger.enter(stage, lost, StageState.SUCCEEDED, "The result was found in the store.", key)
    ledger.finish(stage, found.output_digest, found.scalars)
    return None


def _publish_again(context: RunContext, lost: StageJob) -> Step | None:
    """The pod of publish is gone and its result with it: run it again, once. It makes the same artifact, or finds it,
    and what it has signed, named and copied stays as it is."""
    stage, ledger = Stage.PUBLISH, context.ledger
    if lost.recovers:
        message = "The Job of publish completed twice, and each time its pod was gone before its result was read."
        ledger.enter(stage, lost, StageState.FAILED, message)
        return Fail(stage, Reason.RESULT_LOST, message)
    again = _job(context, stage, recovers=stage.value)
    if again is None:
        ledger.enter(stage, lost, StageState.RUNNING, f"{lost.verdict.message} It runs again, to say what it has done.")
        return Start(stage, recovers=stage.value)
    return _take(context, stage, again)


def _found(result: StageResult, ledger: RunLedger, stage: Stage) -> Found | None:
    """A stage's result among those found, if it builds on this run's outputs."""
    for found in _leading(result.found):
        if found.stage is stage:
            return found
        if ledger.rows[found.stage].output_digest != found.output_digest:
            return None
    return None


def _leading(found: Sequence[Found]) -> list[Found]:
    """The results from the pipeline's first stage on, without a gap."""
    pairs = takewhile(lambda pair: pair[0] is pair[1].stage, zip(PIPELINE, found, strict=False))
    return [entry for _, entry in pairs]


def _job(context: RunContext, stage: Stage, recovers: str = "") -> StageJob | None:
    wanted = (context.ledger.run.id, stage.value, recovers)
    mine = [job for job in context.observed.jobs if (job.run, job.stage, job.recovers) == wanted]
    return min(mine, key=lambda job: (job.unfinished, job.name), default=None)
