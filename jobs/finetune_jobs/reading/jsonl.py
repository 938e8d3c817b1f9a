"""Rows out of JSONL: an object a line."""

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson

from finetune_jobs.reading.lines import Lines
from finetune_jobs.reading.rows import Fault, Row

_TOOLS: Final = b'"tool'
"""In rows with ``tools`` or ``tool_calls``, the only values of a conversation that may hold numbers."""
_BEFORE: Final = 10
"""Characters that are shown before a mistake."""
_CONTEXT: Final = 200
"""Characters around them in which a secret is recognised."""


def read_jsonl(lines: Lines) -> Iterator[Row | Fault]:
    """Every object; blank lines do not count."""
    for raw in lines:
        if isinstance(raw, Fault):
            yield raw
            continue
        try:
            value = orjson.loads(raw)
        except ValueError:
            if found := _second_opinion(lines, raw):
                yield found
            continue
        yield _row(lines.number, raw, value)


def _row(number: int, raw: bytes, value: Any) -> Row | Fault:
    if not isinstance(value, dict):
        return Fault(number, "", "notAnObject", "is not a JSON object", raw.decode().strip())
    if float in map(type, value.values()) or _TOOLS in raw:
        try:
            value = json.loads(raw)  # orjson makes floats of integers past 64 bits, and an identifier would change
        except (RecursionError, ValueError) as error:
            return _unreadable(number, error)
    return Row(number, value)


def _second_opinion(lines: Lines, raw: bytes) -> Row | Fault | None:
    """What Python's own parser says of a line that orjson refused: it is the one that takes half surrogate pairs and
    NaN, which a later check names by field, and the one whose messages name the column."""
    try:
        text = raw.decode().rstrip("\r\n")
        return _row(lines.number, raw, json.loads(text)) if text.strip() else None
    except UnicodeDecodeError as error:
        return lines.not_utf8(raw, error)
    except json.JSONDecodeError as error:
        return _malformed(lines.number, text, error)
    except (RecursionError, ValueError) as error:
        return _unreadable(lines.number, error)


def _unreadable(number: int, error: Exception) -> Fault:
    """Too deep, or a number of thousands of digits: orjson takes some of these, Python's parser none."""
    return Fault(number, "", "malformedJson", f"is not readable JSON: {type(error).__name__}")


def _malformed(number: int, text: str, error: json.JSONDecodeError) -> Fault:
    if "\0" in text:
        return Fault(number, "", "nulByte", f"contains a NUL byte at column {text.index(chr(0)) + 1}")
    begin = max(0, error.pos - _BEFORE)
    context = text[max(0, begin - _CONTEXT) : error.pos + _CONTEXT]
    problem = f"is not valid JSON at column {error.colno}: {error.msg}"
    return Fault(number, "", "malformedJson", problem, context, min(begin, _CONTEXT))
