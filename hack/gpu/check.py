"""What a part of the suite has found, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from hack.gpu.bench import Bench


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    part: str
    what: str
    found: str
    wanted: str
    passed: bool | None
    """None: it could not be looked at here, and ``found`` says why."""

    @property
    def mark(self) -> str:
        """The outcome in a character."""
        return "–" if self.passed is None else "✓" if self.passed else "✗"


Part = Callable[[Bench], Iterator[Check]]
"""A part of the suite: it yields its checks as it makes them."""


def skipped(part: str, why: str, what: str = "all") -> Check:
    """A part, or something of it, that this machine cannot show."""
    return Check(part, what, f"left out: {why}", "", None)


def table(checks: Iterable[Check]) -> Table:
    """All checks, for people."""
    found = Table("", "part", "what", "found", "wanted", box=None)
    for each in checks:
        found.add_row(each.mark, each.part, each.what, each.found, each.wanted)
    return found


def write(checks: Iterable[Check], card: str, seconds: Mapping[str, float], path: Path) -> None:
    """All checks, and how long each part has taken so far, for programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"card": card, "seconds": seconds, "checks": [asdict(each) for each in checks]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
