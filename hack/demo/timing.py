"""Durations: measured by the demo's own clock, and between Kubernetes timestamps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from finetune_operator.framework.conditions import parse_timestamp


class Clock:
    """Seconds per step of a demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.monotonic()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Record the time of a step."""
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begin


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Seconds between two timestamps; until now without an end, None without a start."""
    if not begin:
        return None
    return ((parse_timestamp(end) if end else datetime.now(UTC)) - parse_timestamp(begin)).total_seconds()
