"""How a training computes its steps on the card that it finds; a card is what torch would report of it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_api.training import Method, Training
from finetune_jobs.fit.memory import KEPT, ON_CPU, ON_GPU, ROUNDED, SELECTIVE, Step
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.training import memory
from finetune_jobs.training.memory import chosen_step
from tests.support.fit import LLAMA_8B

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FULL = Training(method=Method.FULL)


@pytest.mark.parametrize(
    ("config", "training", "longest", "gib", "step"),
    [
        (LLAMA_8B, Training(), 512, 79, KEPT),
        (LLAMA_8B, Training(), 512, 22, SELECTIVE),
        (LLAMA_8B, Training(), 512, 15, ON_GPU),
        (LLAMA_8B, Training(), 64, 22, KEPT),  # of the data, however long they might have been
        (LLAMA_8B, FULL, 512, 79, ROUNDED),
        (LLAMA_8B, FULL, 512, 288, KEPT),
        ({"model_type": "mamba"}, Training(), 64, 79, ON_GPU),
    ],
)
def test_the_card_and_the_longest_example_decide(
    config: dict[str, Any],
    training: Training,
    longest: int,
    gib: int,
    step: Step,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr(memory, "device", lambda: "cuda:0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: card)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert chosen_step(tmp_path, training, Batch.of(training), longest) == step


def test_a_cpu_keeps_everything(tmp_path: Path) -> None:
    assert chosen_step(tmp_path, FULL, Batch.of(FULL), 100_000) == ON_CPU
