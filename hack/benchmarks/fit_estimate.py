"""Preflight's estimates: memory compared with PyTorch's memory tracker, memory and time with published measurements.

The tracker runs a training step of real models on fake tensors (hack/benchmarks/memory_tracker.py): it is exact to the
byte for tensors but ignores a GPU's context and fragmentation. Published measurements
(hack/benchmarks/fit_measurements.yaml) are from other trainers, whose differences are set per table. Needs no cluster
and no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_api.training import Training
from finetune_jobs.fit.memory import GIB, peak_memory
from finetune_jobs.fit.shapes import read_shape
from finetune_jobs.fit.steps import KEPT, ON_GPU, ROUNDED, SELECTIVE, Step
from hack.benchmarks.fit_published import MEMORY, TIME, Comparison, compared, within
from hack.benchmarks.memory_tracker import tracked_peak
from hack.benchmarks.result import Result
from hack.cluster.console import say

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


def run() -> Result:
    """Compare; the value is the worst error against the tracker, in percent."""
    tracked = {case.name: _tracked(case) for case in TRACKED}
    errors = [row["error"] for row in tracked.values()]
    published = [*compared()]
    for each in published:
        say(_told(each))
    return Result(
        name="fit_estimate",
        value=100 * max(errors, key=abs),
        unit="%",
        baseline=None,
        goal=f"{MEMORY[0]:.0%} to +{MEMORY[1]:.0%} against PyTorch's tracker",
        details={
            "tracked": tracked,
            "tracked within bounds": all(MEMORY[0] <= error <= MEMORY[1] for error in errors),
            "time, chosen": _within(published, "time", TIME, chosen=True),
            "time, held out": _within(published, "time", TIME, chosen=False),
            "memory": _within(published, "memory", MEMORY),
            "published": [asdict(each) for each in published],
        },
    )


def _told(each: Comparison) -> str:
    mark = " (chosen)" if each.chosen else ""
    unit = "s" if each.what == "time" else "GiB"
    figures = f"{each.measured:.3g} {unit}, estimate {each.estimate:.3g}"
    return f"    {each.what:6} {each.error:+4.0%}{mark}  {figures}  {each.name}"


def _within(
    found: Sequence[Comparison], what: str, bounds: tuple[float, float], *, chosen: bool | None = None
) -> dict[str, object]:
    """How many are within the bounds, and the lowest and the highest error."""
    counted = within(found, what, bounds, chosen=chosen)
    told = f"{counted.inside} of {counted.all} within {bounds[0]:+.0%} to {bounds[1]:+.0%}"
    say(f"    {what}{'' if chosen is None else ', chosen' if chosen else ', held out'}: {told}")
    return {"within": told, "lowest": round(counted.lowest, 3), "highest": round(counted.highest, 3)}


def _tracked(case: Tracked) -> dict[str, float]:
    training = Training.model_validate(case.training)
    estimate = peak_memory(read_shape(case.config), training, case.step).tensors
    measured = tracked_peak(case.config, training, case.step)
    error = estimate / measured - 1
    say(f"    {case.name}: tracker {measured / GIB:.3f} GiB, estimate {error:+.1%}")
    return {"tracker GiB": round(measured / GIB, 4), "estimate GiB": round(estimate / GIB, 4), "error": round(error, 4)}
