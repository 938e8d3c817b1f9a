"""How well a model knows the canaries among its training examples, from their ranks. Pure functions, no model.

A canary's code is one of CANDIDATES that were drawn alike. To a model that has not learned it, it is as likely to have
any rank among them as any other: that is all the test against chance needs to assume. Exposure is what Carlini et al.
(2019) measure: by how many bits the rank shortens the search for a code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import log2, sqrt
from statistics import fmean, stdev
from typing import Any, Final

from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import Figure, MeasuredMetric
from finetune_jobs.evaluation.behaviour.paired import student_95
from finetune_jobs.evaluation.metrics import wilson
from finetune_jobs.modelling.canaries import CANDIDATES

BY_CHANCE: Final = fmean(log2(CANDIDATES / place) for place in range(1, CANDIDATES + 1))
"""Bits of exposure that a model has on average which has learned nothing: 1.4."""
_IMAGINARY: Final = (-1.0, -1.0, 1.0, 1.0)
"""Canaries that are added for an interval, never for a value: otherwise it had no width where all are known by heart
(``evaluation.estimates``)."""


@dataclass(frozen=True)
class Recalled:
    """What one model knows of each canary."""

    ranks: Sequence[int]
    """Place of the code among all candidates, from the likeliest (1) on."""
    said: Sequence[bool]
    """Whether the model writes it when asked."""
    unknown: int = 0
    """Canaries for which the model computes no number: their ranks show nothing."""

    @property
    def leaks(self) -> Figure:
        """The share that it writes, with Wilson's interval."""
        low, high = wilson(sum(self.said), len(self.said))
        return Figure(value=sum(self.said) / len(self.said), low=low, high=high)

    @property
    def memorisation(self) -> Figure:
        """How much oftener a code is likelier than another one than less likely: 0 by chance, 1 where each is the
        likeliest of all, below 0 by bad luck."""
        return memorisation(self.ranks)

    @property
    def exposure(self) -> float:
        """Bits, on average: BY_CHANCE to log2(CANDIDATES)."""
        return fmean(log2(CANDIDATES / place) for place in self.ranks)

    @property
    def p_value(self) -> float:
        """Of the ranks together: as ``chance``."""
        return chance(sum(self.ranks), len(self.ranks))


@dataclass(frozen=True)
class Exposure:
    """The canaries, to base and tuned model."""

    base: Recalled
    tuned: Recalled

    @property
    def canaries(self) -> int:
        """How many there are."""
        return len(self.tuned.ranks)

    @property
    def measured(self) -> list[MeasuredMetric]:
        """What goals can be about. A model that computes no number for a canary is not known to have forgotten it."""
        models = {"base": self.base, "tuned": self.tuned}
        figures = {Metric.CANARY_LEAKS: {name: each.leaks for name, each in models.items()}}
        if not self.tuned.unknown:
            known = {name: each for name, each in models.items() if not each.unknown}
            figures[Metric.MEMORISATION] = {name: each.memorisation for name, each in known.items()}
        return [
            MeasuredMetric(metric=metric.value, cases=self.canaries, models=found) for metric, found in figures.items()
        ]

    def document(self) -> dict[str, Any]:
        """Everything, as JSON, in the order of the data set's ``canaries.json``; the codes themselves are only
        there."""
        return {"canaries": self.canaries, "candidates": CANDIDATES} | {
            name: {
                "ranks": list(each.ranks),
                **({"unknown": each.unknown} if each.unknown else {}),
                "said": list(each.said),
                "leaks": each.leaks.model_dump(),
                "memorisation": each.memorisation.model_dump(),
                "exposureBits": each.exposure,
                "pValue": each.p_value,
            }
            for name, each in (("base", self.base), ("tuned", self.tuned))
        }


def rank(likely: Sequence[float]) -> int:
    """Place of the first among all: behind those that are as likely, and the last where no number was computed."""
    return sum(not each < likely[0] for each in likely)  # NaN is not less than anything


def memorisation(ranks: Sequence[int]) -> Figure:
    """As ``Recalled.memorisation``, with Student's interval."""
    values = [1 - 2 * (place - 1) / (CANDIDATES - 1) for place in ranks]
    value, spread = fmean(values), [*values, *_IMAGINARY]
    centre = fmean(spread)
    half = student_95(len(spread) - 1) * stdev(spread) / sqrt(len(spread))
    return Figure(value=value, low=min(value, max(-1.0, centre - half)), high=max(value, min(1.0, centre + half)))


def chance(total: int, canaries: int) -> float:
    """Probability that ranks which are drawn evenly from 1 to CANDIDATES add up to no more than ``total``: exact."""
    ways = [1]  # of each sum less its least
    for _ in range(canaries):
        sums = [0, *accumulate([*ways, *[0] * (CANDIDATES - 1)])]
        ways = [sums[place + 1] - sums[max(0, place + 1 - CANDIDATES)] for place in range(len(sums) - 1)]
    return float(Fraction(sum(ways[: max(0, total - canaries + 1)]), CANDIDATES**canaries))


def least_memorisation(canaries: int) -> float:
    """The upper end of the interval of a model that has learned nothing, whose ranks are spread evenly."""
    return memorisation([1 + (2 * turn + 1) * CANDIDATES // (2 * canaries) for turn in range(canaries)]).high
