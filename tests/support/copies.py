"""Copies of API objects."""

from __future__ import annotations

import pickle
from typing import TypeVar, cast

T = TypeVar("T")


def copied(value: T) -> T:
    """A deep copy. ``copy.deepcopy`` takes fifteen times as long, and the walks in memory copy thousands of objects a
    second."""
    return cast(T, pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))
