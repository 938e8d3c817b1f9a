"""Activation checkpointing that keeps a part: the same gradients for less work."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode

from finetune_api.training import Method
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.fit.shapes import read_shape
from finetune_jobs.fit.steps import ON_CPU
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.store.s3 import Store
from finetune_jobs.training import build, packing, selective, trainer
from finetune_jobs.training.build import Examples, build_trainer
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.selective import PLAIN, SELECTIVE
from tests.support.seaweedfs import SeaweedFS
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import load_for_training, read_examples, run_training, settings, write_dataset
from tests.unit.test_train_recovery import assert_same_weights

pytestmark = [pytest.mark.unit, pytest.mark.slow]

STEP: Final = replace(ON_CPU, checkpointing=True, selective=True)
ATEN: Final = torch.ops.aten
GEMM_4BIT: Final = torch.ops.bitsandbytes.gemm_4bit.default
"""bitsandbytes' product with 4-bit weights, whose shape is (outputs, inputs): one operator, whatever it does inside."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("selective") / "base")


def trainer_of(method: Method, base: Path, folder: Path, *, packed: bool = False, touch: Any = None) -> Any:
    """One that keeps a part, of a model that ``touch`` may have changed."""
    training = settings(method, dropout="0.1")
    model = load_for_training(base, training)
    if packed:
        assert packing.use_packing(model)
    if touch:
        touch(model)
    examples = read_examples(base, write_dataset(folder / "dataset"), "train")
    parts = Examples(examples, examples, load_tokenizer(base))
    return build_trainer(model, parts, training, folder / "work", Batch.of(training), step=STEP)


def operations_of_4_bits(
    rows: tuple[int, ...], _packed: tuple[int, ...], matrix: list[int], *_: Any, **_named: Any
) -> int:
    """Of a product with a matrix (outputs, inputs), which torch cannot look into."""
    return 2 * math.prod(rows) * matrix[0]


def computed(trainer: LabelLossTrainer, how: dict[str, Any] | None) -> tuple[dict[str, torch.Tensor], int, int]:
    """The gradients of a pass, the operations of matrix products and attention that it took, and its tokens."""
    model = trainer.model
    model.train()
    model.zero_grad()
    model.activation_checkpointing_disable()
    if how:
        model.activation_checkpointing_enable(how)
    batch = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset.select(range(3)).to_list()))
    torch.manual_seed(1)
    known = {torch.ops.bitsandbytes.gemm_4bit: operations_of_4_bits}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        trainer.compute_loss(model, batch).backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return found, counter.get_total_flops(), batch["input_ids"].numel()


@pytest.mark.parametrize(("method", "packed"), [(Method.LORA, True), (Method.QLORA, False), (Method.FULL, False)])
def test_the_gradients_are_those_of_a_pass_that_keeps_everything(
    method: Method, packed: bool, base: Path, tmp_path: Path
) -> None:
    """Bit for bit, dropout and all; and less is computed again than with plain checkpointing: under an adapter, whose
    inputs are all needed, by every product of which ``fit`` counts that it is kept."""
    trainer = trainer_of(method, base, tmp_path, packed=packed)
    assert trainer.args.activation_checkpointing_kwargs == SELECTIVE

    (whole, least, tokens), (found, some, _), (_, most, _) = (
        computed(trainer, how) for how in (None, SELECTIVE, PLAIN)
    )

    assert whole.keys() == found.keys() != set()
    for name, expected in whole.items():
        assert torch.equal(found[name], expected), name
    assert least < some < most
    if method is not Method.FULL:
        shape, rank = read_shape(json.loads((base / "config.json").read_text())), settings().rank
        first = rank * sum(matrix.inputs for kind in shape.kinds for matrix in kind.matrices)
        assert most - some >= 2 * tokens * sum(kind.count * (kind.selected_parameters + first) for kind in shape.kinds)


def test_a_model_that_changes_a_result_in_place_is_checkpointed_plainly(base: Path, tmp_path: Path) -> None:
    """It would find its product doubled when a layer is computed again, and double it once more."""

    def touch(model: Any) -> None:
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.register_forward_hook(lambda _module, _given, product: product.mul_(2))

    trainer = trainer_of(Method.FULL, base, tmp_path, touch=touch)

    assert trainer.args.activation_checkpointing
    assert trainer.args.activation_checkpointing_kwargs == PLAIN


def test_a_training_ends_with_the_same_weights(
    base: Path, s3: SeaweedFS, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that keeps everything: asking the model has drawn no random numbers of the training's."""
    store, dataset = Store.connect(s3.storage, place), write_dataset(tmp_path / "dataset")
    training = settings(Method.LORA, max_steps=3, dropout="0.1")
    run_training(base, dataset, tmp_path / "whole", training, store.below("whole"))
    monkeypatch.setattr(trainer, "chosen_step", lambda *_: STEP)
    asked: list[bool] = []
    original = selective.use_selective
    monkeypatch.setattr(build, "use_selective", lambda given: asked.append(original(given)))

    run_training(base, dataset, tmp_path / "part", training, store.below("part"))

    assert asked == [True]
    assert_same_weights(tmp_path / "part", tmp_path / "whole")


WIDE, NARROW = torch.empty(4, 8), torch.empty(8, 4)
ROWS: Final = torch.empty(3, 4)
PACKED, SCALES = torch.empty(16, 1, dtype=torch.uint8), torch.empty(1)
FLASH: Final = ATEN._scaled_dot_product_flash_attention.default


@pytest.mark.parametrize(
    ("operator", "given", "named", "kept"),
    [
        (ATEN.mm.default, (ROWS, WIDE), {}, False),
        (ATEN.mm.default, (ROWS, NARROW), {}, True),
        (ATEN.addmm.default, (ROWS, ROWS, NARROW), {}, True),
        (ATEN.bmm.default, (ROWS, NARROW), {}, False),
        (GEMM_4BIT, (ROWS, PACKED, [8, 4], SCALES, 64, "nf4"), {"bias": None}, False),
        (GEMM_4BIT, (ROWS, PACKED, [4, 8], SCALES, 64, "nf4"), {"bias": None}, True),
        (GEMM_4BIT, (ROWS, PACKED, [4, 4], SCALES, 64, "nf4"), {}, True),
        (ATEN.mul.Tensor, (ROWS, ROWS), {}, False),
        (FLASH, (ROWS, ROWS, ROWS), {}, True),
        (FLASH, (ROWS, ROWS, ROWS), {"dropout_p": 0.1}, False),
        (FLASH, (ROWS, ROWS, ROWS, 0.1), {}, False),
        (ATEN._scaled_dot_product_efficient_attention.default, (ROWS, ROWS, ROWS, None, True), {}, True),
        (torch.ops.torch_attn._varlen_attn.default, (ROWS, ROWS, ROWS), {}, True),
    ],
)
def test_what_is_kept(operator: Any, given: tuple[Any, ...], named: dict[str, Any], kept: bool) -> None:
    """Products no wider than their input, and attention that draws no random numbers."""
    policy = selective._policy(None, operator, *given, **named)
    assert policy == (CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE)
