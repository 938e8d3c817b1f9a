"""Summary of the readiness checklist: prepare writes it, and the operator completes it.

The base model's score is known only after training, from ``evaluate``. Until then the item ``baseline`` warns; then
the operator, which has both results, resolves it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

BASELINE: Final = "baseline"
"""Name of the item for the base model's score."""
EASY_BASELINE: Final = 0.95
"""Share of correct base model answers above which tuning has little to gain (our own judgement)."""
MAX_SUMMARY: Final = 256
"""Longest summary in characters: the names of all items, and the base model's score."""

_NAMES: Final = r"(?: \((?P<{state}>[a-z]+(?:, [a-z]+)*)\))?"
_SUMMARY: Final = re.compile(
    rf"(?P<passed>[0-9]{{1,3}}) passed, [0-9]{{1,3}} warnings?{_NAMES.format(state='warned')}, "
    rf"[0-9]{{1,3}} failed{_NAMES.format(state='missed')}"
)


@dataclass(frozen=True)
class Readiness:
    """How many checklist items pass, and the names of the others."""

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
        """The checklist that ``text`` summarises; None for any other text, such as a completed summary."""
        found = _SUMMARY.fullmatch(text)
        return cls(int(found["passed"]), _listed(found["warned"]), _listed(found["missed"])) if found else None

    def with_baseline(self, share: float) -> "Readiness":
        """The checklist once the base model's share of correct answers is known: it warns only if that is high."""
        if BASELINE not in self.warned or share >= EASY_BASELINE:
            return self
        return replace(self, passed=self.passed + 1, warned=tuple(name for name in self.warned if name != BASELINE))


def completed(summary: str, measure: str, share: float, samples: int) -> str:
    """``summary`` with the base model's score, e.g. ``…; base model: accuracy 12.0 % on 200 test examples``.

    Any other text, and a completed summary, is returned unchanged.
    """
    found = Readiness.parse(summary)
    if found is None:
        return summary
    return f"{found.with_baseline(share)}; base model: {measure} {share * 100:.1f} % on {samples:,} test examples"


def _in_brackets(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(names.split(", ")) if names else ()
