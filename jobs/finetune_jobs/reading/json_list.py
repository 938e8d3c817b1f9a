"""Rows out of JSON: one list of objects, read object by object, so that the list may be larger than memory.

Why not ijson: docs/decisions/0016-which-parts-are-our-own.md.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Report
from finetune_jobs.reading.content import Content
from finetune_jobs.reading.lines import skip_bom
from finetune_jobs.reading.rows import MAX_LINE, Fault, Row, invalid

_CHUNK: Final = 4 * MAX_LINE
_SOLID: Final = re.compile(r"[^ \t\n\r]")
"""Anything but white space, as RFC 8259 defines it."""
_BAD_BYTE: Final = re.compile("[\udc80-\udcff]")
"""What the error handler ``surrogateescape`` makes of a byte that is not UTF-8."""
_NEAR_END: Final = 16
"""Characters before the end of the window where the parser reports a word (``false``, ``\\u00e4``) that is cut."""
_REPORTED: Final = 1000
"""Objects between two reports of progress."""


def read_json(content: Content, report: Report | None = None) -> Iterator[Row | Fault]:
    """Every object of the list, counted from 1.

    What stands behind a mistake in the syntax has no certain meaning, hence it is an error of the file and not of a
    row. Raises StageError (DatasetInvalid), with line and column.
    """
    text = _Window(content)
    decoder = json.JSONDecoder()
    number = 0
    if not text.next():
        return
    _open_list(text)
    while text.next() != "]":
        if number:
            text.take(",")
        number += 1
        if text.next() == "]":
            raise text.error("trailing comma at the end of the list")
        yield _row(text, decoder, number)
        if report and number % _REPORTED == 0:
            report(content.position(), content.size)
    text.take("]")
    if text.next():
        raise text.error("unexpected content after the list")


def _open_list(text: "_Window") -> None:
    if text.next() == "{":
        raise text.error(
            "the file starts with an object, but format JSON needs a list of objects: [{…}, …]. If each line is an "
            "object, set spec.dataset.sources[].format to JSONL"
        )
    text.take("[")


def _row(text: "_Window", decoder: json.JSONDecoder, number: int) -> Row | Fault:
    source, value = text.decode(decoder, f"object {number}")
    if bad := _BAD_BYTE.search(source):
        problem = f"is not valid UTF-8 at character {bad.start() + 1} of the object"
        return Fault(number, "", "notUtf8", problem, f"0x{ord(bad[0]) - 0xDC00:02x}")
    if not isinstance(value, dict):
        return Fault(number, "", "notAnObject", "is not a JSON object", source)
    return Row(number, value)


class _Window:
    """A part of the text and the place in it; always holds MAX_LINE characters behind the place, or the file's end."""

    def __init__(self, content: Content) -> None:
        skip_bom(content)
        self._uri, self._stream = content.uri, content.stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1

    def next(self) -> str:
        """The next character that is no white space; empty at the file's end."""
        while True:
            self._fill()
            found = _SOLID.search(self._text, self._at)
            self._advance(found.start() if found else len(self._text))
            if found or self._ended:
                return found[0] if found else ""

    def take(self, expected: str) -> None:
        """Go behind a character. Raises StageError when another one stands there, or the file has ended."""
        found = self.next()
        if not found:
            raise self.error("the file ends inside the list. Upload it again")
        if found != expected:
            raise self.error(f"expected {expected!r}, found {found!r}")
        self._advance(self._at + 1)

    def decode(self, decoder: json.JSONDecoder, name: str) -> tuple[str, Any]:
        """The next value and its text. Raises StageError for a mistake in it, and for one that is too long."""
        try:
            value, end = decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            if self._is_cut(error):
                raise self._unfinished(name) from None
            self._advance(error.pos)
            raise self.error(f"{name} is not valid JSON: {error.msg}") from None
        except (RecursionError, ValueError) as error:
            raise self.error(f"{name} is not readable JSON: {type(error).__name__}") from None
        source = self._text[self._at : end]
        if len(source) > MAX_LINE:
            raise self._too_long(name)
        self._advance(end)
        return source, value

    def error(self, problem: str) -> StageError:
        """An error at the present place."""
        return invalid(self._uri, f"{problem} (line {self._line}, column {self._column}).")

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the parser came to the end of the window rather than to a mistake."""
        near = 0 if self._ended else _NEAR_END
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - near

    def _unfinished(self, name: str) -> StageError:
        if self._ended:
            return self.error(f"the file ends inside {name}, which starts here. Upload it again")
        return self._too_long(name)

    def _too_long(self, name: str) -> StageError:
        return self.error(f"{name} is longer than {MAX_LINE} characters")

    def _advance(self, end: int) -> None:
        newlines = self._text.count("\n", self._at, end)
        self._line += newlines
        self._column = end - self._text.rfind("\n", self._at, end) if newlines else self._column + end - self._at
        self._at = end

    def _fill(self) -> None:
        if self._ended or len(self._text) - self._at > MAX_LINE:
            return
        parts = io.StringIO()
        parts.write(self._text[self._at :])
        while not self._ended and parts.tell() <= MAX_LINE:
            chunk = self._stream.read(_CHUNK)
            self._ended = not chunk
            parts.write(self._decoder.decode(chunk, final=self._ended))
        self._text, self._at = parts.getvalue(), 0
