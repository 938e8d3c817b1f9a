"""The stage train as its container runs it."""

import json
import signal
import time
from pathlib import Path

import pytest

from finetune_api.finetunejob import Output
from finetune_api.layout import MANIFEST, output_folder, run_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageInput, TrainParams
from finetune_api.training import LearningCurve
from finetune_jobs.folders import read_manifest, read_record
from finetune_jobs.store import Store
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.stages import RUN, pipeline_params, run_process, stage_input, start_process, wait_for
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import BASE, publish_inputs, rows, settings, write_dataset

pytestmark = pytest.mark.unit


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    return Store.connect(s3.storage, place)


@pytest.fixture
def given(s3: SeaweedFS, store: Store, tmp_path: Path) -> StageInput:
    """A training of 60 steps, whose first checkpoint comes long before its end."""
    upstream = publish_inputs(store, build_tiny_llama(tmp_path / "base"), write_dataset(tmp_path / "dataset"))
    output = Output(uri=store.uri(), name="transactions")
    training = settings(epochs=5, batch_size=1, checkpoint_steps=5)
    params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=training)})
    return stage_input(Stage.TRAIN, s3.storage, output, params, upstream, base_model_uri=store.uri(BASE))


def test_sigterm_saves_a_checkpoint_and_the_next_pod_goes_on(given: StageInput, store: Store, tmp_path: Path) -> None:
    checkpoints = store.below(f"{run_folder(RUN)}/checkpoints")
    process = start_process(given, tmp_path, ADMIN)
    while not any(entry.key.endswith(MANIFEST) for entry in checkpoints.list()):
        assert process.poll() is None, wait_for(process, tmp_path)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    first = wait_for(process, tmp_path)

    assert first.code == ExitCode.RETRIABLE
    assert (first.result.outcome, first.result.reason) == (Outcome.FAILED, Reason.PREEMPTED)
    assert "of 60 is saved" in first.result.message

    second = run_process(given, tmp_path, ADMIN)

    assert second.code == ExitCode.OK, second.log
    assert any("training goes on from checkpoint-" in line["message"] for line in second.log)
    record = read_record(store, Stage.TRAIN, given.input_key)
    assert record is not None
    assert record.result == second.result
    folder = output_folder(Stage.TRAIN, second.result.output_digest)
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert manifest.facts == second.result.scalars
    figures = {"steps", "trainLoss", "validationLoss", "tokens", "trainableParameters", "learningRate"}
    assert set(manifest.facts) == figures | {"batchSize", "gradientAccumulation", "ended"}
    assert manifest.lineage.tools.keys() == {"torch", "transformers", "peft", "trl", "bitsandbytes"}
    config = json.loads(store.get(f"{folder}/adapter_config.json") or b"")
    assert config["base_model_name_or_path"] == store.uri(BASE)


def test_a_learning_curve_is_part_of_the_result(given: StageInput, s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """In the message, the scalars, the folder, and the parts in the run's own state."""
    dataset, output = write_dataset(tmp_path / "more", train=rows(40)), Output(uri=store.uri(), name="transactions")
    training = settings(epochs=1, learning_curve=LearningCurve(percents=[30, 60]))
    params = given.params.model_copy(update={"train": TrainParams(training=training)})
    upstream = publish_inputs(store, tmp_path / "base", dataset)
    changed = stage_input(Stage.TRAIN, s3.storage, output, params, upstream, base_model_uri=store.uri(BASE))

    done = run_process(changed, tmp_path, ADMIN)

    assert done.code == ExitCode.OK, done.log
    folder = output_folder(Stage.TRAIN, done.result.output_digest)
    curve = json.loads(store.get(f"{folder}/learning_curve.json") or b"")
    assert [point["examples"] for point in curve["points"]] == [12, 24, 40]
    assert done.result.scalars["moreExamples"] == curve["moreExamples"]
    assert done.result.message.endswith(curve["sentence"])
    assert (store.get(f"{folder}/learning_curve.html") or b"").startswith(b"<!doctype html>")
    parts = [entry.key for entry in store.below(f"{run_folder(RUN)}/curves/{changed.input_key[:16]}").list()]
    assert parts == ["30.json", "60.json"]
