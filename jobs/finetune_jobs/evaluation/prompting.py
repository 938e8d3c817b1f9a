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
    """The one of PROMPTED that the artifact beats least surely, by the task's main metric; empty where none was asked.
    The best one need not be it: over another, a larger gain may still be chance."""
    gains = _gains(measurements, task)
    return min(gains, key=lambda gain: (_verdict(gain), gain.estimate.value)).against if gains else ""


def on_prompting(measurements: Measurements, task: TaskType) -> str:
    """Whether prompting would have been enough, in one sentence; empty where the base model was only asked as the
    artifact is."""
    gain = measurements.difference(measurements.main_metric(task), "artifact", prompted(measurements, task))
    if gain is None:
        return ""
    what = f"artifact against {PROMPTED[gain.against]}, {described(gain)}"
    return _VERDICTS[_verdict(gain)].format(what)


def described(difference: Difference) -> str:
    """A difference for people, e.g. ``accuracy -4.5 points (95 % interval -7.1 to -1.9)``."""
    it, name = difference.estimate, NAMES.get(difference.metric, difference.metric)
    what = f"{name} of {difference.label!r}" if difference.label else name
    return f"{what} {100 * it.value:+.1f} points (95 % interval {100 * it.low:+.1f} to {100 * it.high:+.1f})"


_VERDICTS: Final = (
    "Prompting does better: {}.",
    "Prompting may do as well: {}, within chance.",
    "Prompting would not have been enough: {}.",
)


def _verdict(gain: Difference) -> int:
    """Which of _VERDICTS a gain of the artifact over a prompted base model means."""
    return 1 + gain.better_beyond_chance - gain.worse_beyond_chance


def _gains(measurements: Measurements, task: TaskType) -> list[Difference]:
    metric = measurements.main_metric(task)
    found = (measurements.difference(metric, "artifact", model) for model in PROMPTED)
    return [gain for gain in found if gain is not None]
