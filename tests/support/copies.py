"""Copies of API objects."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

T = TypeVar("T")
_NESTED: Final = (dict, list)


def copied(value: T) -> T:
    """A deep copy of what consists of dictionaries, lists and values that do not change, as all objects of the API do.

    ``copy.deepcopy`` takes five times as long, because it looks for what stands in two places. The walks in memory copy
    thousands of objects a second.
    """
    return cast(T, _copied(value))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) if isinstance(each, _NESTED) else each for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) if isinstance(each, _NESTED) else each for each in value]
    return value
