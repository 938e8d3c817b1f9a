"""The memory estimate of preflight, compared with PyTorch's memory tracker and with published measurements.

The tracker runs a training step of real models on fake tensors (hack/benchmarks/memory_tracker.py): it is exact to the
byte for tensors but ignores a GPU's context and fragmentation. Published measurements are of whole processes on an
A100, with other trainers, whose differences are set per table. Needs no cluster and no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.training import Training
from finetune_jobs.fit.memory import GIB, Head, Step, peak_memory
from finetune_jobs.fit.shapes import read_shape
from hack.benchmarks.memory_tracker import tracked_peak
from hack.benchmarks.result import Result
from hack.cluster.console import say

LOWEST, HIGHEST = -0.02, 0.20
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
    checkpointing: bool = True


TRACKED = (
    Tracked("Llama shape, LoRA, checkpointing", LLAMA, {"method": "LoRA", "batch_size": 4, "max_length": 512}),
    Tracked("Llama shape, LoRA", LLAMA, {"method": "LoRA", "batch_size": 4, "max_length": 512}, checkpointing=False),
    Tracked("Llama shape, Full, checkpointing", LLAMA, {"method": "Full", "batch_size": 8, "max_length": 1024}),
    Tracked(
        "Llama shape, DoRA, checkpointing",
        LLAMA,
        {"method": "LoRA", "adapter": "DoRA", "batch_size": 4, "max_length": 512},
    ),
    Tracked("Qwen2 shape, QLoRA, checkpointing", QWEN, {"method": "QLoRA", "batch_size": 1, "max_length": 4096}),
    Tracked("GPT-NeoX shape, LoRA, checkpointing", NEOX, {"method": "LoRA", "batch_size": 4, "max_length": 512}),
    Tracked("GPT-NeoX shape, LoRA", NEOX, {"method": "LoRA", "batch_size": 4, "max_length": 512}, checkpointing=False),
)


@dataclass(frozen=True)
class Published:
    """Published GiB on an A100, by tokens per example; transformers' own loss, FlashAttention-2."""

    source: str
    config: dict[str, Any]
    training: dict[str, Any]
    gib: dict[int, float]


def _llama(hidden: int, layers: int, heads: int, intermediate: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
    }


LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QWEN_LORA = {"method": "LoRA", "batch_size": 1, "rank": 64}
PUBLISHED = (
    Published(
        "LLaMA-Factory's wiki: Llama-2-7B, QLoRA",
        _llama(4096, 32, 32, 11008, 32000),
        {"method": "QLoRA", "batch_size": 1, "rank": 8, "dropout": "0"},
        {1024: 6, 2048: 7, 4096: 9, 8192: 12, 16384: 19, 32768: 32},
    ),
    Published(
        "LLaMA-Factory's wiki: Llama-2-7B, LoRA, batches of 4",
        _llama(4096, 32, 32, 11008, 32000),
        {"method": "LoRA", "batch_size": 4, "rank": 8, "dropout": "0"},
        {1024: 17},
    ),
    Published(
        "Qwen's README: Qwen-1.8B, LoRA",
        _llama(2048, 24, 16, 5504, 151936),
        QWEN_LORA,
        dict(zip(LENGTHS, (6.7, 7.4, 8.4, 11.0, 16.2, 21.8), strict=True)),
    ),
    Published(
        "Qwen's README: Qwen-7B, LoRA",
        _llama(4096, 32, 32, 11008, 151936),
        QWEN_LORA,
        dict(zip(LENGTHS, (20.1, 20.4, 21.5, 23.8, 29.7, 36.6), strict=True)),
    ),
    Published(
        "Qwen's README: Qwen-14B, LoRA",
        _llama(5120, 40, 40, 13696, 152064),
        QWEN_LORA,
        dict(zip(LENGTHS, (34.6, 35.1, 35.3, 37.4, 42.5, 55.2), strict=True)),
    ),
)
"""https://github.com/QwenLM/Qwen (README, "Profiling of Memory and Speed"); LLaMA-Factory's wiki ("Performance
comparison"). Qwen's layers have Llama's shape under other names; the adapters differ by less than 0.5 GiB."""


def run() -> Result:
    """Compare; the value is the worst error against the tracker, in percent."""
    tracked = {case.name: _tracked(case) for case in TRACKED}
    published = {case.source: _published(case) for case in PUBLISHED}
    errors = [row["error"] for row in tracked.values()]
    foreign = [error for rows in published.values() for error in rows.values()]
    return Result(
        name="fit_estimate",
        value=100 * max(errors, key=abs),
        unit="%",
        baseline=None,
        goal=f"{LOWEST:.0%} to +{HIGHEST:.0%} against PyTorch's tracker",
        details={
            "tracked": tracked,
            "tracked within bounds": all(LOWEST <= error <= HIGHEST for error in errors),
            "published": published,
            "published within bounds": f"{sum(LOWEST <= e <= HIGHEST for e in foreign)} of {len(foreign)}",
            "published lowest, highest": [min(foreign), max(foreign)],
        },
    )


def _tracked(case: Tracked) -> dict[str, float]:
    training = Training.model_validate(case.training)
    step = Step(checkpointing=case.checkpointing, head=Head.FUSED, on_gpu=True)
    estimate = peak_memory(read_shape(case.config), training, step).tensors
    measured = tracked_peak(case.config, training, checkpointing=case.checkpointing)
    error = estimate / measured - 1
    say(f"    {case.name}: tracker {measured / GIB:.3f} GiB, estimate {error:+.1%}")
    return {"tracker GiB": round(measured / GIB, 4), "estimate GiB": round(estimate / GIB, 4), "error": round(error, 4)}


def _published(case: Published) -> dict[str, float]:
    """Relative errors by length."""
    step = Step(checkpointing=True, head=Head.LOGITS, on_gpu=True, padded=False)
    shape, errors = read_shape(case.config), {}
    for length, measured in case.gib.items():
        training = Training.model_validate(case.training | {"max_length": length})
        errors[str(length)] = round(peak_memory(shape, training, step).gib / measured - 1, 3)
    listed = ", ".join(f"{length}: {error:+.0%}" for length, error in errors.items())
    say(f"    {case.source}: {listed}")
    return errors
