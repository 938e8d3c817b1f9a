"""What AWQ does to weights before they are rounded, done once more to the tuned model, which files are compared with.

AWQ (Lin et al. 2023, arXiv 2306.00978) multiplies the weights of inputs by factors, and divides what computes these
inputs by the same, so that the model computes what it did and rounding takes less from it. Its files hold the rounded
weights of such a model. That it does compute the same is measured: which layers belong together, the library decides by
their names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.calibration import Tokens

SAME_MOST: Final = 0.1
"""How much of their norm the scores of all next tokens may move by. Weights are kept in 16 bits, which takes 0.02 of
SmolLM2-135M; one of its 30 layers whose factors are divided in the wrong place takes 0.36 and more."""
_TEXTS: Final = 2
"""Training examples on which that is measured."""


@dataclass(frozen=True)
class Rescaling:
    """Of the inputs of some layers of a model, which one other module computes."""

    source: str
    """Name of that module: a norm, or a linear layer whose last outputs they are."""
    layers: Sequence[str]
    """Names of the layers."""
    factors: torch.Tensor
    """By which their weights are multiplied, one for each input."""


def rescale(model: Any, rescalings: Sequence[Rescaling], texts: Tokens) -> None:
    """Do the same to a model, bit for bit; ``texts``: token ids of examples.

    Raises StageError (ModelUnsupported) if the model then computes something else.
    """
    if not rescalings:
        return
    before = _scores(model, texts[:_TEXTS])
    with torch.no_grad():
        for each in rescalings:
            _rescale(model, each)
    moved = float((_scores(model, texts[:_TEXTS]) - before).norm() / before.norm())
    if not moved <= SAME_MOST:  # nor if it is no number
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            "Rescaled by AWQ, this model computes something else: its scores of next tokens move by "
            f"{moved:.0%} of their norm. Set spec.export.format to INT4, INT8 or FP8.",
        )


def _rescale(model: Any, rescaling: Rescaling) -> None:
    """In the order and precision in which the library does it."""
    for name in rescaling.layers:
        weight = model.get_submodule(name).weight
        weight.copy_(weight * rescaling.factors.to(weight.device).view(1, -1))
    source = model.get_submodule(rescaling.source)
    factors = rescaling.factors.to(source.weight.device)
    if source.weight.ndim == 1:
        source.weight.div_(factors)
    else:
        source.weight[-len(factors) :].div_(factors.view(-1, 1))
    if getattr(source, "bias", None) is not None:
        source.bias.div_(factors)


def _scores(model: Any, texts: Tokens) -> torch.Tensor:
    """Of every next token of some texts, from the mean of all tokens' on: probabilities follow from these."""
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float() for ids in texts]
    scores = torch.cat(found)
    return scores - scores.mean(-1, keepdim=True)
