"""What stands in place of personal data and secrets (pure). Evaluation looks for it without a recogniser."""

import re
from typing import Any, Final

_PLACEHOLDER: Final = re.compile(r"<[A-Z][A-Z_]{1,39}_[1-9][0-9]*>")


def placeholder(entity: str, number: int) -> str:
    """The pseudonym of the value of this number, e.g. ``<EMAIL_ADDRESS_1>``."""
    return f"<{entity}_{number}>"


def holds_placeholder(value: Any) -> bool:
    """Whether any text of a JSON value holds a placeholder, keys included."""
    if isinstance(value, dict):
        return any(holds_placeholder(each) for each in (*value, *value.values()))
    if isinstance(value, list):
        return any(map(holds_placeholder, value))
    return isinstance(value, str) and _PLACEHOLDER.search(value) is not None
