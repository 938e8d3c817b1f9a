"""The runner of the stages: exit codes, results, SIGTERM, progress."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from finetune_api import telemetry
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import MAX_RESULT_BYTES, Outcome, Stage, StageInput, StageResult
from finetune_jobs.progress import Progress
from tests.support.stages import DEPLOYMENT

pytestmark = pytest.mark.unit

GIVEN = StageInput(stage=Stage.VERIFY, run=DEPLOYMENT, artifact_uri=f"s3://data/artifacts/{'0' * 64}")
PROGRAM = """
import sys, time
from finetune_api.stages import Stage
from finetune_api.reasons import Reason
from finetune_jobs.errors import StageError, StoppedError
from finetune_jobs.runner import Made, run_stage

def work(context):
    {body}

run_stage(Stage.VERIFY, work, graceful={graceful})
"""


def changed(**fields: object) -> str:
    return GIVEN.model_copy(update=fields).model_dump_json(by_alias=True)


def start(
    folder: Path, body: str, *, graceful: bool = False, given: str = "", port: int = 0
) -> "subprocess.Popen[bytes]":
    (folder / "input.json").write_text(given or GIVEN.model_dump_json(by_alias=True))
    program = PROGRAM.format(body=body, graceful=graceful)
    arguments = ["--input", str(folder / "input.json"), "--result", str(folder / "result"), "--metrics-port", str(port)]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=(folder / "log").open("wb"),
        env=os.environ | {"TMPDIR": str(folder), "AWS_EC2_METADATA_DISABLED": "true"},
    )


def ended(process: "subprocess.Popen[bytes]", folder: Path) -> tuple[int, StageResult]:
    code = process.wait(timeout=60)
    return code, StageResult.model_validate_json((folder / "result").read_bytes())


@pytest.mark.parametrize(
    ("body", "code", "reason", "message"),
    [
        ("return Made(message='done')", ExitCode.OK, Reason.STAGE_SUCCEEDED, "done"),
        (
            "raise StageError(Reason.ADAPTER_INACTIVE, 'No.')",
            ExitCode.FATAL,
            Reason.ADAPTER_INACTIVE,
            "No. The server answers like the base model: check the runtime's version and the artifact's format.",
        ),
        (
            "raise StageError(Reason.S3_UNREACHABLE, 'Away.', retriable=True)",
            ExitCode.RETRIABLE,
            Reason.S3_UNREACHABLE,
            "Away. Check spec.storage.endpoint and the network policies between the pod and the store.",
        ),
        (
            "raise ValueError('first line' + chr(10) + 'second line')",
            ExitCode.RETRIABLE,
            Reason.INTERNAL_ERROR,
            "ValueError: first line",
        ),
        ("raise StoppedError('At step 5.')", ExitCode.RETRIABLE, Reason.PREEMPTED, "At step 5."),
    ],
)
def test_an_ending_becomes_an_exit_code_and_a_result(
    tmp_path: Path, body: str, code: int, reason: Reason, message: str
) -> None:
    found, result = ended(start(tmp_path, body), tmp_path)
    assert (found, result.reason, result.message) == (code, reason, message)
    assert (result.outcome is Outcome.SUCCEEDED) is (code == ExitCode.OK)
    assert not list(tmp_path.glob("finetune-*")), "the scratch folder stays behind"


def test_a_traceback_is_in_the_log_only(tmp_path: Path) -> None:
    _, result = ended(start(tmp_path, "raise RuntimeError('boom')"), tmp_path)
    assert result.message == "RuntimeError: boom"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any("Traceback" in line.get("traceback", "") for line in lines)


def test_a_result_fits_a_termination_message(tmp_path: Path) -> None:
    body = "return Made(message='ä' * 1024, scalars={str(n): 'x' * 60 for n in range(24)})"
    _, result = ended(start(tmp_path, body), tmp_path)
    assert len((tmp_path / "result").read_bytes()) <= MAX_RESULT_BYTES
    assert (len(result.scalars), result.message[:3]) == (24, "äää")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "cannot be read as StageInput: the document: Invalid JSON"),
        ("{}", "cannot be read as StageInput: stage: Field required."),
        (changed(stage=Stage.FETCH), "is for stage fetch, this is verify."),
        (changed(artifact_uri="s3://data"), "names neither an output nor an artifact ('s3://data')."),
    ],
)
def test_a_wrong_input_is_fatal(tmp_path: Path, given: str, message: str) -> None:
    code, result = ended(start(tmp_path, "return Made()", given=given), tmp_path)
    assert (code, result.reason) == (ExitCode.FATAL, Reason.SPEC_INVALID)
    assert message in result.message


@pytest.mark.parametrize(
    ("body", "graceful", "message"),
    [
        (
            "open('{flag}', 'w').close(); time.sleep(60)",
            False,
            "The pod was told to stop before the stage had finished.",
        ),
        (
            "open('{flag}', 'w').close(); context.stopping.wait(60); raise StoppedError('Saved at step 7.')",
            True,
            "Saved at step 7.",
        ),
    ],
)
def test_sigterm_ends_a_stage_with_a_result(tmp_path: Path, body: str, graceful: bool, message: str) -> None:
    flag = tmp_path / "working"
    process = start(tmp_path, body.format(flag=flag), graceful=graceful)
    while not flag.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, result = ended(process, tmp_path)
    assert (code, result.reason, result.message) == (ExitCode.RETRIABLE, Reason.PREEMPTED, message)


def test_a_taken_metrics_port_costs_only_the_progress(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        process = start(tmp_path, "return Made()", port=taken.getsockname()[1])
        assert ended(process, tmp_path)[0] == ExitCode.OK
    assert "no progress metrics" in (tmp_path / "log").read_text()


def scrape(progress: Progress) -> str:
    registry = CollectorRegistry()
    registry.register(progress)
    return generate_latest(registry).decode()


def test_progress_shows_what_is_known() -> None:
    seconds = iter(range(0, 1000, 10))
    progress = Progress("train", clock=lambda: next(seconds))
    assert telemetry.ETA_SECONDS not in scrape(progress)
    progress.report(0.2, "step 2 of 10")
    progress.report(0.4, "step 4 of 10")
    progress.measure(loss=1.5, tokens=4096)
    lines = scrape(progress).splitlines()
    assert f"{telemetry.PROGRESS_RATIO} 0.4" in lines
    assert f"{telemetry.ETA_SECONDS} 30.0" in lines
    assert f'{telemetry.INFO}{{message="step 4 of 10",stage="train"}} 1.0' in lines
    assert f"{telemetry.STEP_LOSS} 1.5" in lines
    assert f"{telemetry.TOKENS} 4096.0" in lines
    assert not any(line.startswith(telemetry.EVAL_LOSS) for line in lines)


def test_a_part_of_the_work_moves_its_share() -> None:
    progress = Progress("fetch", clock=lambda: 0.0)
    part = progress.part(0.2, 0.6, "downloading")
    part(50, 100)
    assert f"{telemetry.PROGRESS_RATIO} 0.4" in scrape(progress)
    part(0, 0)
    assert f"{telemetry.PROGRESS_RATIO} 0.6" in scrape(progress)
