"""Published measurements beside preflight's estimates of the same trainings. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from finetune_api.budget import HardwareFacts
from finetune_api.timing import Examples, training_seconds
from finetune_api.training import Training
from finetune_jobs.fit.duration import pace
from finetune_jobs.fit.memory import GIB, peak_memory
from finetune_jobs.fit.shapes import Shape, read_shape
from finetune_jobs.fit.steps import Head, Step
from hack.benchmarks.fit_measurements import Table, measurements

FUSED = 1.2
"""How much faster fused kernels compute: Unsloth against FlashAttention-2 alone, LLaMA-Factory's wiki (1.11 to 1.36).
They launch no faster: Qwen3-0.6B takes 6 ms a layer with them (a chosen row of Surogate's table)."""
MEMORY = (-0.02, 0.15)
"""Bounds of the error of memory: never much too low, and not so high that fitting trainings are refused."""
TIME = (-0.35, 0.35)
"""Bounds of the error of nine of ten of the times."""


@dataclass(frozen=True)
class Comparison:
    """A published figure and the estimate of it."""

    what: str
    """time (seconds of a pass) or memory (GiB)."""
    name: str
    source: str
    measured: float
    estimate: float
    chosen: bool
    """Whether the shares of the peak were chosen by it; memory has nothing to choose."""

    @property
    def error(self) -> float:
        """Relative."""
        return self.estimate / self.measured - 1


def compared() -> Iterator[Comparison]:
    """Every published figure."""
    return (each for table in measurements().tables for each in _compared(table))


def _compared(table: Table) -> Iterator[Comparison]:
    for row in table.rows:
        model = row.model or table.model
        name = f"{table.card}, {table.name}, {model}, {row.batch} × {row.length}"
        shape = read_shape(measurements().models[model])
        training = Training.model_validate(table.training | {"batch_size": row.batch, "max_length": row.length})
        head = Head.TILED if table.fused_loss else Head.LOGITS
        step = Step(
            checkpointing=table.checkpointing,
            head=head,
            on_gpu=True,
            padded=False,
            rounded_keep_inputs=table.rounded_keep_inputs,
        )
        if row.seconds is not None:
            seconds = _pass_seconds(table, shape, training, step)
            yield Comparison("time", name, table.source, row.seconds, seconds, row.chosen)
        if row.gib is not None:
            memory = peak_memory(shape, training, step)
            gib = memory.tensors / GIB if table.tensors else memory.gib
            yield Comparison("memory", name, table.source, row.gib, gib, chosen=False)


def _pass_seconds(table: Table, shape: Shape, training: Training, step: Step) -> float:
    """Of each GPU, with the table's own kernels."""
    card = measurements().cards[table.card]
    hardware = HardwareFacts(name=card.name, count=table.processes, peak_tflops=card.tflops)
    found = pace(shape, training, step, hardware)
    if found is None:
        raise AssertionError(f"{card.name} has no peak")
    faster = found.tokens_per_second * (FUSED if table.fused else 1)
    single = Examples(training.batch_size, training.max_length, training.max_length, validated=0)
    once = training.model_copy(update={"epochs": 1, "gradient_accumulation": table.processes})
    return training_seconds(
        once,
        replace(single, count=training.batch_size * table.processes),
        replace(found, tokens_per_second=faster),
        table.processes,
    )


@dataclass(frozen=True)
class Within:
    """How many comparisons are within bounds, and their lowest and highest errors."""

    inside: int
    all: int
    lowest: float
    highest: float


def within(
    found: Iterable[Comparison], what: str, bounds: tuple[float, float], *, chosen: bool | None = None
) -> Within:
    """Of those of time or memory; of those that chose the shares, of those that did not, or of all."""
    errors = [each.error for each in found if each.what == what and chosen in (None, each.chosen)]
    inside = sum(bounds[0] <= error <= bounds[1] for error in errors)
    return Within(inside, len(errors), min(errors), max(errors))
