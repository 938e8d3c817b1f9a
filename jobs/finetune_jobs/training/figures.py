"""What every tracker of a training receives, under the names that people see there."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from finetune_api.hashing import digest
from finetune_jobs.base.progress import Measurement

Settings = dict[str, str | float]
"""The training's hyperparameters."""
Facts = dict[str, str]
"""What links a tracked run to its job, its data and its base model."""


OPERATOR: Final = "finetune.operator_version"
"""The fact that may differ from pod to pod: an upgraded operator starts those that come later."""


def identity(facts: Facts) -> str:
    """Equal for all pods of a training, which go on with one tracked run."""
    return digest({name: value for name, value in facts.items() if name != OPERATOR})


class End(StrEnum):
    """How a training ended, in MLflow's terms."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    """It was told to stop, and may resume in another pod."""


_TAGS: Final[Mapping[str, str]] = {
    "loss": "train/loss",
    "validation_loss": "validation/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "tokens": "train/tokens",
    "tokens_per_second": "train/tokens_per_second",
    "gpu_memory_bytes": "train/gpu_memory_bytes",
}
"""The name of each field of Measurement."""


def figures(measurement: Measurement) -> Iterator[tuple[str, float]]:
    """Name and value of what is known; a validation does not repeat what the step before it showed."""
    validation = measurement.validation_loss is not None
    for field, tag in _TAGS.items():
        value = getattr(measurement, field)
        if value is not None and tag.startswith("validation/") is validation:
            yield tag, float(value)
