"""Whether a figure that a sample gave reaches a bound. Pure functions, no model.

A gate reads the interval, not the point: it passes when the whole 95 % interval reaches the bound, fails when none of
it does, and is inconclusive in between.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor, log10
from typing import Final

from finetune_jobs.artifacts.measurements import Difference, Estimate

MOST_ROWS: Final = 1_000_000
"""Where more rows than this were needed, no number of them is named: the figure is the bound."""


class Outcome(StrEnum):
    """What a gate says."""

    PASS = "Pass"
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"


@dataclass(frozen=True)
class Judged:
    """The outcome of one gate."""

    outcome: Outcome
    deciding_rows: int | None = None
    """If inconclusive, about how many rows would decide; None: more than MOST_ROWS, or nothing is known."""


def at_least(estimate: Estimate, bound: float, rows: int) -> Judged:
    """Whether a figure from so many ``rows`` reaches ``bound``."""
    if estimate.low >= bound:
        return Judged(Outcome.PASS)
    if estimate.high < bound:
        return Judged(Outcome.FAIL)
    return Judged(Outcome.INCONCLUSIVE, _deciding_rows(estimate, bound, rows))


def not_worse(difference: Difference) -> Judged:
    """Whether a model holds its ground against another: it fails only where it is worse beyond chance, since two equal
    models cannot be told apart by any number of rows."""
    return Judged(Outcome.FAIL if difference.worse_beyond_chance else Outcome.PASS)


def _deciding_rows(estimate: Estimate, bound: float, rows: int) -> int | None:
    """An interval's width shrinks with the root of the number of rows: as many as bring its near end to the bound, if
    the value stays. Rounded up to two digits, since it is a guess."""
    distance = abs(estimate.value - bound)
    reach = estimate.value - estimate.low if estimate.value >= bound else estimate.high - estimate.value
    if distance == 0 or rows * (reach / distance) ** 2 > MOST_ROWS:
        return None
    needed = max(rows + 1, ceil(rows * (reach / distance) ** 2))
    unit: int = 10 ** max(0, floor(log10(needed)) - 1)
    return ceil(needed / unit) * unit
