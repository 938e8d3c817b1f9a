"""A clock for what waits, so that no test does."""

from __future__ import annotations


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
