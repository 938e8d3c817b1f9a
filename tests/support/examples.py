"""What Hypothesis has found, written as what is committed with the test."""

from __future__ import annotations

import ast
import re
from collections.abc import Container
from typing import Final

_FOUND: Final = re.compile(r"^Failing test case: (\w+\(.*?^\))", re.MULTILINE | re.DOTALL)


def to_commit(error: BaseException, fixtures: Container[str]) -> str:
    """A line ``@example(...)`` for each example that an error's notes tell of, without the test's fixtures."""
    errors = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    notes = "\n".join(note for each in (error, *errors) for note in getattr(each, "__notes__", ()))
    return "\n".join(dict.fromkeys(_decorator(call, fixtures) for call in _FOUND.findall(notes)))


def _decorator(call: str, fixtures: Container[str]) -> str:
    try:
        found = ast.parse(call, mode="eval").body
    except SyntaxError:  # a value that Python cannot read back
        return f"@example(...)  # with the values of {call}"
    assert isinstance(found, ast.Call)
    arguments = [word for word in found.keywords if word.arg not in fixtures]
    return f"@example({', '.join(ast.unparse(word) for word in arguments)})"
