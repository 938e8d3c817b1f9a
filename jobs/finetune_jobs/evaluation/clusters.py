"""Intervals where test examples stand in groups whose rows are alike: those of one supplier, near duplicates, pieces of
one conversation. Pure functions, no model.

Ten invoices of one supplier do not tell as much as invoices of ten suppliers. So whole groups are drawn again with
replacement (cluster bootstrap; Field and Welsh, "Bootstrapping clustered data", 2007). Few groups need more than that:
the percentiles are taken further out, where Student's distribution has its own (Hesterberg, "What teachers should know
about the bootstrap", 2015, section 5.3), and for fewer than FEW groups the interval is the value with Student's
quantile times the bootstrap's standard error.

What never differs has no width in any draw. So no interval is narrower than Wilson's of so many rows as the sample is
worth (Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys", 2015):
the rows, divided by how much more a row of a group moves the mean than a row of its own. How alike the rows of a group
are is estimated from those that differ from the others. Where none differs, nothing is known of it, and a group counts
as one row: the less is known, the nearer to that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from finetune_jobs.evaluation.behaviour.paired import Interval, share_difference, student_95
from finetune_jobs.evaluation.metrics import wilson

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.intp]]

DRAWS: Final = 2000
SEED: Final = 20
FEW: Final = 10
"""Groups from which percentiles are taken: of fewer, there are too few different draws."""
ANYTHING: Final = 1e6
"""More than any goal can ask for."""
_NUMBERS: Final = 2_000_000
"""Numbers in memory at a time."""


@dataclass(frozen=True)
class Groups:
    """Which rows are alike."""

    numbers: Numbers
    """Of each row, the number of its group."""
    count: int

    @classmethod
    def of(cls, names: Sequence[str]) -> "Groups | None":
        """``names``: the group of each row; a row without a name is its own. None: every row is."""
        named = [*filter(None, names)]
        if len(set(named)) == len(named):  # most data: a report asks it for each of fifty thresholds
            return None
        known: dict[str, int] = {}
        keys = [name or f"row {place}" for place, name in enumerate(names)]
        numbers = np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.intp)
        return cls(numbers, len(known))

    def among(self, rows: Sequence[bool] | Mask) -> "Groups":
        """The groups of some of the rows; of those, every one may be its own."""
        left, numbers = np.unique(self.numbers[np.array(rows, dtype=bool)], return_inverse=True)
        return Groups(numbers, len(left))

    def draws(self, width: int = 1) -> Iterator[Floats]:
        """How often each group is drawn, (draws, groups), in blocks: as many draws at a time as ``width`` numbers for
        each of them take no more than _NUMBERS."""
        generator = np.random.default_rng(SEED)
        block = max(1, min(DRAWS, _NUMBERS // max(1, self.count, width)))
        for start in range(0, DRAWS, block):
            chances = np.full(self.count, 1 / self.count)
            yield generator.multinomial(self.count, chances, size=min(block, DRAWS - start)).astype(float)

    def sums(self, values: Sequence[float] | Floats) -> Floats:
        """The sum over the rows of each group."""
        return np.bincount(self.numbers, weights=values, minlength=self.count).astype(float)


def mean(values: Sequence[float], groups: Groups, least: float | None = 0.0, most: float | None = 1.0) -> Interval:
    """The 95 % interval of a mean over rows. ``least`` and ``most``: the values that a row can have; None: any, and
    then rows that are all the same leave no width."""
    array = np.asarray(values, dtype=float)
    low, high = reach(float(array.mean()), _means(array, groups), groups.count)
    if least is None or most is None:
        return low, high
    width = most - least
    floor = supported((array - least) / width, groups)
    return max(least, min(low, least + width * floor[0])), min(most, max(high, least + width * floor[1]))


def mean_gain(gains: Sequence[float], groups: Groups, width: float | None = 1.0) -> Interval:
    """The 95 % interval of a mean of differences between two models on the same rows. ``width``: the largest that a row
    can have; None: any."""
    array = np.asarray(gains, dtype=float)
    low, high = reach(float(array.mean()), _means(array, groups), groups.count)
    if width is None:
        return low, high
    floor = supported_gain(array / width, groups)
    return max(-width, min(low, width * floor[0])), min(width, max(high, width * floor[1]))


def supported(values: Floats, groups: Groups, value: float | None = None) -> Interval:
    """Wilson's interval of a figure, from as many rows as the sample is worth. ``values``: 0 to 1, of each row;
    ``value``: the figure, if it is not their mean."""
    rows = worth(values, float(values.mean() * (1 - values.mean())), groups)
    return wilson((float(values.mean()) if value is None else value) * rows, rows)


def supported_gain(gains: Floats, groups: Groups) -> Interval:
    """The same of a difference; ``gains``: -1 to 1, of each row."""
    won, lost = float(np.maximum(gains, 0).mean()), float(np.maximum(-gains, 0).mean())
    rows = worth(gains, won + lost - (won - lost) ** 2, groups)
    return share_difference(won * rows, lost * rows, rows)


def worth(values: Floats, most: float, groups: Groups) -> float:
    """Rows of their own, as different as can be, that would tell as much of the mean as these; at most the rows that
    there are. ``most``: the variance that rows with this mean have if they are as different as can be."""
    rows = len(values)
    if most <= 0:
        return float(groups.count)
    differing = rows - int(np.unique(values, return_counts=True)[1].max())
    trust = differing / (differing + 1)
    variance = trust * float(values.var()) + (1 - trust) * most
    alike = trust * likeness(values, groups) + (1 - trust)
    sizes = np.bincount(groups.numbers, minlength=groups.count)
    more = 1 + (float((sizes**2).sum()) / rows - 1) * alike
    return min(float(rows), rows * most / (variance * more))


def likeness(values: Floats, groups: Groups) -> float:
    """How alike the rows of a group are, 0 (as any two rows) to 1 (the same): the intraclass correlation, by analysis
    of variance."""
    rows, count = len(values), groups.count
    sizes = np.bincount(groups.numbers, minlength=count)
    if count < 2 or count == rows:
        return 1.0 if count < rows else 0.0
    means = groups.sums(values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (count - 1)
    within = float(((values - means[groups.numbers]) ** 2).sum()) / (rows - count)
    size = (rows - float((sizes**2).sum()) / rows) / (count - 1)
    spread = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / spread)) if spread > 0 else 1.0


def reach(value: float, drawn: Floats, count: int) -> Interval:
    """The 95 % interval of a figure, from what it was in each draw of so many groups. One group tells nothing."""
    if count < 2:
        return value - ANYTHING, value + ANYTHING
    quantile = student_95(count - 1) * sqrt(count / (count - 1))
    if count < FEW:
        half = quantile * float(np.std(drawn))
        return value - half, value + half
    tail = 100 * NormalDist().cdf(-quantile)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return min(value, float(low)), max(value, float(high))


def drawn_means(values: Floats, groups: Groups) -> Floats:
    """The mean of each column of ``values``, (rows, columns), in each draw: over the rows that were drawn, as many as
    they are."""
    columns = [np.ones(len(values)), *values.T]
    sums = np.stack([groups.sums(each) for each in columns], axis=1)
    found = np.concatenate([drawn @ sums for drawn in groups.draws(len(columns))])
    return np.asarray(found[:, 1:] / found[:, :1])


def _means(values: Floats, groups: Groups) -> Floats:
    """The same of one column."""
    return np.asarray(drawn_means(values[:, None], groups)[:, 0])
