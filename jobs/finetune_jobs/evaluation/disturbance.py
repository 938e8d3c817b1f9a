"""What a model finds of a text when something in it is changed: the rotary positions, or the last digits.

The first is a mistake that servers make, and is recorded so that it can be told by its direction. The second no server
can help: each adds in another order, and rounds. How far that moves probabilities differs from model to model and from
format to format, so it is measured on the artifact itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from compressed_tensors.quantization import disable_quantization, enable_quantization
from pydantic import TypeAdapter

from finetune_jobs.evaluation.distances import distance
from finetune_jobs.evaluation.findings import FindingKind, look_up
from finetune_jobs.evaluation.passages import Passage, rounded_log_probs

TURN: Final = 0.7
"""What the rotary base is multiplied with for the record of wrong positions."""
FAR_TURN: Final = 0.1
"""The same for short texts, which hardly show TURN. A reader that does not find the base takes 10,000, a tenth of that
of many models: so does version 4 of transformers with a config of version 5."""
NOISE: Final = 2.0**-8
"""Largest relative change of what a layer puts out: bfloat16 rounds by so much."""
_TWINS: Final = (0, 1)
"""Seeds of two servers that each round in their own way."""
_TURNED: Final = FindingKind("passage, turned", TypeAdapter(tuple[list[float], list[float]]), [TURN, FAR_TURN])
_NOISE: Final = FindingKind("passage, noise", TypeAdapter(float), [NOISE, _TWINS])


@dataclass(frozen=True)
class Disturbed:
    """What a model finds of a text under changes. Log-probabilities are of each token but the first."""

    straight: list[float]
    """With the right positions, activations not rounded to 8 bits; empty for a model without rotary positions."""
    turned: list[float]
    """The same with wrong positions."""
    noise: float | None
    """How far apart two servers are that each round in their own way: nats a token. None if it was not measured."""


def disturbed(model: Any, passage: Passage, *, noisy: bool = True) -> Disturbed:
    """All of it, noise only if ``noisy``, and never of a long text, which would take many times as long and shows less.
    What was found before is not computed again."""
    measured = noisy and not passage.long
    noise = look_up(model, _NOISE, passage.ids, lambda: twins_apart(model, passage)) if measured else None
    return Disturbed(*_turned_log_probs(model, passage), noise)


def _turned_log_probs(model: Any, passage: Passage) -> tuple[list[float], list[float]]:
    """With right and with wrong rotary positions: the direction in which those of a server are searched for the same
    mistake. Empty for a model without such positions.

    Activations are not rounded to 8 bits here: small differences would flip roundings, and the noise of that, which is
    another one in every server, hides what the positions do.
    """
    if not _rotary(model):
        return [], []
    return look_up(model, _TURNED, passage.ids, lambda: _both(model, passage))


def _both(model: Any, passage: Passage) -> tuple[list[float], list[float]]:
    with torch.inference_mode(), _unrounded(model):
        straight = rounded_log_probs(model, passage)
        with _turned(model, TURN if passage.long else FAR_TURN):
            return straight, rounded_log_probs(model, passage)


def twins_apart(model: Any, passage: Passage) -> float:
    """How far apart two servers are that each round in their own way, in nats a token."""
    found = []
    for seed in _TWINS:
        with _shaken(model, seed):
            found.append(rounded_log_probs(model, passage))
    return round(distance(*found), 4)


@contextmanager
def _unrounded(model: Any) -> Iterator[None]:
    """Compute with 16 or 32 bits what compressed-tensors rounds while it computes; the weights stay rounded."""
    model.apply(disable_quantization)
    try:
        yield
    finally:
        model.apply(enable_quantization)


@contextmanager
def _shaken(model: Any, seed: int) -> Iterator[None]:
    """Change what every layer puts out by up to NOISE of each value, as other kernels do. A model may be spread over
    several GPUs, and each of them draws for itself."""
    drawn: dict[torch.device, torch.Generator] = {}

    def shake(_module: Any, _given: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        device = output.device
        if device not in drawn:
            drawn[device] = torch.Generator(device=device).manual_seed(seed)
        share = torch.rand(output.shape, generator=drawn[device], device=device).mul_(2 * NOISE).add_(1 - NOISE)
        return share.mul_(output).to(output.dtype)

    hooks = [each.register_forward_hook(shake) for each in model.modules() if not any(each.children())]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@contextmanager
def _turned(model: Any, factor: float) -> Iterator[None]:
    """Multiply the base of the rotary positions (Su et al. 2021, arXiv 2104.09864): the frequency i of n is the base to
    the power of -i/n."""
    frequencies = _rotary(model)
    kept = [each.clone() for each in frequencies]
    for each in frequencies:
        each.mul_(factor ** -(torch.arange(len(each), device=each.device) / len(each)))
    try:
        yield
    finally:
        for each, before in zip(frequencies, kept, strict=True):
            each.copy_(before)


def _rotary(model: Any) -> Sequence[torch.Tensor]:
    """The frequencies of a model's rotary positions, as transformers names them."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and buffer.dim() == 1]
