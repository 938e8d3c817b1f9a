"""A training step, or a validation's pass, in PyTorch's memory tracker, with fake tensors: real operators and sizes, no
memory, no GPU.

It runs transformers' model, PEFT's adapters, the loss in tiles, bitsandbytes' 4-bit and 8-bit products and AdamW, under
autocast with accumulated gradients, like the training on a GPU. A CPU build of PyTorch cannot run autograd for fake
CUDA tensors, so the tensors are on the CPU; where CUDA works in place or uses another kernel, the operator is replaced
by one that uses the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from bitsandbytes.autograd._functions import MatMul4Bit, MatMul8bitLt, MatmulLtState
from bitsandbytes.functional import QuantState
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.training import AdapterKind, Method, Quantization, Training
from finetune_jobs.fit.steps import Step
from finetune_jobs.training.int8_inputs import release_input
from finetune_jobs.training.rounded_adamw import RoundedAdamW
from finetune_jobs.training.selective import PLAIN, SELECTIVE
from finetune_jobs.training.tiled_loss import Logits, tiled_loss

DEVICE = "cpu"


def tracked_peak(config: dict[str, Any], training: Training, step: Step) -> int:
    """Peak bytes of all tensors in an optimiser step of two passes, after a first step created Adam's moments."""
    with _as_on_cuda(), FakeTensorMode(allow_non_fake_inputs=True), torch.device(DEVICE):
        model = _model(config, training, rounded=step.rounded)
        base = model if training.method is Method.FULL else model.get_base_model()
        if step.checkpointing:
            base.activation_checkpointing_enable(SELECTIVE if step.selective else PLAIN)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = RoundedAdamW(trained) if step.rounded else torch.optim.AdamW(trained, fused=True)
        tracker = _Tracker()
        tracker.track_external(model, optimiser)
        with disable_input_dtype_casting(model), tracker:
            for passes in (1, 2):
                for _ in range(passes):
                    _pass(base, training)
                optimiser.step()
                optimiser.zero_grad()
        return int(tracker.get_tracker_snapshot("peak")[torch.device(DEVICE)]["Total"])


def tracked_validation(config: dict[str, Any], training: Training, step: Step) -> int:
    """Peak bytes of a forward pass without gradients, beside the model: over ``training``'s examples of a pass."""
    with _as_on_cuda(), FakeTensorMode(allow_non_fake_inputs=True), torch.device(DEVICE):
        model = _model(config, training, rounded=step.rounded).eval()
        base = model if training.method is Method.FULL else model.get_base_model()
        tracker = _Tracker()
        tracker.track_external(model)
        with disable_input_dtype_casting(model), tracker, torch.no_grad():
            before = tracker.get_tracker_snapshot("current")[torch.device(DEVICE)]["Total"]
            _pass(base, training, backward=False)
        return int(tracker.get_tracker_snapshot("peak")[torch.device(DEVICE)]["Total"] - before)


class _Tracker(MemTracker):  # type: ignore[misc] # torch is not typed here
    """PyTorch's, without what it notes of each module: that takes longer than everything else, and adds no byte, since
    all modules are tracked from outside. Frozen parameters refuse its gradient hooks, too (PyTorch 2.13)."""

    def _update_peak_stats(self, _peak_state: Any) -> None:
        """Those of all modules together."""
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device] = now["Total"]
                self._peak_mem_snap[device] = dict(now)

    def _no_note(self, *_of_module: Any) -> None:
        """What a module begins or ends with."""

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _no_note


def _model(config: dict[str, Any], training: Training, *, rounded: bool) -> Any:
    """The model as train loads it, with fake tensors."""
    full = training.method is Method.FULL
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config),
            dtype=torch.float32 if full and not rounded else torch.bfloat16,
        )
        head = model.get_output_embeddings()
        if not full:
            model = get_peft_model(model, _adapter(training))
    tied = model.config.tie_word_embeddings
    for module in list(model.modules()):
        _materialise(module, None if rounded else torch.float32)
    if tied:
        head.weight = model.get_input_embeddings().weight
    if kind := training.base_quantization:
        for module in list(model.modules()):
            if hasattr(module, "base_layer"):
                module.base_layer = _ROUNDED[kind](module.base_layer)
    return model.train()


def _adapter(training: Training) -> LoraConfig:
    return LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=float(training.dropout),
        use_dora=training.adapter is AdapterKind.DORA,
        target_modules=list(training.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _materialise(module: nn.Module, trained: torch.dtype | None) -> None:
    """Replace meta tensors by fake ones; trained parameters are in ``trained``, if that is given."""
    for name, value in module.named_parameters(recurse=False):
        dtype = trained if trained and value.requires_grad else value.dtype
        fresh = nn.Parameter(torch.empty(value.shape, dtype=dtype), requires_grad=value.requires_grad)
        setattr(module, name, fresh)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


class _FourBit(nn.Module):  # type: ignore[misc] # torch is not typed here
    """A frozen linear layer in NF4 with double quantisation: bitsandbytes' product over its own state."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        weight = linear.weight
        blocks = weight.numel() // 64
        second = QuantState(
            absmax=torch.empty(max(1, blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
        )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty((weight.numel() // 2, 1), dtype=torch.uint8), requires_grad=False)
        self.state = QuantState(
            absmax=torch.empty(blocks, dtype=torch.uint8),
            shape=weight.shape,
            code=torch.empty(16),
            blocksize=64,
            quant_type="nf4",
            dtype=torch.bfloat16,
            offset=torch.empty(()),
            state2=second,
        )

    def forward(self, inputs: torch.Tensor) -> Any:
        return MatMul4Bit.apply(inputs.to(torch.bfloat16), self.weight.t(), None, None, self.state)


class _EightBit(nn.Module):  # type: ignore[misc] # torch is not typed here
    """A frozen linear layer in LLM.int8: bitsandbytes' product for GPUs, of inputs without outliers, whose number only
    data can tell."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty(linear.weight.shape, dtype=torch.int8), requires_grad=False)
        self.state = MatmulLtState(CB=self.weight, SCB=torch.empty(linear.out_features))
        self.state.has_fp16_weights = False
        self.register_forward_hook(release_input)

    def forward(self, inputs: torch.Tensor) -> Any:
        return MatMul8bitLt.apply(inputs.to(torch.bfloat16), self.weight, None, None, self.state)


_ROUNDED = {Quantization.NF4: _FourBit, Quantization.INT8: _EightBit}


def _pass(base: Any, training: Training, *, backward: bool = True) -> None:
    """Forward and backward of a micro-batch of examples of ``max_length``, every position with a label."""
    examples, length = training.batch_size, training.max_length
    tokens = torch.zeros((examples, length), dtype=torch.long)
    mask = torch.ones((examples, 1, length, length), dtype=torch.bool) if examples > 1 else None
    with torch.autocast(DEVICE, torch.bfloat16):
        hidden = base.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        head = base.get_output_embeddings()
        labelled = hidden.flatten(0, 1).index_select(0, torch.arange(examples * length))
        loss = tiled_loss(labelled, head.weight, head.bias, tokens.flatten(), Logits())
    if backward:
        loss.backward()


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """Behave like CUDA: dropout keeps one byte per number, and log_softmax makes no copy in float32 first."""

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    def log_softmax(values: torch.Tensor, _dim: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(values.shape, dtype=dtype)

    with mock.patch.object(nn.functional, "dropout", dropout), mock.patch.object(torch, "log_softmax", log_softmax):
        yield
