"""Seconds between Kubernetes timestamps."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_operator.conditions import parse_timestamp


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Seconds from one timestamp to another; up to now without an end, None without a beginning."""
    if not begin:
        return None
    return ((parse_timestamp(end) if end else datetime.now(UTC)) - parse_timestamp(begin)).total_seconds()
