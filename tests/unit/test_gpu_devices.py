"""What a pass and a step compute on a GPU, asked of PyTorch's fake tensors: they have a device, a shape and a type, and
need no GPU. They refuse what mixes devices, and whatever has to know a value, for which the CPU would wait for the GPU.

A backward pass needs a real one; the loss has its gradients from the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from transformers import AutoModelForCausalLM, LlamaConfig, MiniCPM3Config, PreTrainedConfig

from finetune_jobs.modelling.device import is_out_of_memory
from finetune_jobs.training import packing, tiled_loss
from finetune_jobs.training.collator import Collator
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.rounded_adamw import RoundedAdamW
from finetune_jobs.training.team import ALONE

pytestmark = [pytest.mark.unit, pytest.mark.slow]

CUDA = torch.device("cuda:0")
EXAMPLES = [{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}, {"input_ids": [5, 6], "labels": [-100, 6]}]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later."), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_is_too_small_has_several_names(error: Exception, found: bool) -> None:
    """As torch 2.13 and Triton 3.7 word them."""
    assert is_out_of_memory(error) is found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """A card of Hopper's generation, which autocast believes to be there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(tiled_loss, "_agrees", lambda *_: True)  # asks for values, once
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def small_llama(head: int = 16) -> PreTrainedConfig:
    sizes = {"hidden_size": 4 * head, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(vocab_size=320, num_hidden_layers=2, **sizes)


def small_model(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model on the GPU, packed and with the loss of a training."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    model.set_attn_implementation(packing.PACKED)
    tiled_loss.add_tiled_loss(model)
    return model


def batch() -> dict[str, Any]:
    """Two packed examples, as the trainer hands them to the model."""
    with unset_fake_temporarily():  # it works on the CPU
        made = Collator(0, padding_free=True)(EXAMPLES)
    return {
        name: torch.empty(each.shape, dtype=each.dtype, device=CUDA) if torch.is_tensor(each) else each
        for name, each in made.items()
    }


def loss_of(model: Any, *, training: bool = True) -> torch.Tensor:
    trainer: Any = SimpleNamespace(
        aux_loss_enabled=False,
        team=ALONE,
        autocast=lambda: torch.autocast("cuda", torch.bfloat16),
    )
    trainer._summed = partial(LabelLossTrainer._summed, trainer)
    model.train(training)
    if not training:
        return trainer._summed(model, batch())
    count = torch.empty((), dtype=torch.int64, device=CUDA)
    found: torch.Tensor = LabelLossTrainer.compute_loss(trainer, model, batch(), num_items_in_batch=count)
    return found


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_pass_stays_on_its_gpu_and_waits_for_nothing(
    dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an adapter, and of a whole model, whose attention autocast computes in 16 bits: in a kernel of its own."""
    asked = list[torch.dtype]()
    original = torch.nn.attention.varlen.varlen_attn

    def noted(query: torch.Tensor, *given: Any, **named: Any) -> Any:
        asked.append(query.dtype)
        return original(query, *given, **named)

    monkeypatch.setattr(packing, "varlen_attn", noted)

    loss = loss_of(small_model(small_llama(), dtype), training=training)

    assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())
    assert asked == [torch.bfloat16] * 2


@pytest.mark.usefixtures("fake")
def test_heads_that_flash_attention_does_not_take_are_computed_example_by_example() -> None:
    """Its backward pass wants multiples of eight. Where examples end is then asked of the GPU."""
    with pytest.raises(DataDependentOutputException):
        loss_of(small_model(small_llama(head=12)))


@pytest.mark.usefixtures("fake")
def test_values_that_are_narrower_than_keys_take_the_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent attention has such ones (DeepSeek, MiniCPM 3). The kernel wants all of one width, and what it gives is as
    wide as queries: the model's next product would take none of it."""
    asked = list[tuple[int, ...]]()
    original = torch.nn.attention.varlen.varlen_attn

    def noted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *given: Any, **named: Any) -> Any:
        asked.append((query.shape[-1], key.shape[-1], value.shape[-1]))
        return original(query, key, value, *given, **named)

    monkeypatch.setattr(packing, "varlen_attn", noted)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}

    loss = loss_of(small_model(MiniCPM3Config(vocab_size=320, num_hidden_layers=2, **sizes, **latent)))

    assert (loss.device, loss.shape) == (CUDA, ())
    assert asked == [(24, 24, 24)] * 2


@pytest.mark.usefixtures("fake")
def test_a_rounded_step_stays_on_its_gpu_and_waits_for_nothing() -> None:
    weight = torch.nn.Parameter(torch.empty(8, 4, dtype=torch.bfloat16, device=CUDA))
    optimizer = RoundedAdamW([weight], lr=1e-3)
    for _ in range(2):
        weight.grad = torch.empty_like(weight)
        optimizer.step()
    assert {each.device for each in optimizer.state[weight].values() if torch.is_tensor(each)} == {CUDA}
