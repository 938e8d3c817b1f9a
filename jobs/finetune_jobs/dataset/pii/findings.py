"""What a recogniser is, what it finds, and which of two findings about the same characters counts."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters ``start`` to ``end`` (exclusive) of a text are an ``entity``. Never holds the value itself."""

    start: int
    end: int
    entity: str
    """Kind of data, e.g. EMAIL_ADDRESS."""
    score: float = 1.0
    """How sure the recogniser is, 0 to 1. From 0.35 on a finding counts by default."""


Find = Callable[[str], Iterable[Finding]]


@dataclass(frozen=True)
class Recognizer:
    """Finds one kind of data."""

    entity: str
    trigger: re.Pattern[str]
    """A cheap test: a text in which this matches nowhere holds nothing for ``find``."""
    find: Find


SEPARATOR: Final = r"[ .\-/()\u2010-\u2015]"
"""What people put between the digits of a number."""
SEVEN_DIGITS: Final = re.compile(rf"\d(?:{SEPARATOR}{{0,3}}\d){{6}}")
"""A trigger that most texts do not have, and all texts with a long number do."""


class Context:
    """Words near a number that say what it is: one passport number looks like another order number."""

    BEFORE = 60
    """Characters before a finding in which the words are looked for: about ten words."""
    AFTER = 30

    def __init__(self, *words: str, hints: Sequence[str] = ()) -> None:
        """``words`` are regular expressions of whole words; letter case does not count.

        ``hints`` are parts of words in lower case: every text with one of the words has one of these. They are looked
        for first, which is fast.
        """
        self.words = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(words)})(?![^\W\d_])", re.IGNORECASE)
        self.hints = hints

    def within(self, text: str) -> bool:
        """Whether any of the words is in the text at all."""
        if self.hints:
            lower = text.lower()
            if not any(hint in lower for hint in self.hints):
                return False
        return self.words.search(text) is not None

    def near(self, text: str, start: int, end: int) -> bool:
        """Whether one of the words stands shortly before or after."""
        return self.within(text[max(0, start - self.BEFORE) : start]) or self.within(text[end : end + self.AFTER])


def without_overlaps(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that remain when of two that share characters the surer one stays, then the longer one; by place."""
    kept: list[Finding] = []
    starts: list[int] = []
    for finding in sorted(findings, key=lambda f: (-f.score, f.start - f.end, f.start, f.entity)):
        place = bisect_left(starts, finding.start)
        clear_before = place == 0 or kept[place - 1].end <= finding.start
        clear_after = place == len(kept) or finding.end <= kept[place].start
        if clear_before and clear_after:
            kept.insert(place, finding)
            starts.insert(place, finding.start)
    return kept
