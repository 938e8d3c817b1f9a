"""Tokens a second, side by side with plain TRL on the same card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hack.benchmarks.train_throughput import CHAT, Measured, compared, fresh_process, measure
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped

GOAL = 3.0
"""Times plain TRL's rate at chat-like lengths."""
STEPS = 12


def against_trl(bench: Bench) -> Iterator[Check]:
    """The same examples, order and batches on both sides, each in a process of its own."""
    workload = replace(CHAT, steps=STEPS if bench.on_gpu else 3)
    sides: dict[str, Measured] = {
        side: fresh_process(measure, side, workload, bench.model) for side in ("ours", "stock")
    }
    figures = compared(workload, sides["ours"], sides["stock"])
    found = f"{figures['ours']:.0f} against {figures['stock']:.0f} tokens/s: {figures['ratio']} ×"
    wanted = f"≥ {GOAL} ×, losses within 2 %"
    passed = figures["ratio"] >= GOAL and figures["medianLossApart"] <= 0.02
    yield Check("throughput", "chat-like lengths, plain TRL", found, wanted, passed if bench.on_gpu else None)
    yield skipped("throughput", "Unsloth: not compared yet")
