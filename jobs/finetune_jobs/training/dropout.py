"""Dropout on CPUs that draws what it drops, not for each number whether it is dropped.

PyTorch draws one random number for each number of the input, one after the other, which takes a CPU longer than a
16-bit matrix product of an adapter. Of inputs that lose 5 %, a twentieth of the draws says as much: whether numbers are
dropped are independent trials, and from one success to the next their gaps are geometrically distributed. What is
dropped has exactly the same law, and comes from the same generator, so that checkpoints hold its state.
"""

import math
from typing import Any, Final

import torch
from torch import nn
from torch.autograd.function import once_differentiable

MOST: Final = 0.25
"""Share of dropped numbers up to which this is used: from a third on, drawing for each number is as fast."""
DEVIATIONS: Final = 6
"""Standard deviations by which more gaps are drawn at once than are needed on average: once is nearly always enough."""


class SparseDropout(nn.Dropout):  # type: ignore[misc] # torch's types are not looked at
    """``nn.Dropout`` that is faster on CPUs, and the same elsewhere."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` without a share of ``p`` of them, the others scaled so that the expected value stays."""
        if not self.training or values.device.type != "cpu" or not 0 < self.p <= MOST:
            return super().forward(values)
        kept: torch.Tensor = _Dropped.apply(values, drawn_places(values.numel(), self.p), 1 / (1 - self.p))
        return kept


def use_sparse_dropout(model: Any) -> None:
    """Let the adapters of ``model`` drop what they drop in this way."""
    for layer in list(model.modules()):
        dropouts = getattr(layer, "lora_dropout", None) or {}
        for name, dropout in dropouts.items():
            if type(dropout) is nn.Dropout:
                dropouts[name] = SparseDropout(dropout.p).train(dropout.training)


def drawn_places(count: int, share: float) -> torch.Tensor:
    """Places from 0 to ``count`` - 1, ascending, each of which is among them with the probability ``share``, whatever
    the others are."""
    expected = count * share
    size = math.ceil(expected + DEVIATIONS * math.sqrt(expected)) + 1
    found, last = [], -1
    while last < count:
        gaps = torch.empty(size, dtype=torch.int64).geometric_(share).clamp_(1, count + 1)
        found.append(gaps.cumsum(0).add_(last))
        last = int(found[-1][-1])
    places = torch.cat(found)
    return places[: int(torch.searchsorted(places, count))].clone()


class _Dropped(torch.autograd.Function):  # type: ignore[misc] # torch's types are not looked at
    """Zero at some places, ``scale`` times the input elsewhere; its gradient likewise."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.scale = scale
        return _without(values, places, scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator] # torch's types are not looked at
    def backward(ctx: Any, given: torch.Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        return _without(given, places, ctx.scale), None, None


def _without(values: torch.Tensor, places: torch.Tensor, scale: float) -> torch.Tensor:
    kept = values.mul(scale).contiguous()
    kept.view(-1)[places] = 0
    return kept
