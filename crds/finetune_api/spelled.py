"""Texts with a pattern, of which the API server says what they must be in a sentence, not in a regular expression."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field
from pydantic.config import JsonDict

_RULE: Final = 'self.matches(r"{}")'


def spelled(pattern: str, sentence: str, *, max_length: int, min_length: int | None = None) -> Any:
    """The pydantic field of a text. ``sentence``: what to write, e.g. ``write an amount in USD, e.g. 12.50``.
    The pattern has no double quotation mark."""

    def add(schema: JsonDict) -> None:
        rule: JsonDict = {"rule": _RULE.format(pattern), "message": sentence}
        others = schema.get("x-kubernetes-validations")
        schema["x-kubernetes-validations"] = [*others, rule] if isinstance(others, list) else [rule]

    return Field(pattern=pattern, min_length=min_length, max_length=max_length, json_schema_extra=add)


def is_spelled(rule: Mapping[str, Any]) -> bool:
    """Whether a CEL rule stands for a pattern."""
    return str(rule["rule"]).startswith(_RULE.partition("{}")[0])


def spelled_out(schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """The pattern of a text that was made by ``spelled``, and its sentence; None: it is another text."""
    start, _, end = _RULE.partition("{}")
    for rule in filter(is_spelled, schema.get("x-kubernetes-validations", [])):
        return rule["rule"].removeprefix(start).removesuffix(end), rule["message"]
    return None
