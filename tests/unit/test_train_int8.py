"""Training on a base in LLM.int8: its layers keep no inputs, which nothing reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState
from bitsandbytes.nn import Linear8bitLt

from finetune_jobs.fit.recipe import Batch
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.training.build import Examples, build_trainer
from finetune_jobs.training.int8_inputs import release_input
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import load_for_training, read_examples, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    model = trainer.model.train()
    model.zero_grad()
    torch.manual_seed(0)
    batch = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset.select(range(3)).to_list()))
    trainer.compute_loss(model, batch).backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def test_no_layer_of_a_training_keeps_its_input(tmp_path: Path) -> None:
    """And the gradients are those of a training that keeps them."""
    base, training = build_tiny_llama(tmp_path / "base"), settings(quantization="INT8")
    rows = read_examples(base, write_dataset(tmp_path / "dataset"), "train")
    examples = Examples(rows, rows, load_tokenizer(base))
    model = load_for_training(base, training)
    trainer = build_trainer(model, examples, training, tmp_path / "work", Batch.of(training))
    layers = [module for module in trainer.model.modules() if isinstance(module, Linear8bitLt)]
    kept: list[Any] = []
    for layer in layers:
        layer.register_forward_hook(lambda _layer, _given, product: kept.append(getattr(product.grad_fn, "A", None)))

    released = gradients(trainer)

    assert len(kept) == len(layers) > 0
    assert set(kept) == {None}
    for layer in layers:
        layer._forward_hooks.clear()
    for name, expected in gradients(trainer).items():
        assert torch.equal(released[name], expected), name


def test_nor_does_the_product_of_gpus() -> None:
    """bitsandbytes has an algorithm of its own there, which a CPU can compute too."""
    weights, scales = torch.randint(-127, 128, (6, 8), dtype=torch.int8), torch.rand(6)
    found = []
    for release in (False, True):
        inputs = torch.linspace(-7, 7, 24, dtype=torch.bfloat16).reshape(3, 8).requires_grad_()
        state = MatmulLtState(CB=weights, SCB=scales)
        state.has_fp16_weights, state.threshold = False, 6.0
        product = MatMul8bitLt.apply(inputs, weights, None, None, state)
        assert any(each is not None for each in product.grad_fn.tensors)
        if release:
            release_input(None, None, product)
            assert not any(each is not None for each in product.grad_fn.tensors)
        product.sum().backward()
        found.append(inputs.grad)
    assert torch.equal(*found)
