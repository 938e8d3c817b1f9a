"""The numbers of a training that the spec does not set, and what follows from those it sets. Pure arithmetic."""

import math
from dataclasses import dataclass
from typing import Final

from finetune_api.timing import planned_steps, validation_interval
from finetune_api.training import Method, Training

WARM_UP: Final = 0.03
"""Share of the steps in which the learning rate rises (QLoRA, Dettmers et al. 2023)."""
MAX_GRAD_NORM: Final = {Method.QLORA: 0.3, Method.LORA: 1.0, Method.FULL: 1.0}
"""Gradients are clipped to this norm: QLoRA's own value, and the usual one."""
LARGE_MODEL: Final = 14_000_000_000
"""Parameters above which the learning rate is halved: QLoRA used 2e-4 for 7B and 13B, 1e-4 for 33B and 65B."""
ADAPTER_RATE: Final = 2e-4
FULL_SHARE: Final = 0.1
"""The best rate of full fine-tuning is a tenth of an adapter's ("LoRA Without Regret", Thinking Machines 2025)."""


def learning_rate(training: Training, parameters: int) -> float:
    """The peak rate: the spec's, or the default for the method and a model of so many parameters."""
    if training.learning_rate is not None:
        return float(training.learning_rate)
    rate = ADAPTER_RATE / 2 if parameters > LARGE_MODEL else ADAPTER_RATE
    return rate * FULL_SHARE if training.method is Method.FULL else rate


@dataclass(frozen=True)
class Batch:
    """How an optimiser step's examples go through the model: ``passes`` times ``size`` of them."""

    size: int
    passes: int

    @classmethod
    def of(cls, training: Training) -> "Batch":
        """As the spec says."""
        return cls(training.batch_size, training.gradient_accumulation)

    def divided(self, processes: int) -> "Batch | None":
        """Each process's part of the same examples per step, in passes of at most this size; None where some would be
        left over."""
        examples, rest = divmod(self.size * self.passes, processes)
        if rest:
            return None
        size = next(size for size in range(min(self.size, examples), 0, -1) if examples % size == 0)
        return Batch(size, examples // size)

    def smaller(self) -> "Batch | None":
        """The same examples per step in passes of at most half the size; None when a pass is one example already."""
        examples = self.size * self.passes
        size = next((size for size in range(self.size // 2, 0, -1) if examples % size == 0), None)
        return None if size is None else Batch(size, examples // size)


def indivisible(training: Training, processes: int) -> str:
    """The message if a step's examples do not divide among the processes that train together."""
    batch = Batch.of(training)
    nearest = math.ceil(batch.size * batch.passes / processes) * processes
    return (
        f"spec.training.batchSize {batch.size} × gradientAccumulation {batch.passes} examples a step do not divide "
        f"among the profile's {processes} processes. Make their product a multiple of {processes}, e.g. {nearest}."
    )


LEAST_PATIENCE: Final = 3


@dataclass(frozen=True)
class Schedule:
    """How long a training is, how fast it learns, and when it looks back."""

    steps: int
    rate: float
    """The learning rate at its peak."""
    interval: int
    """Steps between validations."""
    patience: int
    """Validations without a better loss that end it."""


def schedule(training: Training, parameters: int, examples: int, validated: int) -> Schedule:
    """The schedule for a model of so many parameters; it learns from ``examples`` and is judged by ``validated``."""
    batch, steps = Batch.of(training), planned_steps(examples, training)
    interval = validation_interval(training, steps, validated)
    epoch = math.ceil(examples / (batch.size * batch.passes))
    patience = training.patience or max(LEAST_PATIENCE, math.ceil(epoch / interval))
    return Schedule(steps, learning_rate(training, parameters), interval, patience)
