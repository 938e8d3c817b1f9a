"""What stands in place of personal data and secrets (pure). Evaluation looks for it without a recogniser."""

import re
from collections.abc import Iterator
from typing import Any, Final

_PLACEHOLDER: Final = re.compile(r"<[A-Z][A-Z_]{1,39}_[1-9][0-9]*>")


def placeholder(entity: str, number: int) -> str:
    """The pseudonym of the value of this number, e.g. ``<EMAIL_ADDRESS_1>``."""
    return f"<{entity}_{number}>"


def placeholders(value: Any) -> Iterator[str]:
    """Those in all texts of a JSON value, keys included."""
    if isinstance(value, str):
        yield from _PLACEHOLDER.findall(value)
    elif isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from placeholders(each)


def holds_placeholder(value: Any) -> bool:
    """Whether any text of a JSON value holds a placeholder, keys included."""
    return next(placeholders(value), None) is not None
