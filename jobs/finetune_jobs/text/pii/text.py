"""A text as all recognisers look at it: what several of them ask of it is worked out once."""

import re
from collections.abc import Iterator
from typing import Final

SEPARATOR: Final = r"[ .\-/()\u2010-\u2015]"
"""What people put between the digits of a number."""
_LONG: Final = 7
"""Digits of a long number at least."""
_NUMBER: Final = re.compile(rf"\d(?:{SEPARATOR}{{0,3}}\d){{{_LONG - 1},}}")
_LEAD: Final = 3
"""Characters of a written number before its first digit at most, such as "+ (" of a telephone number."""
_TAIL: Final = 24
"""Characters after the last digit that belong to a written number, as an extension does, or decide about its end."""

_OUTLINE: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789?", b"A" * 26 + b"0" * 10)
_LEFT_OUT: Final = b" .-/()"


class Text:
    """A text with what is known of it, and what was said before it."""

    __slots__ = ("begin", "lower", "numbers", "outline", "whole")

    def __init__(self, text: str, before: str = "") -> None:
        self.whole = before + text
        self.begin = len(before)
        """Where the text begins: nothing is looked for before, but words there may say what a number is."""
        encoded = self.whole.encode("ascii", "replace")
        self.lower = encoded.decode("ascii").lower()
        """All in lower case, with a question mark for every character that is not ASCII."""
        self.outline = encoded[self.begin :].translate(_OUTLINE, _LEFT_OUT)
        """The text without separators, with "0" for every digit and "A" for the letters A to Z.

        Question marks and what is not ASCII are "0" too, for some of it are digits: what the outline lacks, the text
        does not have either. To look for bytes takes a fraction of the time of a regular expression over the text.
        """
        self.numbers = self._numbers() if b"0" * _LONG in self.outline else []
        """Start and end (exclusive) of every long number: seven digits or more, at most three separators between two.

        Those that end so far before the text that they do not matter are left out.
        """

    def _numbers(self) -> list[tuple[int, int]]:
        spans = (match.span() for match in _NUMBER.finditer(self.whole))
        return [(first, stop) for first, stop in spans if stop + _TAIL > self.begin]

    def in_numbers(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """What ``pattern.finditer`` gives of the text, but only around its long numbers is it looked for.

        For patterns of which every match has seven digits or more with at most three separators between two of them,
        begins at most ``_LEAD`` characters before its first digit, and does not depend on what stands more than
        ``_TAIL`` characters after the last one of these digits.
        """
        end = 0
        for first, stop in self.numbers:
            place = max(end, first - _LEAD)
            while (match := pattern.search(self.whole, place, stop + _TAIL)) and match.start() < stop:
                yield match
                place = end = match.end()

    def in_words(self, pattern: re.Pattern[str], anchor: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """What ``pattern.finditer`` gives of the text, but only in words that hold the ``anchor`` is it looked for.

        For patterns of which every match holds the anchor and no space.
        """
        whole, end = self.whole, self.begin
        while found := anchor.search(whole, end):
            start = whole.rfind(" ", 0, found.start()) + 1
            end = whole.find(" ", found.end())
            end = len(whole) if end < 0 else end
            yield from pattern.finditer(whole, start, end)
