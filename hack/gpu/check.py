"""What a part of the suite has found, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
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


def skipped(part: str, why: str) -> Check:
    """A part that this machine cannot show."""
    return Check(part, "all", why, "", None)


def table(checks: Iterable[Check]) -> Table:
    """All checks, for people."""
    found = Table("", "part", "what", "found", "wanted", box=None)
    for each in checks:
        found.add_row(each.mark, each.part, each.what, each.found, each.wanted)
    return found


def write(checks: Iterable[Check], card: str, path: Path) -> None:
    """All checks, for programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"card": card, "checks": [asdict(each) for each in checks]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
