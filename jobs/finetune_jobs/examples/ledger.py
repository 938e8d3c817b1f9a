"""The ledger of all examples between reading and splitting: everything but their texts, which are in the spool (pure).

Memory an example: about 0.5 KiB, most of it the identity as text and its place in dictionaries.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.hashing import canonical_json
from finetune_jobs.base.strict_json import json_value
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import Example, Faults, shown
from finetune_jobs.reading.rows import Fault

IN_TEST: Final = "inTest"
"""Kind of the rows for training that a test which a source provides holds too."""


@dataclass(frozen=True)
class Place:
    """Where an example comes from."""

    source: int
    """Number of the source in the spec."""
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass
class Ledger:
    """Rows that were read, and the examples that they gave."""

    task: TaskType = TaskType.CLASSIFICATION
    read: int = 0
    faults: Faults = field(default_factory=Faults)
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows dropped by a rule, by kind."""
    duplicates: int = 0
    """Rows dropped as exact duplicates of an earlier one."""
    labels: dict[str, str] = field(default_factory=dict)
    """The class of every kept example, by identity; empty where the task has no classes."""
    given: dict[str, Part] = field(default_factory=dict)
    """Parts that the sources provide."""
    groups: dict[str, str] = field(default_factory=dict)
    """Groups that the rows name."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Length as it is trained."""
    _indexes: dict[str, int] = field(default_factory=dict)
    _answers: dict[str, int] = field(default_factory=dict)
    _kept_as: dict[str, list[str]] = field(default_factory=dict)
    """The pieces or the shorter form that stay for an example that was too long."""
    _copies: Counter[str] = field(default_factory=Counter)
    placeholders: set[str] = field(default_factory=set)
    """Examples that hold placeholders for personal data or secrets."""
    masked_answers: set[str] = field(default_factory=set)
    """Those of them whose answer does."""
    thoughtful: set[str] = field(default_factory=set)
    """Examples with thoughts before an answer."""
    across: list[tuple[str, str]] = field(default_factory=list)
    """Rows for training that were left out because a test that a source provides holds the same: where the row of the
    test is, and where that one."""
    _trained_too: dict[str, list[Place]] = field(default_factory=dict)
    """Examples of the test, and where rows for training are equal to one."""
    _conflicting: set[str] = field(default_factory=set)
    _sources: "array[int]" = field(default_factory=lambda: array("H"))
    _files: list[str] = field(default_factory=list)
    _lines: "array[int]" = field(default_factory=lambda: array("q"))

    def is_new(self, example: Example, place: Place, part: Part | None = None) -> bool:
        """Count a valid example; True when it is the first of its prompt and may stay.

        ``part``: the one that its source provides. Rows of the user's test come before all others
        (``collect.own_parts_first``).

        Of equal prompts with different answers, those of a free text are other ways to say it: the first one stays. In
        a classification or an extraction they teach nothing: all of them are invalid, the first one too, unless a rule
        has left it out already. Records are different if their values are, however they are written.
        """
        identity, answer = example.identity, example.label
        meant = hash(_value(answer) if self.task is TaskType.EXTRACTION else answer)
        if identity in self._conflicting:
            self.faults.add(place.file, _conflict(place.line, answer))
            return False
        if identity not in self._answers:
            self._answers[identity] = meant
            return True
        if self.task is TaskType.TEXT or self._answers[identity] == meant:
            self._copies[identity] += 1
            self.duplicates += 1
            if part is Part.TRAIN and self._tested(identity):
                self._trained_too.setdefault(identity, []).append(place)
            return False
        self._conflicting.add(identity)
        copies = self._copies.pop(identity, 0)
        self.duplicates -= copies
        earlier = {each for each in self._forms(identity) if each in self.labels}
        conflict = _conflict(place.line, answer, self.labels.get(identity, ""))
        self.faults.add(place.file, replace(conflict, rows=1 + copies + len(earlier)))
        self.leave_out(earlier)
        return False

    def keep(self, example: Example, place: Place, tokens: int, part: Part | None, whole: Example | None = None) -> int:
        """Add an example that ``is_new``; returns its number. ``whole``: the too long example that it comes from."""
        identity = example.identity
        if whole and whole is not example:
            self._kept_as.setdefault(whole.identity, []).append(identity)
        label = example.label if self.task is TaskType.CLASSIFICATION else ""
        self.labels[identity] = sys.intern(label)
        self.tokens[identity] = tokens
        if part:
            self.given[identity] = part
        if example.group:
            self.groups[identity] = sys.intern(example.group)
        self._indexes[identity] = len(self._lines)
        self._sources.append(place.source)
        self._files.append(place.file)
        self._lines.append(place.line)
        return self._indexes[identity]

    def leave_out(self, identities: set[str]) -> None:
        """Forget examples after all; who calls this counts them."""
        for identity in identities:
            for known in (self.labels, self.given, self.groups, self.tokens):
                known.pop(identity, None)

    def train_test_conflicts(self) -> list[tuple[str, str]]:
        """Test rows that the sources also provide for training: the places of both."""
        tests = ((self._tested(identity), places) for identity, places in self._trained_too.items())
        return [(self.place(test), str(place)) for test, places in tests if test for place in places]

    def leave_out_of_training(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Count rows for training that ``across`` names, with the places of the test's rows."""
        self.across += pairs
        self.dropped.update({IN_TEST: len(pairs)} if pairs else {})

    def identities(self) -> list[str]:
        """The identity of every example by its number, including those dropped later."""
        return list(self._indexes)

    def source_of(self, identity: str) -> int:
        """Number of the source that an example comes from."""
        return self._sources[self._indexes[identity]]

    def place(self, identity: str) -> str:
        """File and line of an example."""
        number = self._indexes[identity]
        return str(Place(self._sources[number], self._files[number], self._lines[number]))

    def _forms(self, identity: str) -> list[str]:
        """What stays for an example: it, or its pieces or shorter form."""
        return self._kept_as.get(identity, [identity])

    def _tested(self, identity: str) -> str:
        """What of an example stands in a test that a source provides, or an empty text."""
        return next((each for each in self._forms(identity) if self.given.get(each) is Part.TEST), "")


def _value(record: str) -> bytes:
    """A record without what JSON leaves open: white space, escapes, the order of keys."""
    try:
        return canonical_json(json_value(record))
    except ValueError:  # half a surrogate pair in an escape
        return record.encode()


def _conflict(line: int, label: str, other: str = "") -> Fault:
    problem = f"conflicts with an earlier identical row ({shown(other)!r})" if other else "is one of several answers"
    return Fault(line, "label", "conflictingLabels", f"{problem}: identical inputs need one answer", label)
