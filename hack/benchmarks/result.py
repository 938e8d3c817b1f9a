"""The result of a benchmark, and where it is stored."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hack.cluster.layout import REPOSITORY

DIRECTORY = REPOSITORY / "build" / "benchmarks"


@dataclass(frozen=True)
class Result:
    """A benchmark's figure and its baseline."""

    name: str
    value: float
    unit: str
    baseline: float | None
    """The same figure for the baseline, from the same run; None if there is none."""
    goal: str
    """The goal for the figure, as text."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Value divided by baseline."""
        return self.value / self.baseline if self.baseline else None

    def write(self) -> Path:
        """Write ``build/benchmarks/<name>.json``."""
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        path = DIRECTORY / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self) | {"ratio": self.ratio, "machine": machine()}, indent=2) + "\n")
        return path


def machine() -> str:
    """Processor, cores, memory and kernel, on one line."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        "unknown CPU",
    )
    kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return f"{model}, {os.cpu_count()} cores, {kib / 2**20:.0f} GiB, Linux {platform.release().split('-')[0]}"


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie (nearest rank)."""
    return sorted(values)[max(0, math.ceil(round(share * len(values), 6)) - 1)]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
