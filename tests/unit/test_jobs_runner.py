"""The runner of the stages: exit codes, results, SIGTERM, kept logs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_api import __version__
from finetune_api.finetunejob import Output
from finetune_api.layout import run_folder
from finetune_api.meta import ADAPTERDEPLOYMENT, ExitCode
from finetune_api.reasons import Reason, with_remedy
from finetune_api.stages import (
    MAX_RESULT_BYTES,
    Found,
    Outcome,
    Params,
    Stage,
    StageInput,
    StageResult,
    Upstream,
    input_key,
)
from finetune_jobs.runtime.commandline import example_input
from finetune_jobs.runtime.results import write_result
from finetune_jobs.store.s3 import Store
from tests.support import forked
from tests.support.forked import Forked
from tests.support.seaweedfs import READER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT

pytestmark = [pytest.mark.unit, pytest.mark.slow]

GIVEN = StageInput(stage=Stage.VERIFY, run=DEPLOYMENT, artifact_uri=f"s3://data/artifacts/{'0' * 64}")
PROGRAM = """
import sys, time
from finetune_api.stages import Stage
from finetune_api.reasons import Reason, with_remedy
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.runtime.runner import StageOutput, run_stage

def work(context):
    {body}

run_stage(Stage.{stage}, work, graceful={graceful})
"""


def changed(**fields: object) -> str:
    return GIVEN.model_copy(update=fields).model_dump_json(by_alias=True)


def start(
    folder: Path,
    body: str,
    *,
    graceful: bool = False,
    given: str = "",
    port: int = 0,
    stage: Stage = Stage.VERIFY,
) -> Forked:
    """A stage whose work is ``body``; all that it prints goes to ``log``."""
    (folder / "input.json").write_text(given or GIVEN.model_dump_json(by_alias=True))
    program = folder / "program.py"
    program.write_text(PROGRAM.format(body=body, graceful=graceful, stage=stage.name))
    arguments = ["--input", str(folder / "input.json"), "--result", str(folder / "result"), "--metrics-port", str(port)]
    environment = os.environ | {"TMPDIR": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
    return forked.start([str(program), *arguments], environment, folder / "log")


def ended(process: Forked, folder: Path) -> tuple[int, StageResult]:
    code = process.wait(timeout=60)
    return code, StageResult.model_validate_json((folder / "result").read_bytes())


@pytest.mark.parametrize(
    ("body", "code", "reason", "parts"),
    [
        ("return StageOutput(message='done')", ExitCode.OK, Reason.STAGE_SUCCEEDED, "done"),
        (
            "raise StageError(Reason.ADAPTER_INACTIVE, 'No.')",
            ExitCode.FATAL,
            Reason.ADAPTER_INACTIVE,
            "No.",
        ),
        (
            "raise StageError(Reason.S3_UNREACHABLE, 'Away.', retriable=True)",
            ExitCode.RETRIABLE,
            Reason.S3_UNREACHABLE,
            "Away.",
        ),
        (
            "raise ValueError('first line' + chr(10) + 'second line')",
            ExitCode.RETRIABLE,
            Reason.INTERNAL_ERROR,
            "ValueError: first line",
        ),
        (
            "import pyarrow; writer = pyarrow.ipc.new_file('/dev/full', pyarrow.schema({'a': pyarrow.binary()})); "
            "writer.write_batch(pyarrow.record_batch({'a': [b'x' * 9999]}))",
            ExitCode.RETRIABLE,
            Reason.SCRATCH_FULL,
            "disk … {scratch} … full.",
        ),
        ("raise StoppedError('At step 5.')", ExitCode.RETRIABLE, Reason.PREEMPTED, "At step 5."),
    ],
)
def test_an_ending_becomes_an_exit_code_and_a_result(
    tmp_path: Path, body: str, code: int, reason: Reason, parts: str
) -> None:
    found, result = ended(start(tmp_path, body), tmp_path)
    assert (found, result.reason) == (code, reason)
    assert_says(result.message, *parts.replace("{scratch}", str(tmp_path)).split(" … "))
    assert "second line" not in result.message
    assert (result.outcome is Outcome.SUCCEEDED) is (code == ExitCode.OK)
    assert not list(tmp_path.glob("finetune-*")), "the scratch folder stays behind"


def test_a_traceback_is_in_the_log_only(tmp_path: Path) -> None:
    _, result = ended(start(tmp_path, "raise RuntimeError('boom')"), tmp_path)
    assert result.message == "RuntimeError: boom"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any("Traceback" in line.get("traceback", "") for line in lines)


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError(f'Invalid header value {secret}')",
        "raise ValueError(f'Invalid header value {secret!r}')",
        "raise ValueError('x' * 180 + secret)",
        "raise StageError(Reason.SPEC_INVALID, f'Refused: {secret}')",
        "raise StoppedError(secret)",
    ],
)
def test_no_failure_tells_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Its message becomes a condition and an event, which more people read than the pod's environment."""
    monkeypatch.setenv("FINETUNE_SECRET.teacher_key", "sk-first-line\nand-a-second")
    read = "import os; secret = os.environ['FINETUNE_SECRET.teacher_key']; "
    _, result = ended(start(tmp_path, read + body), tmp_path)
    assert not [part for part in ("sk-first", "second") if part in (tmp_path / "result").read_text()]
    assert "***" in result.message


