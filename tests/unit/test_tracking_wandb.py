"""Tracking with Weights & Biases: what W&B's real client sends to a server, and what one that is away costs."""

import getpass
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.hashing import digest
from finetune_api.references import SecretKeyRef
from finetune_api.tracking import Tracking, Wandb
from finetune_jobs.base.progress import Progress
from finetune_jobs.store.s3 import Store
from finetune_jobs.training import tracking as tracking_module
from finetune_jobs.training import wandb_run
from finetune_jobs.training.figures import End
from finetune_jobs.training.tracking import hyperparameters, lineage_facts, tracked
from finetune_jobs.training.wandb_run import WandbRun
from tests.support import wandb_server
from tests.support.closed_port import closed_port
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN
from tests.support.tracking import DATASET, LOSSES, VALIDATIONS, given, learn
from tests.support.wandb_server import WandbServer

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_environment")]

KEY = "0123456789abcdef" * 2 + "01234567"
SECRET = SecretKeyRef(name="wandb", key="key")
PATIENCE_S = 60.0
"""On a busy machine, the client's process takes its time to start."""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server.running() as state:
        yield state


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a Secret made from a file."""
    monkeypatch.setenv("WANDB_API_KEY", f"{KEY}\n")


def follow(
    url: str, folder: Path, first: int = 1, last: int = 4, end: End = End.FINISHED, operator: str = "1.2.3"
) -> bool:
    """Whether a training of these steps has been tracked to the last word."""
    stage = given().model_copy(update={"operator_version": operator})
    run = WandbRun(
        Wandb(base_url=url, secret_key_ref=SECRET), "name", hyperparameters(stage), lineage_facts(stage), folder
    )
    progress = Progress("train")
    progress.follow(run)
    learn(progress, first, last)
    run.end(end)
    return run.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("fields", "valid"),
    [
        ({}, True),
        ({"baseUrl": "http://wandb.tracking.svc:8080/api", "entity": "acme", "project": "Support answers"}, True),
        ({"baseUrl": "https://user:secret@wandb.example.org"}, False),
        ({"baseUrl": "file:///tmp/wandb"}, False),
        ({"entity": "acme/support"}, False),
        ({"project": "a/b"}, False),
        ({"secretKeyRef": None}, False),
    ],
)
def test_a_project_is_named_and_a_key_is_needed(fields: dict[str, Any], valid: bool) -> None:
    with nullcontext() if valid else pytest.raises(ValidationError):
        Wandb.model_validate({"secretKeyRef": {"name": "wandb", "key": "key"}} | fields)


def test_a_run_holds_figures_settings_and_lineage(
    server: WandbServer, s3: SeaweedFS, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_module, "LAST_WORDS_SECONDS", PATIENCE_S)
    tracking = Tracking(wandb=Wandb(base_url=server.url, secret_key_ref=SECRET))
    progress = Progress("train")
    store = Store.connect(s3.storage, place)
    with tracked(given(rank=8, learning_rate="2e-4"), tracking, store, tmp_path / "tracking", progress):
        learn(progress)

    ((path, run),) = server.runs.items()
    assert path.startswith(f"{wandb_server.OWNER}/team-a.transactions/")
    assert (run.opened[0]["groupName"], run.opened[0]["jobType"]) == ("team-a/transactions", "train")
    assert run.opened[0]["displayName"] == f"{RUN.name}-{RUN.id}"
    assert run.config.items() >= {"rank": 8, "method": "QLoRA", "learningRate": 0.0002}.items()
    facts = {"dataset_digest": DATASET, "run_id": RUN.id, "base_model": "s3://data/model", "operator_version": "1.2.3"}
    assert run.config["finetune"].items() >= facts.items()
    assert run.series("train/loss") == LOSSES
    assert run.series("validation/loss") == VALIDATIONS
    assert run.series("train/learning_rate") == {step: 2.0**-step for step in LOSSES}
    assert (run.exit_codes, run.preempting) == ([0], 0)


def test_entity_and_project_are_those_of_the_spec(server: WandbServer, tmp_path: Path) -> None:
    spec = Wandb(base_url=server.url, entity="acme", project="Support answers", secret_key_ref=SECRET)
    run = WandbRun(spec, "name", {}, {"finetune.job": "a/b"}, tmp_path)
    run.end(End.FAILED)
    assert run.wait(PATIENCE_S)
    ((path, found),) = server.runs.items()
    assert path.startswith("acme/Support answers/")
    assert found.exit_codes == [1]


def test_a_second_pod_goes_on_with_the_same_run(server: WandbServer, tmp_path: Path) -> None:
    """The first pod got to step 3 and was stopped; its newest checkpoint was that of step 1. The operator was upgraded
    meanwhile."""
    assert follow(server.url, tmp_path / "1", last=3, end=End.KILLED)
    (run,) = server.runs.values()
    assert (run.exit_codes, run.preempting) == ([1], 1)
    assert follow(server.url, tmp_path / "2", first=2, operator="1.3.0")
    (run,) = server.runs.values()
    assert run.exit_codes == [1, 0]
    assert [row["_step"] for row in run.history] == [1, 2, 3, 4]
    assert (run.series("train/loss"), run.series("validation/loss")) == (LOSSES, VALIDATIONS)


@pytest.mark.parametrize("fault", ["closed port", "never answers", "refuses the key"])
def test_a_dead_server_costs_a_warning_and_nothing_else(
    fault: str, server: WandbServer, s3: SeaweedFS, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.delay_seconds = PATIENCE_S if fault == "never answers" else 0.0
    server.status = HTTPStatus.UNAUTHORIZED
    progress = Progress("train")
    # Its own run: the client's service, which the tests share, may not have given up the one before yet.
    stage = given().model_copy(update={"input_key": digest(fault)})
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}" if fault == "closed port" else server.url
        tracking = Tracking(wandb=Wandb(base_url=url, secret_key_ref=SECRET))
        with tracked(stage, tracking, Store.connect(s3.storage, place), tmp_path / "tracking", progress):
            began = time.monotonic()
            learn(progress)
            took = time.monotonic() - began
            began = time.monotonic()
        ending = time.monotonic() - began
    assert took < 5
    assert ending < 8, "the client itself would try for ten seconds and longer"
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "not all figures reached Weights & Biases" in warnings
    assert sum("the stage continues" in message for message in warnings) <= 1
    assert KEY not in caplog.text


def test_a_server_that_falls_silent_holds_up_the_end_for_some_seconds_only(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "_FINISH_SECONDS", 2.0)
    run = WandbRun(Wandb(base_url=server.url, secret_key_ref=SECRET), "name", {}, {"finetune.job": "a/b"}, tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while not server.runs:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.delay_seconds = PATIENCE_S
    began = time.monotonic()
    run.end(End.FINISHED)
    assert not run.wait(0.0)
    assert time.monotonic() - began < 8
    assert "not all figures reached Weights & Biases" in caplog.text


@pytest.mark.parametrize("value", [None, "", "\n"])
def test_a_missing_key_is_named_with_its_secret(
    value: str | None, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Nobody is asked for one, not even at a terminal."""
    monkeypatch.delenv("WANDB_API_KEY")
    if value is not None:
        monkeypatch.setenv("WANDB_API_KEY", value)
    assert not follow(server.url, tmp_path)
    assert "WANDB_API_KEY is empty: Secret 'wandb' must hold the API key under 'key'." in caplog.text
    assert not server.requests


