"""What the last digits do to a model's probabilities, measured on the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_jobs.evaluation.distances import distance
from finetune_jobs.evaluation.disturbance import disturbed
from finetune_jobs.evaluation.passages import Passage, token_log_probs
from finetune_jobs.modelling.loading import load_checkpoint
from tests.support.tiny_model import build_tiny_int8, build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch

TEXTS = [Passage("", list(range(3 + n, 43 + n))) for n in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights are large enough for rounding to show."""
    return build_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    found = load_checkpoint(folder)
    for each in found.parameters():
        each.data = 10 * each.data if each.dim() > 1 else each.data
    return found.float()


def noise_of(model: Any, text: Passage) -> float:
    found = disturbed(model, text).noise
    assert found is not None
    return found


def apart(one: Any, other: Any) -> float:
    return sum(distance(token_log_probs(one, each.ids), token_log_probs(other, each.ids)) for each in TEXTS) / 4


def test_noise_is_about_as_large_as_the_rounding_of_two_servers(model: Any, folder: Path) -> None:
    rounded = load_checkpoint(folder)
    rounded.load_state_dict(model.state_dict())
    rounded = rounded.to(torch.bfloat16)
    exact = load_checkpoint(folder).float()
    exact.load_state_dict({name: each.float() for name, each in rounded.state_dict().items()})
    one_rounds = apart(exact, rounded)
    noise = sum(noise_of(exact, each) for each in TEXTS) / 4
    assert one_rounds > 0.001
    assert 0.7 * one_rounds < noise < 3 * one_rounds


def test_noise_is_the_same_each_time_and_leaves_nothing_behind(model: Any) -> None:
    before = token_log_probs(model, TEXTS[0].ids)
    assert noise_of(model, TEXTS[0]) == noise_of(model, TEXTS[0]) > 0
    assert token_log_probs(model, TEXTS[0].ids) == before


def test_of_a_long_text_none_is_measured(model: Any) -> None:
    found = disturbed(model, Passage("", TEXTS[0].ids, long=True))
    assert found.noise is None
    assert found.straight != found.turned


def test_where_it_is_not_asked_for_the_text_is_not_read_for_it(model: Any) -> None:
    """A text that only shows positions: it is read with the right ones and with wrong ones, and that is all."""
    read: list[Any] = []
    counting = model.register_forward_hook(lambda *_: read.append(1))
    try:
        found = disturbed(model, TEXTS[0], noisy=False)
    finally:
        counting.remove()
    assert found.noise is None
    assert found.straight != found.turned
    assert len(read) == 2


def test_positions_are_compared_without_the_rounding_of_activations(folder: Path, tmp_path: Path) -> None:
    """Its noise would hide what they do. The weights stay in 8 bits, and the model rounds again afterwards."""
    rounded = build_tiny_int8(tmp_path / "int8", folder)
    plain = build_tiny_llama(tmp_path / "plain")
    held = load_file(rounded / "model.safetensors")
    weights = {
        name: each.float() * held[f"{name}_scale"] if f"{name}_scale" in held else each
        for name, each in held.items()
        if not name.endswith("_scale")
    }
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    eight, unrounded = (load_checkpoint(each, dtype=torch.float32) for each in (rounded, plain))
    before = token_log_probs(eight, TEXTS[0].ids)
    straight = disturbed(eight, TEXTS[0]).straight
    assert distance(straight, token_log_probs(unrounded, TEXTS[0].ids)) < 0.0001
    assert distance(straight, before) > 0.001
    assert token_log_probs(eight, TEXTS[0].ids) == before


def test_activations_in_8_bits_are_moved_further(model: Any, folder: Path, tmp_path: Path) -> None:
    eight = load_checkpoint(build_tiny_int8(tmp_path / "int8", folder))
    sixteen = load_checkpoint(folder)
    assert sum(noise_of(eight, each) for each in TEXTS) > 1.2 * sum(noise_of(sixteen, each) for each in TEXTS)