def test_whatever_libraries_print_is_a_json_line(tmp_path: Path) -> None:
    body = (
        "import warnings; print('printed'); print('as\\rdrawn\\rlast', file=sys.stderr); warnings.warn('careful'); "
        "sys.stderr.write('unfinished'); return StageOutput()"
    )
    code, _ = ended(start(tmp_path, body), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    said = {(line["logger"], line["level"], line["message"]) for line in lines}
    assert code == ExitCode.OK
    assert {("stdout", "info", "printed"), ("stderr", "warning", "last"), ("stderr", "warning", "unfinished")} <= said
    assert any(name == "py.warnings" and "careful" in message for name, _, message in said)


def test_what_llm_compressor_says_while_it_is_imported_is_a_json_line(tmp_path: Path, quantize_python: Path) -> None:
    """It warns where there is no GPU. Other libraries: test_jobs_imports.py."""
    stage = Stage.EXPORT
    command = [str(quantize_python), "-m", f"finetune_jobs.{stage}", "--input", str(tmp_path / "none"), "--result"]
    ended = subprocess.run([*command, str(tmp_path / "result")], capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.FATAL
    assert [line for line in ended.stderr.splitlines() if json.loads(line)["stage"] != stage] == []
    assert ended.stdout == ""


def test_a_persons_mistake_is_told_as_it_is() -> None:
    command = [sys.executable, "-m", "finetune_jobs.verify", "--no-such-option"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "\nusage: " in f"\n{wrong.stderr}"


def test_a_result_may_go_to_stdout(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text(GIVEN.model_dump_json(by_alias=True))
    program = PROGRAM.format(body="print('printed'); return StageOutput()", graceful=False, stage="VERIFY")
    arguments = [sys.executable, "-c", program, "--input", str(tmp_path / "input.json"), "--result", "-"]
    done = subprocess.run([*arguments, "--metrics-port", "0"], capture_output=True, check=True, text=True)
    assert StageResult.model_validate_json(done.stdout).reason is Reason.STAGE_SUCCEEDED


def test_a_result_fits_a_termination_message(tmp_path: Path) -> None:
    body = "return StageOutput(message='ä' * 1024, scalars={str(n): 'x' * 60 for n in range(24)})"
    _, result = ended(start(tmp_path, body), tmp_path)
    assert len((tmp_path / "result").read_bytes()) <= MAX_RESULT_BYTES
    assert (len(result.scalars), result.message[:3]) == (24, "äää")


def test_a_result_that_is_too_long_loses_its_longest_scalars(tmp_path: Path) -> None:
    """Not its end: JSON that was cut is no result."""
    found = Found(stage=Stage.PREPARE, output_digest="7" * 64, scalars={"goals": "ü" * 2000, "rowsRead": "4"})
    result = StageResult(
        stage=Stage.RESOLVE,
        outcome=Outcome.SUCCEEDED,
        reason=Reason.STAGE_SUCCEEDED,
        message="said",
        scalars={"sourceDigest": "5" * 64, "fitWarning": "w" * 3000},
        found=[found],
    )
    write_result(str(tmp_path / "result"), result)
    text = (tmp_path / "result").read_bytes()
    assert len(text) <= MAX_RESULT_BYTES
    read = StageResult.model_validate_json(text)
    assert (read.scalars, read.found[0].scalars) == ({"sourceDigest": "5" * 64}, {"rowsRead": "4"})
    assert found.scalars.keys() == {"goals", "rowsRead"}, "what was given is as it was"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("{", "StageInput: … Invalid JSON"),
        ("{}", "StageInput: stage: Field required."),
        (changed(stage=Stage.FETCH), "stage fetch, … verify."),
        (changed(artifact_uri="s3://data"), "output … artifact … 's3://data'"),
    ],
)
def test_a_wrong_input_is_fatal(tmp_path: Path, given: str, parts: str) -> None:
    code, result = ended(start(tmp_path, "return StageOutput()", given=given), tmp_path)
    assert (code, result.reason) == (ExitCode.FATAL, Reason.SPEC_INVALID)
    assert_says(result.message, "the input", *parts.split(" … "))


@pytest.mark.parametrize(
    ("body", "graceful", "parts"),
    [
        (
            "open('{flag}', 'w').close(); time.sleep(60)",
            False,
            "pod … told to stop … finished.",
        ),
        (
            "open('{flag}', 'w').close(); context.stopping.wait(60); raise StoppedError('Saved at step 7.')",
            True,
            "Saved at step 7.",
        ),
    ],
)
def test_sigterm_ends_a_stage_with_a_result(tmp_path: Path, body: str, graceful: bool, parts: str) -> None:
    flag = tmp_path / "working"
    process = start(tmp_path, body.format(flag=flag), graceful=graceful)
    while not flag.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, result = ended(process, tmp_path)
    assert (code, result.reason) == (ExitCode.RETRIABLE, Reason.PREEMPTED)
    assert_says(result.message, *parts.split(" … "))


def test_a_sigterm_after_the_work_changes_nothing(tmp_path: Path) -> None:
    """It comes while what was printed last is logged."""
    body = (
        "import logging, os, signal; logging.getLogger('stdout').addFilter("
        "lambda _: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(0.1) or True); "
        "print('unfinished', end=''); return StageOutput(message='done')"
    )
    code, result = ended(start(tmp_path, body), tmp_path)
    assert (code, result.message) == (ExitCode.OK, "done")


def test_a_taken_metrics_port_costs_only_the_progress(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        process = start(tmp_path, "return StageOutput()", port=taken.getsockname()[1])
        assert ended(process, tmp_path)[0] == ExitCode.OK
    assert "no progress metrics" in (tmp_path / "log").read_text()


# The log that outlives the pod


def kept_given(s3: SeaweedFS, store: Store) -> str:
    """An input with an output, below which the log is kept."""
    return changed(storage=s3.storage, output=Output(uri=store.uri(), name="transactions"))


def kept_log(store: Store) -> tuple[str, list[str]]:
    """URI and messages of the one log that is kept."""
    (entry,) = store.list(f"{run_folder(DEPLOYMENT)}/logs")
    lines = (store.at(entry.uri).get() or b"").splitlines()
    return entry.uri, [json.loads(line)["message"] for line in lines]


def test_a_failure_names_the_log_that_is_kept(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    body = "raise StageError(Reason.INTERNAL_ERROR, 'Broken.')"
    _, result = ended(start(tmp_path, body, given=kept_given(s3, store)), tmp_path)
    uri, messages = kept_log(store)
    assert result.message == f"Broken. Log: {uri}", "the operator appends the remedy"
    told = with_remedy(Reason.INTERNAL_ERROR, "Broken.", ADAPTERDEPLOYMENT)
    assert (messages[0].startswith("stage starts"), messages[-1]) == (True, f"InternalError: {told}")


def test_a_log_is_not_named_where_the_operator_would_cut_its_uri(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """The stage's name and the remedy have to go into the condition too."""
    body = "raise StageError(Reason.INTERNAL_ERROR, 'x' * 880)"
    _, result = ended(start(tmp_path, body, given=kept_given(s3, store)), tmp_path)
    assert result.message == "x" * 880
    assert kept_log(store)[1]


def test_a_success_keeps_its_log_too(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    _, result = ended(start(tmp_path, "return StageOutput(message='Fine.')", given=kept_given(s3, store)), tmp_path)
    assert result.message == "Fine."
    assert kept_log(store)[1][-1] == "StageSucceeded: Fine."


def test_a_killed_stage_leaves_what_was_kept_last(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    process = start(tmp_path, "time.sleep(60)", given=kept_given(s3, store))
    deadline = time.monotonic() + 60
    while not any(True for _ in store.list(run_folder(DEPLOYMENT))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait(timeout=60)
    assert kept_log(store)[1][0].startswith("stage starts")


def test_a_log_that_may_not_be_written_costs_a_warning(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in READER.environment().items():
        monkeypatch.setenv(name, value)
    process = start(tmp_path, "return StageOutput()", given=kept_given(s3, store))
    began = time.monotonic()
    code, result = ended(process, tmp_path)
    assert (code, result.outcome) == (ExitCode.OK, Outcome.SUCCEEDED)
    assert "saving the log failed, the stage continues" in (tmp_path / "log").read_text()
    assert time.monotonic() - began < 30
    assert not list(store.list())


# Inputs written by hand


def by_hand(**fields: Any) -> str:
    """An example input of publish, without a key."""
    return example_input(Stage.PUBLISH).model_copy(update=fields).model_dump_json(by_alias=True)


def test_an_input_without_a_key_gets_the_one_that_follows(tmp_path: Path) -> None:
    given = example_input(Stage.PUBLISH)
    body = "raise StageError(Reason.INTERNAL_ERROR, context.input.input_key)"
    _, result = ended(start(tmp_path, body, given=by_hand(), stage=Stage.PUBLISH), tmp_path)
    assert result.message.startswith(input_key(Stage.PUBLISH, given.upstream, given.params))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"upstream": Upstream(dataset="d")},
            "addresses … upstream: … no adapter, export, evaluation",
        ),
        ({"params": Params()}, "no params.publish."),
    ],
)
def test_a_key_that_does_not_follow_is_an_error(fields: dict[str, Any], parts: str, tmp_path: Path) -> None:
    code, result = ended(
        start(tmp_path, "return StageOutput()", given=by_hand(**fields), stage=Stage.PUBLISH), tmp_path
    )
    assert (code, result.reason) == (ExitCode.FATAL, Reason.SPEC_INVALID)
    assert_says(result.message, "the input", *parts.split(" … "))


def grown(stage: Stage, *places: str, value: object = 3) -> str:
    """The input that a newer operator writes: with one more field at each of the places."""
    document = json.loads(example_input(stage).model_dump_json(by_alias=True)) | {"operatorVersion": "9.9.9"}
    for place in places:
        within = document
        for part in place.split("."):
            within = within[int(part) if isinstance(within, list) else part]
        within["addedLater"] = value
    return json.dumps(document)


def test_fields_of_a_newer_operator_are_ignored_at_every_level(tmp_path: Path) -> None:
    """The log names them. Where they are part of the key they may be there, but ask for nothing."""
    given = json.loads(grown(Stage.PUBLISH, "storage", "run", "tracking"))
    given["params"]["publish"]["output"] |= {"addedLater": None, "more": []}
    body = "return StageOutput(message=context.input.storage.endpoint)"
    code, result = ended(start(tmp_path, body, given=json.dumps(given), stage=Stage.PUBLISH), tmp_path)
    assert (code, result.message) == (ExitCode.OK, "http://localhost:8333")
    log = (tmp_path / "log").read_text()
    for place in ("storage", "run", "tracking", "params.publish.output"):
        assert re.search(rf"{place}\.addedLater, .*version {__version__} .*ignored", log)


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        (Stage.PUBLISH, "params.publish.output"),
        (Stage.PREPARE, "params.prepare.dataset.sources.0"),
        (Stage.RESOLVE, "params.train.training"),
    ],
)
def test_an_unknown_field_that_belongs_to_a_key_is_refused(stage: Stage, place: str, tmp_path: Path) -> None:
    """Else the result without it would be stored, or looked up, under the key of one that has it."""
    code, result = ended(start(tmp_path, "return StageOutput()", given=grown(stage, place), stage=stage), tmp_path)
    assert (code, result.reason) == (ExitCode.FATAL, Reason.SPEC_INVALID)
    assert_says(
        result.message, f"{place}.addedLater (3),", f"version {__version__}", "operator 9.9.9", "images", "values"
    )


def test_the_input_says_what_is_tracked_and_kept(tmp_path: Path) -> None:
    document = json.loads(GIVEN.model_dump_json(by_alias=True))
    document |= {"tracking": {"mlflow": {"url": "http://mlflow:5000"}}, "retention": {"checkpoints": 7}}
    body = "return StageOutput(message=f'{context.input.tracking.mlflow.url} {context.input.retention.checkpoints}')"
    assert ended(start(tmp_path, body, given=json.dumps(document)), tmp_path)[1].message == "http://mlflow:5000 7"
    document["tracking"]["mlflow"]["url"] = "http://user:secret@mlflow:5000"
    code, result = ended(start(tmp_path, body, given=json.dumps(document)), tmp_path)
    assert (code, result.reason) == (ExitCode.FATAL, Reason.SPEC_INVALID)
    assert "tracking.mlflow.url: String should match pattern" in result.message
    assert "secret" not in result.message
