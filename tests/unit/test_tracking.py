"""Tracking of a training: TensorBoard files read back, a real MLflow server, and servers that are away."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from finetune_api import telemetry
from finetune_api.finetunejob import Output
from finetune_api.layout import run_folder
from finetune_api.meta import ExitCode
from finetune_api.stages import Stage, TrainParams
from finetune_api.tracking import Mlflow, Tracking
from finetune_jobs.base.errors import StoppedError
from finetune_jobs.base.progress import Progress
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import download_file
from finetune_jobs.training import mlflow_run
from finetune_jobs.training import tracking as tracking_module
from finetune_jobs.training.tracking import Measuring, hyperparameters, lineage_facts, tracked
from tests.support import forked, mlflow_server, wandb_server
from tests.support.closed_port import closed_port
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN, pipeline_params, stage_input, wait_for
from tests.support.tiny_model import build_tiny_llama
from tests.support.tracking import DATASET, LOSSES, VALIDATIONS, given, learn
from tests.support.training import BASE, publish_inputs, run_training, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_environment")]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, the end of a training would give up before the last copy is made."""
    monkeypatch.setattr(tracking_module, "LAST_WORDS_SECONDS", 60.0)


PATIENT = pytest.mark.usefixtures("patience")


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server.running(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def download(store: Store, folder: Path) -> EventAccumulator:
    """The event files of the run as the store holds them, opened as TensorBoard does."""
    place = store.below(f"{run_folder(RUN)}/tracking/{RUN.id}")
    folder.mkdir()
    for entry in place.list():
        download_file(place, entry.key, folder / entry.key)
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def series(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


# The spec


@pytest.mark.parametrize(
    ("fields", "valid"),
    [
        ({"url": "http://mlflow.tracking.svc:5000"}, True),
        ({"url": "https://mlflow.example.org/team/a", "experiment": "Support answers/v2"}, True),
        ({"url": "https://user:secret@mlflow.example.org"}, False),
        ({"url": "file:///tmp/mlruns"}, False),
        ({"url": "databricks"}, False),
        ({"url": "http://mlflow:5000?token=x"}, False),
        ({"url": "http://mlflow:5000", "experiment": "' OR '1'='1"}, False),
    ],
)
def test_a_server_is_named_by_a_plain_url(fields: dict[str, str], valid: bool) -> None:
    with nullcontext() if valid else pytest.raises(ValidationError):
        Mlflow(**fields)


# What is measured


def test_the_trainer_s_log_becomes_metrics() -> None:
    """Two steps of 3 and 1 seconds with a validation in between, which takes 100 seconds that do not count."""
    clock = iter([0.0, 3.0, 103.0, 104.0])
    progress = Progress("train")
    measuring = Measuring(progress, clock=lambda: next(clock))
    state = SimpleNamespace(global_step=0, max_steps=9, num_input_tokens_seen=0, is_world_process_zero=True)
    for step, logs in enumerate([{"loss": 2.0}, {"loss": 1.5, "grad_norm": 0.75, "learning_rate": 2e-4}], start=1):
        measuring.on_step_begin(None, state, None)
        state.global_step = step
        measuring.on_step_end(None, state, None)
        state.num_input_tokens_seen = 1000 * step  # counted where a step is logged
        measuring.on_log(None, state, None, logs=logs)
    measuring.on_log(None, state, None, logs={"eval_loss": 1.75})
    measuring.on_log(None, state, None, logs={"train_runtime": 5.0})
    state.is_world_process_zero, state.global_step = False, 99
    measuring.on_log(None, state, None, logs={"loss": 99.0})

    registry = CollectorRegistry()
    registry.register(progress)
    shown = dict(
        line.split(" ") for line in generate_latest(registry).decode().splitlines() if line.startswith("finetune_train")
    )
    assert {name: float(value) for name, value in shown.items()} == {
        telemetry.STEP: 2,
        telemetry.PLANNED_STEPS: 9,
        telemetry.STEP_LOSS: 1.5,
        telemetry.LEARNING_RATE: 2e-4,
        telemetry.GRADIENT_NORM: 0.75,
        telemetry.TOKENS: 2000,
        telemetry.TOKENS_PER_SECOND: 500,
    }


def test_settings_are_flat_and_numbers_are_numbers() -> None:
    found = hyperparameters(given(learning_rate="2e-4", rank=8, dropout="0"))
    assert found.items() >= {"learningRate": 2e-4, "rank": 8, "dropout": 0.0, "method": "QLoRA"}.items()
    assert all(isinstance(value, str | int | float) for value in found.values())


def test_facts_tie_the_run_to_its_data() -> None:
    facts = lineage_facts(given())
    assert (facts["finetune.dataset_digest"], facts["finetune.run_id"]) == (DATASET, RUN.id)
    assert (facts["finetune.base_model"], facts["finetune.operator_version"]) == ("s3://data/model", "1.2.3")
    assert "finetune.operator_version" not in lineage_facts(given().model_copy(update={"operator_version": ""}))


# TensorBoard


@PATIENT
def test_event_files_hold_figures_settings_and_lineage(store: Store, tmp_path: Path) -> None:
    progress = Progress("train")
    with tracked(given(rank=8), Tracking(), store, tmp_path / "tracking", progress):
        learn(progress)

    events = download(store, tmp_path / "read")
    assert series(events, "train/loss") == LOSSES
    assert series(events, "validation/loss") == VALIDATIONS
    assert series(events, "train/learning_rate") == {step: 2.0**-step for step in LOSSES}
    assert series(events, "train/gradient_norm") == {step: step for step in LOSSES}
    assert series(events, "train/tokens") == {step: 100 * step for step in LOSSES}
    (text,) = events.Tensors("finetune/dataset_digest/text_summary")
    assert text.tensor_proto.string_val == [DATASET.encode()]
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert (hparams["rank"].number_value, hparams["method"].string_value) == (8, "QLoRA")
    assert "_hparams_/session_end_info" in events.summary_metadata


@PATIENT
@pytest.mark.parametrize("saved", [1, 0], ids=["saved step 1", "saved none"])
def test_a_second_pod_takes_back_the_steps_that_it_does_again(saved: int, store: Store, tmp_path: Path) -> None:
    """The first pod got to step 3 and was stopped."""
    for number, (first, last) in enumerate([(1, 3), (saved + 1, 4)]):
        progress = Progress("train")
        try:
            with tracked(given(), Tracking(), store, tmp_path / str(number), progress):
                learn(progress, first, last)
                if last < 4:
                    raise StoppedError
        except StoppedError:
            time.sleep(1.1)  # TensorBoard reads the files in the order of their names, which hold whole seconds

    events = download(store, tmp_path / "read")
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


@PATIENT
def test_files_are_mirrored_at_a_validation(store: Store, tmp_path: Path) -> None:
    """What a pod leaves behind that is killed the moment after."""
    progress = Progress("train")
    with tracked(given(), Tracking(), store, tmp_path / "tracking", progress):
        learn(progress, last=2)
        place = store.below(f"{run_folder(RUN)}/tracking/{RUN.id}")
        deadline = time.monotonic() + 60
        while not any(True for _ in place.list()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert series(download(store, tmp_path / "killed"), "validation/loss") == {2: 2.25}


@PATIENT
def test_a_real_training_is_tracked_as_its_own_log_says(store: Store, tmp_path: Path) -> None:
    base, dataset = build_tiny_llama(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    progress = Progress("train")
    with tracked(given(), Tracking(), store, tmp_path / "tracking", progress):
        run_training(base, dataset, tmp_path, settings(max_steps=4, checkpoint_steps=2), store, progress=progress)

    log = [json.loads(line) for line in (tmp_path / "adapter" / "train_log.jsonl").read_text().splitlines()]
    events = download(store, tmp_path / "read")
    for tag, key in {
        "train/loss": "loss",
        "validation/loss": "eval_loss",
        "train/learning_rate": "learning_rate",
        "train/gradient_norm": "grad_norm",
    }.items():
        expected = {entry["step"]: entry[key] for entry in log if key in entry}
        assert series(events, tag) == pytest.approx(expected), tag
    assert min(series(events, "train/tokens_per_second").values()) > 0


# MLflow


def runs_of(url: str, experiment: str) -> list[Any]:
    client = MlflowClient(tracking_uri=url)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


@PATIENT
def test_an_mlflow_run_holds_figures_settings_and_lineage(mlflow_url: str, store: Store, tmp_path: Path) -> None:
    progress = Progress("train")
    training = given(rank=8, learning_rate="2e-4")
    with tracked(training, Tracking(mlflow=Mlflow(url=mlflow_url)), store, tmp_path / "tracking", progress):
        learn(progress)

    (run,) = runs_of(mlflow_url, "team-a/transactions")
    client = MlflowClient(tracking_uri=mlflow_url)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == LOSSES
    history = client.get_metric_history(run.info.run_id, "validation/loss")
    assert {metric.step: metric.value for metric in history} == VALIDATIONS
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{RUN.name}-{RUN.id}"
    assert run.data.params.items() >= {"rank": "8", "method": "QLoRA", "learningRate": "0.0002"}.items()
    assert run.data.tags["finetune.dataset_digest"] == DATASET
    assert run.data.tags["finetune.run_id"] == RUN.id
    assert run.data.tags["finetune.operator_version"] == "1.2.3"


@PATIENT
def test_a_second_pod_goes_on_with_the_same_mlflow_run(mlflow_url: str, store: Store, tmp_path: Path) -> None:
    """Which an upgraded operator starts."""
    tracking = Tracking(mlflow=Mlflow(url=mlflow_url, experiment="restarts"))
    statuses = []
    for number, stopped in enumerate([True, False]):
        progress = Progress("train")
        stage = given().model_copy(update={"operator_version": f"1.{number}"})
        try:
            with tracked(stage, tracking, store, tmp_path / str(number), progress):
                learn(progress, 1 + 2 * number, 2 + 2 * number)
                if stopped:
                    raise StoppedError
        except StoppedError:
            pass
        statuses.append([run.info.status for run in runs_of(mlflow_url, "restarts")])
    assert statuses == [["KILLED"], ["FINISHED"]]
    (run,) = runs_of(mlflow_url, "restarts")
    assert run.data.metrics["train/loss"] == LOSSES[4]


def test_the_stage_is_tracked_as_its_input_says(mlflow_url: str, s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """The whole of it, as a container runs it: event files, runs of both trackers, log, one checkpoint that stays."""
    upstream = publish_inputs(store, build_tiny_llama(tmp_path / "base"), write_dataset(tmp_path / "dataset"))
    output = Output(uri=store.uri(), name="transactions")
    training = settings(max_steps=4, checkpoint_steps=2)
    params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=training)})
    asked = stage_input(Stage.TRAIN, s3.storage, output, params, upstream, base_model_uri=store.uri(BASE))
    document = json.loads(asked.model_dump_json(by_alias=True))
    document["retention"] = {"checkpoints": 1}

    command = ["finetune_jobs.train", "--input", str(tmp_path / "input.json")]
    command += ["--result", str(tmp_path / "result.json"), "--metrics-port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "WANDB_API_KEY": "0123456789" * 4}
    with wandb_server.running() as wandb:
        document["tracking"] = {
            "mlflow": {"url": mlflow_url, "experiment": "stage"},
            "wandb": {"baseUrl": wandb.url, "secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}},
        }
        (tmp_path / "input.json").write_text(json.dumps(document))
        ended = wait_for(forked.start(command, environment), tmp_path)

    assert ended.code == ExitCode.OK, ended.log
    assert environment["WANDB_API_KEY"] not in str(ended.log)
    (tracked_run,) = wandb.runs.values()
    assert tracked_run.config["finetune"]["dataset_digest"] == upstream.dataset
    assert set(tracked_run.series("train/loss")) == {1, 2, 3, 4}
    assert tracked_run.exit_codes == [0]
    (run,) = runs_of(mlflow_url, "stage")
    assert run.data.tags["finetune.dataset_digest"] == upstream.dataset
    assert run.data.metrics["validation/loss"] == pytest.approx(float(ended.result.scalars["validationLoss"]), abs=1e-4)
    assert set(series(download(store, tmp_path / "read"), "train/loss")) == {1, 2, 3, 4}
    kept = {entry.key for entry in store.list(run_folder(RUN))}
    assert {path.split("checkpoint-")[1].split("/")[0] for path in kept if "checkpoint-" in path} == {"4"}
    assert any(path.startswith("logs/train-r1-") for path in kept)


@pytest.mark.parametrize("answers", [False, True], ids=["closed port", "never answers"])
def test_a_dead_server_costs_a_warning_and_nothing_else(
    answers: bool, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would wait for a minute here, for each request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "")  # the client's setting goes with the test
    monkeypatch.setattr(mlflow_run, "_TIMEOUT_SECONDS", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent, closed_port() as closed:
        port = silent.getsockname()[1] if answers else closed
        tracking = Tracking(mlflow=Mlflow(url=f"http://127.0.0.1:{port}"))
        progress = Progress("train")
        with tracked(given(), tracking, store, tmp_path / "tracking", progress):
            began = time.monotonic()
            learn(progress)
            took = time.monotonic() - began
            time.sleep(0.5)
            began = time.monotonic()
        ending = time.monotonic() - began
    assert took < 30
    assert ending < 30
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("figures did not reach MLflow" in message for message in warnings)
    assert sum("the stage continues" in message for message in warnings) <= 1
    assert series(download(store, tmp_path / "read"), "train/loss") == LOSSES


PROGRAM = """
import json, sys

hosts = set()
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments
        hosts.add(str(address[0]) if isinstance(address, tuple) else "a local socket")
        if hosts - {"127.0.0.1"}:
            raise OSError("not in a test")
sys.addaudithook(watch)

import time
from finetune_jobs.base.progress import Measurement
from finetune_jobs.training.figures import End
from finetune_jobs.training.mlflow_run import MlflowRun

run = MlflowRun(sys.argv[1], "alone", "run", {"rank": 8}, {"finetune.job": "a/b"})
run.measured(Measurement(1, 1, loss=1.0))
run.end(End.FINISHED)
done = run.wait(60)
time.sleep(2)  # usage statistics are sent a moment later
print(json.dumps([done, sorted(hosts)]))
"""


def test_nothing_but_the_tracking_server_is_contacted(mlflow_url: str, tmp_path: Path) -> None:
    """In a process of its own without the variables by which MLflow knows that it is under test or opted out."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, mlflow_url], env=environment, capture_output=True, timeout=300, check=True
    )
    assert json.loads(ended.stdout) == [True, ["127.0.0.1"]], "and nothing else is printed where the result may go"
