"""How many answers need no human review, at a target precision. Pure functions, no model.

Selective prediction (El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 11, 2010;
Geifman and El-Yaniv, "Selective classification for deep neural networks", 2017): an answer is taken as it is if the
model finds it likely enough, and a person looks at the others.

Whoever chooses a threshold on the examples by which it is then judged finds it better than it is. So it is chosen on
the validation part, and what it does is counted on the test part. It is the lowest one at which the validation part
shows at most half of the mistakes that are allowed: at the very limit, no test would show that the precision is kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isnan
from typing import Final

from finetune_api.goals import PRECISIONS
from finetune_jobs.artifacts.measurements import Automation, Figure
from finetune_jobs.evaluation.clusters import Groups, mean
from finetune_jobs.evaluation.grouped import widened
from finetune_jobs.evaluation.metrics import wilson

MARGIN: Final = 0.5
"""Share of the allowed mistakes that the validation part may show."""
DOUBT: Final = 0.5
"""Imaginary mistakes among any number of validation examples: a few that are all right show little."""
DIGITS: Final = 6
"""Of a log-probability: a sure answer's is very near to 0, and another sure one's should differ."""
LEEWAY: Final = 10**-DIGITS
"""More than what rounding to them moves it by."""
NOTHING: Final = Figure(value=0, low=0, high=1)
"""Of no examples."""


@dataclass(frozen=True)
class Weighed:
    """An answer, as far as it counts here."""

    log_probability: float
    """Of the whole answer, as a natural logarithm."""
    right: bool
    group: str = ""
    """Of rows that are alike; empty: it stands for itself."""


def automate(validation: Sequence[Weighed], test: Sequence[Weighed]) -> list[Automation]:
    """What needs no human review at each of PRECISIONS."""
    return [_at(float(precision), validation, test) for precision in PRECISIONS]


def choose_threshold(validation: Iterable[Weighed], precision: float) -> float | None:
    """From which log-probability on the answers may be taken; None if there is none.

    It is a little lower than that of the last answer taken: the values are rounded, and a client adds up unrounded
    ones, which for a very sure answer are just below 0. No threshold takes an answer whose probability is no number.
    """
    known = [each for each in validation if not isnan(each.log_probability)]
    ordered = sorted(known, key=lambda each: -each.log_probability)
    taken, wrong, chosen = 0, DOUBT, None
    for value, group in groupby(ordered, key=lambda each: each.log_probability):
        for each in group:
            taken += 1
            wrong += not each.right
        if wrong <= _allowed(taken, precision):
            chosen = value
    return None if chosen is None else chosen - LEEWAY


def _allowed(taken: int, precision: float) -> float:
    """Mistakes that the validation part may show among so many answers."""
    return round(taken * (1 - precision) * MARGIN, 9)


def _at(precision: float, validation: Sequence[Weighed], test: Sequence[Weighed]) -> Automation:
    threshold = choose_threshold(validation, precision)
    chosen = {n for n, each in enumerate(test) if threshold is not None and each.log_probability >= threshold}
    taken = [each for n, each in enumerate(test) if n in chosen]
    right = sum(each.right for each in taken)
    too_few = _allowed(len(validation), precision) < DOUBT  # also if all of them were right
    return Automation(
        precision=precision,
        threshold=threshold,
        chosen_on=len(validation),
        taken=len(taken),
        right=right,
        share=NOTHING if too_few else _share(test, [each in chosen for each in range(len(test))]),
        reached=_share(taken, [each.right for each in taken]),
    )


def _share(rows: Sequence[Weighed], counted: Sequence[bool]) -> Figure:
    """Those that are ``counted``, with Wilson's interval; where rows stand in groups, it holds that of these too."""
    if not rows:
        return NOTHING
    share = sum(counted) / len(rows)
    low, high = wilson(sum(counted), len(rows))
    found = Figure(value=share, low=min(low, share), high=max(high, share))
    groups = Groups.of([each.group for each in rows])
    return widened(found, mean(counted, groups), least=0, most=1) if groups else found
