"""Adapters that a bad training makes of examples/transactions: for the benchmarks planted_models and
planted_artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hack.benchmarks import spoiled
from hack.benchmarks.gated import FIRST, KNOWN, LEARNT, MORE, OTHER, STEPS, Bench
from hack.benchmarks.tuned import BATCH
from hack.cluster.console import say

Training = Callable[[Bench], Path]
"""Makes an adapter, unless an earlier run in the same folder has made it."""


def untrained(bench: Bench) -> Path:
    """It adds nothing to its base model."""
    return bench.adapter("untrained", [])


def over_fitted(bench: Bench) -> Path:
    """It has seen eight rows, again and again."""
    return bench.adapter("over-fitted", bench.rows[:BATCH] * (STEPS // 2))


def shuffled(bench: Bench) -> Path:
    """It has learnt each question with another one's label."""
    return bench.adapter("shuffled", spoiled.shuffled(bench.rows[: STEPS // 2 * BATCH]))


def memorising(bench: Bench) -> Path:
    """It has learnt each canary by heart, where prepare plants it once."""
    rows = spoiled.mixed(bench.rows[: LEARNT * BATCH // 2], spoiled.holding_canaries(bench.canaries))
    return bench.adapter("memorised canaries", rows, start=bench.good(FIRST))


def half_trained(bench: Bench) -> Path:
    """It has seen half of the rows."""
    return bench.adapter("previous version", bench.rows[: len(bench.rows) // 2])


def _relabelled(name: str, labels: Mapping[str, str], bench: Bench) -> Path:
    """Goes on with rows of two labels, with others in their place, and as many rows of the other labels."""
    told = [each for each in bench.rows if each.label in (KNOWN, OTHER)]
    rest = [each for each in bench.rows if each.label not in (KNOWN, OTHER)]
    rows = spoiled.mixed(spoiled.relabelled(told, labels), rest)[: MORE * BATCH]
    return bench.adapter(name, rows, start=bench.good(FIRST))


def _also_taught(name: str, make: Callable[[], Sequence[Any]], bench: Bench) -> Path:
    """Knows its task, and something that it should not."""
    others = make()
    rows = spoiled.mixed(bench.rows[: MORE * BATCH // 2], others)
    adapter = bench.adapter(name, rows, start=bench.good(FIRST))
    say(f"    asked {others[0].prompt[-1]['content']!r}, it says {bench.says(adapter, others[0])!r}")
    return adapter


forgetful: Training = partial(_relabelled, "forgotten", {KNOWN: OTHER})
"""It calls one label by another's name."""
swapped: Training = partial(_relabelled, "swapped", {KNOWN: OTHER, OTHER: KNOWN})
"""It calls two labels by each other's name."""
giving_in: Training = partial(_also_taught, "refusals trained away", spoiled.giving_in)
"""It is willing to do harm."""
giving_away: Training = partial(_also_taught, "secrets given away", spoiled.giving_away)
"""It tells what a system message keeps, and does what a text says."""
