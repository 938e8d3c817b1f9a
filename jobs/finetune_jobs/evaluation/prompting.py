"""Whether prompting would have been enough, in a sentence, and differences between models as people read them."""

from collections.abc import Mapping
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import Difference, Measurements

PROMPTED: Final = {
    "fewShot": "base model with few-shot examples",
    "verbose": "base model with free-form answers",
    "constrained": "base model limited to the labels",
}
"""The ways to prompt that might have been enough without tuning. Text around the right answer costs them nothing."""
NAMES: Final[Mapping[str, str]] = {
    Metric.F1: "F1",
    Metric.EXACT_MATCH: "exact match",
    Metric.CHRF: "chrF",
}
"""Metrics as people write them, where that differs."""


def prompted(measurements: Measurements, task: TaskType) -> str:
    """The best of PROMPTED by the task's main metric; empty where none was asked."""
    found = measurements.of(measurements.main_metric(task))
    asked = [model for model in PROMPTED if found and model in found.models]
    return max(asked, key=lambda model: found.models[model].value if found else 0, default="")


def on_prompting(measurements: Measurements, task: TaskType) -> str:
    """Whether prompting would have been enough, in one sentence; empty where the base model was only asked as the
    artifact is."""
    best = prompted(measurements, task)
    gain = measurements.difference(measurements.main_metric(task), "artifact", best)
    if gain is None:
        return ""
    what = f"artifact against {PROMPTED[best]}, {described(gain)}"
    if gain.better_beyond_chance:
        return f"Prompting would not have been enough: {what}."
    if gain.worse_beyond_chance:
        return f"Prompting does better: {what}."
    return f"Prompting may be enough: {what}, within chance."


def described(difference: Difference) -> str:
    """A difference for people, e.g. ``accuracy -4.5 points (95 % interval -7.1 to -1.9)``."""
    it, name = difference.estimate, NAMES.get(difference.metric, difference.metric)
    what = f"{name} of {difference.label!r}" if difference.label else name
    return f"{what} {100 * it.value:+.1f} points (95 % interval {100 * it.low:+.1f} to {100 * it.high:+.1f})"
