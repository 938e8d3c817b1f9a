r"""Texts that hold JSON's escapes (pure): ``\n`` is a line's end there, and a recogniser would see the letter n.

Records, and what tools answer, are JSON. Personal data and secrets in them are looked for in what they say, and
replaced where it is written.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from finetune_jobs.base.strict_json import json_value
from finetune_jobs.text.pii.findings import Finding, without_overlaps

Find = Callable[[str, str], list[Finding]]
"""Findings in a text (first argument), given the text before it (second)."""

_ESCAPE: Final = re.compile(
    r"(?<!\\)\\++(?:(?P<letter>[\"/bfnrt])"
    r"|u(?P<pair>[dD][89abAB][0-9a-fA-F]{2}\\++u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|u(?P<code>[0-9a-fA-F]{4}))"
)
"""More than one backslash: JSON within JSON."""
_NO_CHARACTER: Final = "\ufffd"
"""For half a surrogate pair, whose digits are no part of what stands beside it."""
_LETTERS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_STRING: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
"""A string of a JSON document, from its first character on."""
_HALF: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class _Reading:
    """What a text says, and where that is written."""

    said: str
    begins: Sequence[int]
    """Places in ``said`` from which on the text is written without a gap, in order."""
    places: Sequence[int]
    """Where these are in the text."""

    def written(self, finding: Finding) -> Finding:
        """A finding in ``said`` as one in the text."""
        return replace(finding, start=self._place(finding.start), end=self._place(finding.end))

    def _place(self, place: int) -> int:
        part = bisect_right(self.begins, place) - 1
        return self.places[part] + place - self.begins[part]


def unescaped(text: str) -> str:
    """The text with the characters that its escapes stand for."""
    return _read(text).said if "\\" in text else text


def finding_in_escaped(find: Find) -> Find:
    """As ``find``, also in texts with escapes. No finding in a JSON document begins or ends within an escape, so that
    it is still JSON when they are replaced."""

    def found(text: str, before: str) -> list[Finding]:
        if "\\" not in text or not _ESCAPE.search(text):
            return find(text, before)
        reading = _read(text)
        said = [reading.written(finding) for finding in find(reading.said, before)]
        if is_document(text):
            return said
        others = [replace(finding, score=0.0) for finding in find(text, before)]  # C:\new holds what looks like one
        return without_overlaps([*said, *others])

    return found


def is_document(text: str) -> bool:
    """Whether a text is a JSON object, list or string."""
    if not text.startswith(("{", "[", '"')):
        return False
    try:
        json_value(text)
    except ValueError:
        return False
    return True


def map_strings(document: str, change: Callable[[str], str]) -> str:
    """A JSON document with every string in it changed, the keys of objects too; all else stays as it is written."""

    def changed(match: re.Match[str]) -> str:
        before = json.loads(match[0])
        after = change(before)
        if after == before:
            return match[0]
        written = json.dumps(after, ensure_ascii=document.isascii())
        return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", written)

    return _STRING.sub(changed, document)


def _read(text: str) -> _Reading:
    parts, begins, places = [], [0], [0]
    end = length = 0
    for match in _ESCAPE.finditer(text):
        parts += [text[end : match.start()], _character(match)]
        length += match.start() - end
        begins += [length, length + 1]
        places += [match.start(), match.end()]
        end, length = match.end(), length + 1
    return _Reading("".join(parts) + text[end:], begins, places)


def _character(match: re.Match[str]) -> str:
    if letter := match["letter"]:
        return _LETTERS.get(letter, letter)
    if code := match["code"]:
        return _HALF.sub(_NO_CHARACTER, chr(int(code, 16)))
    high, low = (int(half, 16) for half in (match["pair"][:4], match["pair"][-4:]))
    return chr(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00)
