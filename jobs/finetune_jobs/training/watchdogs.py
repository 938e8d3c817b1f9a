"""Distinguishes good trainings from bad ones: pure judgements of the losses so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from finetune_api.reasons import Reason

History = Sequence[Mapping[str, Any]]
"""The trainer's log: entries with ``loss`` (of a step) or ``eval_loss`` (of a validation), in order."""

WINDOW: Final = 10
"""Steps judged together; one step's loss says little."""
DIVERGED: Final = 1.0
"""Nats per token above the start: the perplexity is e times that of the untrained model."""
WORSE: Final = 1.01
"""A validation loss this many times the best is a rise; less is noise."""


@dataclass(frozen=True)
class Ending:
    """How a training ended."""

    reason: Reason
    message: str
    """A sentence for people."""


def not_finite(logs: Mapping[str, float]) -> str:
    """Name of the first measure that is no longer a number, or an empty string."""
    return next((name for name in ("loss", "grad_norm", "eval_loss") if not math.isfinite(logs.get(name, 0.0))), "")


def diverged(losses: Sequence[float]) -> bool:
    """Whether the newest steps are far worse than the first ones: the steps are too large."""
    return len(losses) >= 2 * WINDOW and median(losses[-WINDOW:]) > median(losses[:WINDOW]) + DIVERGED


def overfits(history: History) -> bool:
    """Whether the last two validations were worse than the best one, while the training loss kept falling."""
    validations = [(place, entry["eval_loss"]) for place, entry in enumerate(history) if "eval_loss" in entry]
    if len(validations) < 3:
        return False
    best_place, best = min(validations, key=lambda validation: validation[1])
    after = [loss for place, loss in validations if place > best_place]
    learnt, since = (_losses(part) for part in (history[:best_place], history[best_place:]))
    rises = len(after) >= 2 and all(loss > best * WORSE for loss in after[-2:])
    return rises and bool(learnt and since) and _mean(since[-WINDOW:]) < _mean(learnt[-WINDOW:])


def ending(history: History, steps: int, planned: int, best: tuple[int, float]) -> Ending:
    """Why a training ended after ``steps`` of ``planned`` steps. In each case the weights of ``best`` are kept, a step
    and its validation loss: the best of all, unless the checkpoint of a better one was lost in a restart."""
    validations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    kept = f"the weights of step {best[0]} are kept (validation loss {best[1]:.4f})"
    if overfits(history):
        step, _ = min(validations, key=lambda validation: validation[1])
        return Ending(
            Reason.OVERFITTING,
            f"After step {step} the validation loss rose to {validations[-1][1]:.4f} while the training loss fell; "
            f"{kept}. Add more, or more varied, examples, or train for fewer epochs.",
        )
    if steps < planned:
        return Ending(
            Reason.PLATEAU,
            f"The validation loss stopped falling, so training ended after step {steps} of {planned}; {kept}.",
        )
    return Ending(Reason.TRAINING_COMPLETED, f"All {planned} steps are done; {kept}.")


def _losses(history: History) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
