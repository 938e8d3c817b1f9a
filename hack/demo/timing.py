"""Seconds between Kubernetes timestamps."""

from __future__ import annotations

from datetime import UTC, datetime


def parse(timestamp: str) -> datetime:
    """An RFC 3339 timestamp in UTC."""
    return datetime.fromisoformat(timestamp).astimezone(UTC)


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Seconds from one timestamp to another; up to now without an end, None without a beginning."""
    if not begin:
        return None
    return ((parse(end) if end else datetime.now(UTC)) - parse(begin)).total_seconds()