PROGRAM = """
import sys
from pathlib import Path

from finetune_api.references import SecretKeyRef
from finetune_api.tracking import Wandb
from finetune_jobs.base.progress import Measurement
from finetune_jobs.training.figures import End
from finetune_jobs.training.wandb_run import WandbRun

spec = Wandb(base_url=sys.argv[1], secret_key_ref=SecretKeyRef(name="wandb", key="key"))
run = WandbRun(spec, "name", {"rank": 8}, {"finetune.job": "a/b"}, Path(sys.argv[2]))
run.measured(Measurement(1, 1, loss=1.0))
run.end(End.FINISHED)
print(run.wait(60))
"""


def test_nothing_but_the_run_is_sent_and_to_nobody_else(server: WandbServer, tmp_path: Path) -> None:
    """In a process of its own, in a Git repository, whose proxy would see whatever goes to other hosts."""
    for folder in ("home", "work", "scratch"):
        (tmp_path / folder).mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path / "work", check=True)
    program = tmp_path / "work" / "program.py"
    program.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        proxy_url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {
            **{name: os.environ[name] for name in ("PATH", "WANDB_API_KEY")},
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy_url),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "HOME": str(tmp_path / "home"),
            "TMPDIR": str(tmp_path / "scratch"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        ended = subprocess.run(
            [sys.executable, str(program), server.url, str(tmp_path / "scratch" / "wandb")],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        with pytest.raises(BlockingIOError):  # nobody has called
            proxy.accept()

    assert ended.stdout == "True\n", "and nothing else is printed where the result may go"
    ((path, run),) = server.runs.items()
    graphql = {"RunResumeStatus", "UpsertBucket", "CreateRunFiles"}
    assert set(server.requests) <= {*(f"/graphql {name}" for name in graphql), f"/files/{path}/file_stream"}
    assert run.files == {"wandb-summary.json"}, "part of the stream"
    assert not {"host", "commit", "repo", "debug"} & {name for opened in run.opened for name in opened}
    sent = b"\n".join(server.bodies).decode()
    for private in (KEY, platform.node(), str(tmp_path), sys.executable, f'"{getpass.getuser()}"'):
        assert private not in sent
    about_the_client = json.loads(run.opened[-1]["config"])["_wandb"]["value"]
    assert about_the_client.keys() <= {"cli_version", "python_version", "t", "m"}
    assert not list((tmp_path / "home").iterdir()), "all that it writes is below the scratch folder"
    assert {entry.name for entry in (tmp_path / "work").iterdir()} == {".git", program.name}
    written = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if KEY in path.read_text(errors="replace")]
