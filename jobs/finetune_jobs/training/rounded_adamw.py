"""AdamW whose weights, gradients and moments are all in 16 bits: 8 bytes a weight instead of 16.

An update is mostly smaller than half the distance of two bfloat16 numbers, and rounding to the nearest would lose it.
Stochastic rounding goes up or down at random, so often that the mean is right: what a single step loses, the steps
together keep (Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192). The moments, which are such sums
too, are rounded in the same way.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch

CHUNK: Final = 1 << 24
"""Weights that are updated at a time: what is computed in float32 takes some 64 MiB for each number of it."""
_LOW: Final = 0xFFFF
"""The bits of a float32 that a bfloat16 lacks."""


def rounded(values: torch.Tensor) -> torch.Tensor:
    """float32 to bfloat16: up or down, with a probability by which the mean is ``values``. The random numbers are those
    of the device, whose state a checkpoint holds."""
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, _LOW + 1, bits.shape, dtype=torch.int32, device=values.device)
    # Carried into the upper bits as often as the lower ones say; in both signs away from zero.
    found = noise.add_(bits).bitwise_and_(~_LOW).view(torch.float32)
    return torch.where(values.isfinite(), found, values).to(torch.bfloat16)


class RoundedAdamW(torch.optim.Optimizer):  # type: ignore[misc] # torch's types are not looked at
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) of bfloat16 weights. Its state has the names of torch's own,
    so that a checkpoint of either can be read by the other, rounded or not."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()  # type: ignore[untyped-decorator] # torch's types are not looked at
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update all weights that have a gradient."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0.0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] = step = float(state["step"]) + 1  # of torch's own it is a tensor
        first, second = group["betas"]
        rate, decay = float(group["lr"]), 1 - float(group["lr"]) * group["weight_decay"]
        flat = (weight.view(-1), weight.grad.reshape(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1))
        for parts in zip(*(each.split(CHUNK) for each in flat), strict=True):
            values, gradient, mean, square = (part.float() for part in parts)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (square / (1 - second**step)).sqrt_().add_(group["eps"])
            values.mul_(decay).addcdiv_(mean, size, value=-rate / (1 - first**step))
            for kept, new in zip((parts[0], parts[2], parts[3]), (values, mean, square), strict=True):
                kept.copy_(rounded(new))
