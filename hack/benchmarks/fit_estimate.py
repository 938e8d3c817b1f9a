"""Preflight's estimates: memory compared with PyTorch's memory tracker, memory and time with published measurements.

The tracker runs a training step of real models on fake tensors (hack/benchmarks/memory_tracker.py): it is exact to the
byte for tensors but ignores a GPU's context and fragmentation. Published measurements
(hack/benchmarks/fit_measurements.py) are from other trainers, whose differences are set per table. Needs no cluster
and no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune_api.budget import HardwareFacts
from finetune_api.timing import Examples, training_seconds
from finetune_api.training import Training
from finetune_jobs.fit.duration import pace
from finetune_jobs.fit.memory import GIB, KEPT, ON_GPU, ROUNDED, SELECTIVE, Head, Step, peak_memory
from finetune_jobs.fit.shapes import Shape, read_shape
from hack.benchmarks.fit_measurements import CARDS, MODELS, TABLES, Table
from hack.benchmarks.memory_tracker import tracked_peak
from hack.benchmarks.result import Result
from hack.cluster.console import say

LOWEST, HIGHEST = -0.02, 0.15
"""Bounds of the estimate's error: never much too low, and not so high that fitting trainings are refused."""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "vocab_size": 32000,
}
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 4,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 50304,
}


@dataclass(frozen=True)
class Tracked:
    """A configuration for the tracker."""

    name: str
    config: dict[str, Any]
    training: dict[str, Any]
    step: Step = ON_GPU


TRACKED = (
    Tracked("Llama shape, LoRA, checkpointing", LLAMA, {"method": "LoRA", "batch_size": 4, "max_length": 512}),
    Tracked("Llama shape, LoRA, selective", LLAMA, {"method": "LoRA", "batch_size": 4, "max_length": 512}, SELECTIVE),
    Tracked("Llama shape, LoRA", LLAMA, {"method": "LoRA", "batch_size": 4, "max_length": 512}, KEPT),
    Tracked("Llama shape, Full, checkpointing", LLAMA, {"method": "Full", "batch_size": 8, "max_length": 1024}),
    Tracked("Llama shape, Full, selective", LLAMA, {"method": "Full", "batch_size": 8, "max_length": 1024}, SELECTIVE),
    Tracked(
        "Llama shape, Full in 16 bits, checkpointing",
        LLAMA,
        {"method": "Full", "batch_size": 8, "max_length": 1024},
        ROUNDED,
    ),
    Tracked(
        "Llama shape, DoRA, checkpointing",
        LLAMA,
        {"method": "LoRA", "adapter": "DoRA", "batch_size": 4, "max_length": 512},
    ),
    Tracked("Qwen2 shape, QLoRA, checkpointing", QWEN, {"method": "QLoRA", "batch_size": 1, "max_length": 4096}),
    Tracked("Qwen2 shape, QLoRA, selective", QWEN, {"method": "QLoRA", "batch_size": 1, "max_length": 4096}, SELECTIVE),
    Tracked("GPT-NeoX shape, LoRA, checkpointing", NEOX, {"method": "LoRA", "batch_size": 4, "max_length": 512}),
    Tracked("GPT-NeoX shape, LoRA", NEOX, {"method": "LoRA", "batch_size": 4, "max_length": 512}, KEPT),
)


FUSED = 1.2
"""How much faster fused kernels compute: Unsloth against FlashAttention-2 alone, LLaMA-Factory's wiki (1.11 to 1.36).
They launch no faster: Qwen3-0.6B takes 6 ms a layer with them (a chosen row of Surogate's table)."""
MEMORY = (LOWEST, HIGHEST)
TIME = (-0.35, 0.35)
"""Bounds of the error against published figures: nine of ten of the times, all of memory if it can be."""


def run() -> Result:
    """Compare; the value is the worst error against the tracker, in percent."""
    tracked = {case.name: _tracked(case) for case in TRACKED}
    errors = [row["error"] for row in tracked.values()]
    published = [comparison for table in TABLES for comparison in _compared(table)]
    return Result(
        name="fit_estimate",
        value=100 * max(errors, key=abs),
        unit="%",
        baseline=None,
        goal=f"{LOWEST:.0%} to +{HIGHEST:.0%} against PyTorch's tracker",
        details={
            "tracked": tracked,
            "tracked within bounds": all(LOWEST <= error <= HIGHEST for error in errors),
            "time, chosen": _within(published, "time", TIME, chosen=True),
            "time, held out": _within(published, "time", TIME, chosen=False),
            "memory": _within(published, "memory", MEMORY),
            "published": [asdict(each) for each in published],
        },
    )


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


def _compared(table: Table) -> Iterator[Comparison]:
    for row in table.rows:
        model = row.model or table.model
        name = f"{table.card}, {table.name}, {model}, {row.batch} × {row.length}"
        shape = read_shape(MODELS[model])
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
            yield _shown(Comparison("time", name, table.source, row.seconds, seconds, row.chosen))
        if row.gib is not None:
            memory = peak_memory(shape, training, step)
            gib = memory.tensors / GIB if table.tensors else memory.gib
            yield _shown(Comparison("memory", name, table.source, row.gib, gib, chosen=False))


def _pass_seconds(table: Table, shape: Shape, training: Training, step: Step) -> float:
    """Of each GPU, with the table's own kernels."""
    card, peak = CARDS[table.card]
    hardware = HardwareFacts(name=card, count=table.processes, peak_tflops=peak)
    found = pace(shape, training, step, hardware)
    if found is None:
        raise AssertionError(f"{card} has no peak")
    faster = found.tokens_per_second * (FUSED if table.fused else 1)
    single = Examples(training.batch_size, training.max_length, training.max_length, validated=0)
    once = training.model_copy(update={"epochs": 1, "gradient_accumulation": table.processes})
    return training_seconds(
        once,
        replace(single, count=training.batch_size * table.processes),
        replace(found, tokens_per_second=faster),
        table.processes,
    )


def _shown(each: Comparison) -> Comparison:
    mark = " (chosen)" if each.chosen else ""
    unit = "s" if each.what == "time" else "GiB"
    figures = f"{each.measured:.3g} {unit}, estimate {each.estimate:.3g}"
    say(f"    {each.what:6} {each.error:+4.0%}{mark}  {figures}  {each.name}")
    return each


def _within(
    found: Sequence[Comparison], what: str, bounds: tuple[float, float], *, chosen: bool | None = None
) -> dict[str, object]:
    """How many are within the bounds, and the lowest and the highest error."""
    errors = [each.error for each in found if each.what == what and chosen in (None, each.chosen)]
    inside = sum(bounds[0] <= error <= bounds[1] for error in errors)
    told = f"{inside} of {len(errors)} within {bounds[0]:+.0%} to {bounds[1]:+.0%}"
    say(f"    {what}{'' if chosen is None else ', chosen' if chosen else ', held out'}: {told}")
    return {"within": told, "lowest": round(min(errors), 3), "highest": round(max(errors), 3)}


def _tracked(case: Tracked) -> dict[str, float]:
    training = Training.model_validate(case.training)
    estimate = peak_memory(read_shape(case.config), training, case.step).tensors
    measured = tracked_peak(case.config, training, case.step)
    error = estimate / measured - 1
    say(f"    {case.name}: tracker {measured / GIB:.3f} GiB, estimate {error:+.1%}")
    return {"tracker GiB": round(measured / GIB, 4), "estimate GiB": round(estimate / GIB, 4), "error": round(error, 4)}
