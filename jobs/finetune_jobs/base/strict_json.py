"""JSON in foreign texts: what a model wrote, or a row of a data set."""

import json
from typing import Any, Final

LEVELS: Final = 200
"""Deepest nesting of a value: functions that walk through one call themselves for each level, and a model that repeats
itself opens hundreds."""


def json_value(text: str) -> Any:
    """The value of a JSON text (RFC 8259, which knows no NaN). Raises ValueError for any other, and for one that is
    nested more than LEVELS deep."""
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    require_shallow(found)
    return found


def require_shallow(value: Any) -> None:
    """Raises ValueError for a value that is nested more than LEVELS deep."""
    level = [value]
    for _ in range(LEVELS + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


_TOO_DEEP: Final = f"nested more than {LEVELS} levels deep"


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")
