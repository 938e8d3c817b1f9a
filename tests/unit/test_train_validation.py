"""A validation: which examples go through the model together, and that its result does not depend on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.training import Method, Packing
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.training.build import PLAIN_ATTENTION_TOKENS, Examples, build_trainer, suit_attention
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.team import Team
from finetune_jobs.training.validation import Validation, divided
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import load_for_training, read_examples, rows, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

TOO_MUCH = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("lengths", "most", "packed", "passes"),
    [
        ([3, 9, 5, 2], 12, True, [[1], [2, 0, 3]]),  # the longest first: 9, then 5 + 3 + 2
        ([3, 9, 5, 2], 14, True, [[1, 2], [0, 3]]),
        ([3, 9, 5, 2], 10, False, [[1], [2, 0], [3]]),  # two of 5 are 10; three would be 15
        ([3, 9, 5, 2], 15, False, [[1], [2, 0, 3]]),
        ([4, 4, 4], 1, True, [[0], [1], [2]]),
        ([7], 100, False, [[0]]),
    ],
)
def test_examples_of_like_length_stand_together(
    lengths: list[int], most: int, packed: bool, passes: list[list[int]]
) -> None:
    assert list(divided(range(len(lengths)), lengths, most, packed=packed)) == passes


def blank_split(lengths: Sequence[int]) -> Dataset:
    rows = [[number] * length for number, length in enumerate(lengths)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


@given(lengths=LENGTHS, most=st.integers(1, 200), packed=st.booleans(), processes=st.integers(1, 4))
def test_every_example_is_seen_once_by_one_of_the_processes(
    lengths: list[int], most: int, packed: bool, processes: int
) -> None:
    """All take as many passes, which a divided model needs; a pass without an example has no label."""
    seen: list[int] = []
    counts = set()
    for rank in range(processes):
        passes: list[list[dict[str, Any]]] = []

        def losses(examples: list[dict[str, Any]], passes: Any = passes) -> torch.Tensor:
            passes.append(examples)
            return torch.tensor(float(sum(label != chat.IGNORED for each in examples for label in each["labels"])))

        total = Validation(blank_split(lengths), most, packed, Team(rank, processes)).summed(losses)
        real = [each for examples in passes for each in examples if chat.IGNORED not in each["labels"]]
        assert float(total) == sum(len(each["labels"]) for each in real)
        seen += [each["labels"][0] for each in real]
        counts.add(len(passes))
    assert sorted(seen) == list(range(len(lengths)))
    assert len(counts) == 1


@pytest.mark.parametrize("packed", [True, False])
def test_passes_that_memory_does_not_hold_are_halved_and_stay_so(packed: bool) -> None:
    """Until a single example is too large: then, and where others wait for this process, it is the caller's."""
    sizes: list[int] = []

    def losses(examples: list[dict[str, Any]], most: int = 2) -> torch.Tensor:
        sizes.append(len(examples))
        if len(examples) > most:
            raise TOO_MUCH
        return torch.tensor(float(sum(len(each["labels"]) for each in examples)))

    validation = Validation(blank_split([5] * 9), 45, packed)
    assert float(validation.summed(losses)) == 45
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    sizes.clear()
    assert float(validation.summed(losses)) == 45
    assert sizes == [2, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        validation.summed(lambda examples: losses(examples, 0))
    with pytest.raises(torch.OutOfMemoryError):
        Validation(blank_split([5] * 9), 45, packed, Team(0, 2)).summed(losses)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many layers as real models have: what training keeps of each is the room that a validation has."""
    folder = build_tiny_llama(tmp_path_factory.mktemp("validated"))
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=64)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def trainer_of(base: Path, folder: Path, *, packing: Packing = Packing.AUTO, batch_size: int = 1) -> LabelLossTrainer:
    """One that is validated with thirty examples."""
    dataset = write_dataset(folder / "dataset", validation=rows(30))
    training = settings(Method.LORA, batch_size=batch_size, packing=packing, max_steps=6)
    model = load_for_training(base, training)
    suit_attention(model, training, PLAIN_ATTENTION_TOKENS + 1)
    split = read_examples(base, dataset, "validation")
    batch, tokenizer = Batch.of(training), load_tokenizer(base)
    return build_trainer(model, Examples(split, split, tokenizer), training, folder / "work", batch)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass, without padding."""
    seen: list[int] = []
    original = LabelLossTrainer._prepare_inputs

    def prepared(self: Any, inputs: dict[str, Any]) -> Any:
        mask = inputs.get("attention_mask")
        seen.append(inputs["input_ids"].numel() if mask is None else int(mask.sum()))
        return original(self, inputs)

    monkeypatch.setattr(LabelLossTrainer, "_prepare_inputs", prepared)
    return seen


@pytest.mark.parametrize("packing", list(Packing))
@pytest.mark.usefixtures("without_bfloat16")
def test_passes_are_larger_than_those_of_training(
    packing: Packing, passes: list[int], base: Path, tmp_path: Path
) -> None:
    """Without a backward pass they take no more memory. The result is the same."""
    found = {}
    for size in (2, 8):
        passes.clear()
        found[size] = trainer_of(base, tmp_path / str(size), packing=packing, batch_size=size).evaluate()["eval_loss"]
        assert len(passes) <= math.ceil(30 / size) / 2
    assert found[2] == pytest.approx(found[8], rel=1e-5)


def test_a_validation_draws_nothing_random(base: Path, tmp_path: Path) -> None:
    """What a training draws after it does not depend on it."""
    trainer = trainer_of(base, tmp_path)
    before = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_that_is_too_small_for_a_validation_does_not_end_the_training(
    passes: list[int], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Passes are halved where they are; training's stay as they are."""
    trainer = trainer_of(base, tmp_path)
    whole = trainer.evaluate()["eval_loss"]
    most = passes[0] // 2
    original = LabelLossTrainer._summed

    def summed(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        if not model.training and inputs["input_ids"].numel() > most:
            raise TOO_MUCH
        return original(self, model, inputs)

    monkeypatch.setattr(LabelLossTrainer, "_summed", summed)
    passes.clear()
    with caplog.at_level(logging.WARNING):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(whole, rel=2e-3)
    assert max(passes[-2:]) <= most
    assert "too small for a validation's pass" in caplog.text
    trainer.train()
    assert trainer.state.global_step == 6
