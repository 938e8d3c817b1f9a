"""How a training computes its steps on the card that it finds; a card is what torch would report of it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_api.training import Method, Training
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.fit.steps import KEPT, ON_CPU, ON_GPU, ROUNDED, SELECTIVE, Step
from finetune_jobs.training import memory
from finetune_jobs.training.memory import chosen_step
from finetune_jobs.training.team import Team
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


@pytest.mark.parametrize(("first", "own"), [(79, 22), (22, 79), (22, 15), (15, 22)])
def test_processes_with_other_cards_do_what_the_first_one_says(
    first: int, own: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether activations are kept in part is asked of the model by all together: one that did not ask would leave the
    others waiting."""
    monkeypatch.setattr(memory, "device", lambda: "cuda:0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    training, said = Training(), list[bytes]()

    def chosen(gib: int, team: Team, share: Callable[[Team, bytes], bytes]) -> Step:
        card = SimpleNamespace(total_memory=gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: card)
        monkeypatch.setattr(Team, "share", share)
        return chosen_step(tmp_path, training, Batch.of(training), 512, team)

    def speak(_team: Team, content: bytes) -> bytes:
        said.append(content)
        return content

    speaking = chosen(first, Team(0, 2), speak)
    assert chosen(own, Team(1, 2), lambda _team, _content: said[0]) == speaking


def test_a_cpu_keeps_everything(tmp_path: Path) -> None:
    assert chosen_step(tmp_path, FULL, Batch.of(FULL), 100_000) == ON_CPU
