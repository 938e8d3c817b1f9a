"""Trainings of several processes: what goes in, what comes out, and how it is held against a training of one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch
from safetensors.torch import load

from finetune_api.finetunejob import Output
from finetune_api.layout import MANIFEST, output_folder, run_folder
from finetune_api.stages import Stage, StageInput, StageResult, TrainParams
from finetune_api.training import Method, Training
from finetune_jobs.store.s3 import Store
from hack.cluster.layout import free_port
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN, pipeline_params, stage_input
from tests.support.training import BASE, publish_inputs, rows, settings, write_dataset

HELD: Final = re.compile(r"FSDP: process (\d) holds (\d+) of the model's \d+ weights")
_ANSWERS: Final = ("refund", "the quick brown fox jumps over the lazy dog", "other fox")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """What trains in this process does so with as many threads as the processes that it is held against; more would
    mostly wait for each other, so small is the model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def uneven_dataset(folder: Path) -> Path:
    """Examples whose answers differ in length. Thirteen fill neither the last step of an epoch nor three a validation
    of two processes."""
    return write_dataset(folder, train=rows(13, labels=_ANSWERS), validation=rows(3, labels=_ANSWERS))


def comparable(method: Method) -> Training:
    """A training of uneven examples which gives like weights however its passes are divided."""
    return settings(
        method,
        epochs=3,
        batch_size=2,
        gradient_accumulation=2,
        checkpoint_steps=5,
        dropout="0",
        learning_rate="1e-3",
    )


def two_processes() -> tuple[str, ...]:
    """The arguments of a training by two processes. They meet at a port of their own: what runs beside the tests may
    have the one that they meet at in a pod."""
    return "--processes", "2", "--coordinator-port", str(free_port())


def train_input(base: Path, dataset: Path, store: Store, s3: SeaweedFS, training: Training) -> StageInput:
    """A training whose inputs and results lie in a place of their own."""
    upstream = publish_inputs(store, base, dataset)
    output = Output(uri=store.uri(), name="together")
    params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=training)})
    return stage_input(Stage.TRAIN, s3.storage, output, params, upstream, base_model_uri=store.uri(BASE))


def weights(store: Store, result: StageResult) -> dict[str, torch.Tensor]:
    """What a training has left in the store."""
    folder = output_folder(Stage.TRAIN, result.output_digest)
    (name,) = (entry.key for entry in store.list(folder) if entry.key.endswith(".safetensors"))
    return dict(load(store.get(f"{folder}/{name}") or b""))


def train_log(store: Store, result: StageResult) -> str:
    """The lines that it has logged."""
    folder = output_folder(Stage.TRAIN, result.output_digest)
    return (store.get(f"{folder}/train_log.jsonl") or b"").decode()


def losses(lines: str, key: str = "loss") -> list[float]:
    """A figure of such lines."""
    entries = [json.loads(line) for line in lines.splitlines()]
    return [entry[key] for entry in entries if key in entry]


def assert_close_to(folder: Path, found: dict[str, torch.Tensor]) -> None:
    """An adapter has the weights of one in a folder, but for what other sums round differently."""
    (file,) = folder.glob("*.safetensors")
    for name, expected in load(file.read_bytes()).items():
        torch.testing.assert_close(found[name], expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def newest_step(place: Store) -> int:
    """Of the checkpoints of a training in the store; 0 where there is none."""
    keys = [entry.key for entry in place.below(f"{run_folder(RUN)}/checkpoints").list()]
    return max((int(key.split("checkpoint-")[1].split("/")[0]) for key in keys if key.endswith(MANIFEST)), default=0)
