"""What a recogniser is, what it finds, and which of two findings about the same characters counts."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from finetune_jobs.text.pii.text import Text


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters ``start`` to ``end`` (exclusive) of a text are an ``entity``. Never holds the value itself."""

    start: int
    end: int
    entity: str
    """Kind of data, e.g. EMAIL_ADDRESS."""
    score: float = 1.0
    """How sure the recogniser is, 0 to 1. From 0.35 on a finding counts by default."""


Trigger = Callable[[Text], bool]
Find = Callable[[Text], Iterable[Finding]]


@dataclass(frozen=True)
class Recognizer:
    """Finds one kind of data."""

    entity: str
    trigger: Trigger
    """A cheap test: a text that does not pass it holds nothing for ``find``."""
    find: Find


def has_long_number(text: Text) -> bool:
    """A trigger that few texts pass, and all texts with a number of seven digits or more."""
    return bool(text.numbers)


def matches(*patterns: str) -> Trigger:
    """A trigger that texts pass in which one of the patterns matches.

    A pattern that begins with a character, and looks back at what stands before it, is found several times as fast as
    one that begins with a class of characters.
    """
    searches = [re.compile(pattern).search for pattern in patterns]
    return lambda text: any(search(text.whole, text.begin) for search in searches)


class NearbyWords:
    """Words near a number that say what it is: one passport number looks like another order number."""

    BEFORE = 60
    """Characters before a finding in which the words are looked for: about ten words."""
    AFTER = 30

    def __init__(self, *words: str, hints: Sequence[str] = ()) -> None:
        """``words`` are regular expressions of whole words; letter case does not count.

        ``hints`` are parts of words, of the letters a to z: every text with one of the words has one of these. They are
        looked for first, which is fast.
        """
        self.words = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(words)})(?![^\W\d_])", re.IGNORECASE)
        self.hints = hints

    def hinted(self, text: Text) -> bool:
        """Whether one of the hints is in the text or before: a trigger."""
        return any(map(text.lower.__contains__, self.hints))

    def anywhere(self, text: Text) -> bool:
        """Whether one of the words is in the text or before."""
        return self.hinted(text) and self.words.search(text.whole) is not None

    def within(self, piece: str) -> bool:
        """Whether one of the words is in a piece of a text."""
        if self.hints:
            lower = piece.lower()
            if not any(hint in lower for hint in self.hints):
                return False
        return self.words.search(piece) is not None

    def near(self, text: str, start: int, end: int) -> bool:
        """Whether one of the words stands shortly before or after."""
        return self.within(text[max(0, start - self.BEFORE) : start]) or self.within(text[end : end + self.AFTER])


def without_overlaps(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that remain when of two that share characters the surer one stays, then the longer one; by place."""
    findings = list(findings)
    if len(findings) < 2:
        return findings
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
