"""The readiness checklist in short: the sentence that prepare writes, and that the operator completes.

What the base model scores is only known after training, when ``evaluate`` has asked it. Until then the item
``baseline`` warns; the operator, which has both results, then settles it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

BASELINE: Final = "baseline"
"""Name of the item that says whether the base model's score is known."""
EASY_BASELINE: Final = 0.95
"""Share of right answers of the base model from which tuning has little left to win (own judgement)."""
MAX_SUMMARY: Final = 256
"""Longest summary, in characters: every item by its name, and the base model's score."""

_NAMES: Final = r"(?: \((?P<{state}>[a-z]+(?:, [a-z]+)*)\))?"
_SUMMARY: Final = re.compile(
    rf"(?P<passed>[0-9]{{1,3}}) passed, [0-9]{{1,3}} warnings?{_NAMES.format(state='warned')}, "
    rf"[0-9]{{1,3}} failed{_NAMES.format(state='missed')}"
)


@dataclass(frozen=True)
class Readiness:
    """How many items of the checklist pass, and the names of those that do not."""

    passed: int
    warned: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """E.g. ``8 passed, 1 warning (balance), 0 failed``."""
        warnings = "warning" if len(self.warned) == 1 else "warnings"
        return (
            f"{self.passed} passed, {len(self.warned)} {warnings}{_in_brackets(self.warned)}, "
            f"{len(self.failed)} failed{_in_brackets(self.failed)}"
        )

    @classmethod
    def parse(cls, text: str) -> "Readiness | None":
        """The checklist that ``text`` tells of; None for any other text, such as one that is complete already."""
        found = _SUMMARY.fullmatch(text)
        return cls(int(found["passed"]), _listed(found["warned"]), _listed(found["missed"])) if found else None

    def with_baseline(self, share: float) -> "Readiness":
        """The checklist once the base model is known to answer this share right: it warns only where that is a lot."""
        if BASELINE not in self.warned or share >= EASY_BASELINE:
            return self
        return replace(self, passed=self.passed + 1, warned=tuple(name for name in self.warned if name != BASELINE))


def completed(summary: str, measure: str, share: float, samples: int) -> str:
    """``summary`` with what the base model scored, e.g. ``…; base model: accuracy 12.0 % on 200 test examples``.

    A text that is no summary, or one that is complete already, stays as it is.
    """
    found = Readiness.parse(summary)
    if found is None:
        return summary
    return f"{found.with_baseline(share)}; base model: {measure} {share * 100:.1f} % on {samples:,} test examples"


def _in_brackets(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(names.split(", ")) if names else ()
