"""Differences between two models on the same items, with 95 % intervals. Pure functions."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Final

from finetune_jobs.artifacts.measurements import Figure
from finetune_jobs.evaluation.metrics import Z_95

Interval = tuple[float, float]
_FIRST: Final = {1: 12.706, 2: 4.303}


def share_difference(wins: float, losses: float, samples: float) -> Interval:
    """Interval of the share that the second model has right, minus that of the first.

    Half an imaginary item is added to each of the four cells (right or wrong, twice), so that the interval has a width
    also where no item differs (Agresti and Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24, 2005). Raises ValueError without items.
    """
    if not samples:
        raise ValueError("no items to compare")
    only_second, only_first, total = wins + 0.5, losses + 0.5, samples + 2
    centre = (only_second - only_first) / total
    half = Z_95 * sqrt(only_second + only_first - total * centre**2) / total
    value = (wins - losses) / samples
    return min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half))


def square_and_add(first: Figure, second: Figure, correlation: float = 0.0) -> Figure:
    """The first figure minus the second, with the interval that follows from those of both (Newcombe, "Improved
    confidence intervals for the difference between binomial proportions based on paired data", Statistics in Medicine
    17, 1998, method 10). ``correlation``: of the two figures from sample to sample (Zou, "Toward using confidence
    intervals to compare correlations", Psychological Methods 12, 2007); 0 for different samples."""
    value = first.value - second.value

    def reach(mine: float, theirs: float) -> float:
        return sqrt(max(0.0, mine**2 + theirs**2 - 2 * correlation * mine * theirs))

    low = reach(first.value - first.low, second.high - second.value)
    high = reach(first.high - first.value, second.value - second.low)
    return Figure(value=value, low=value - low, high=value + high)


def mean_difference(differences: Sequence[float]) -> Interval:
    """Student's interval of the mean of differences. Raises ValueError for fewer than two."""
    if len(differences) < 2:
        raise ValueError("an interval needs two differences or more")
    centre = fmean(differences)
    half = student_95(len(differences) - 1) * stdev(differences) / sqrt(len(differences))
    return centre - half, centre + half


def student_95(freedom: int) -> float:
    """Quantile of Student's distribution for a two-sided 95 % interval, by Cornish and Fisher's expansion (Abramowitz
    and Stegun, 26.7.5): within 1 % from three degrees of freedom, where a table has 3.18; the first two as there."""
    if freedom in _FIRST:
        return _FIRST[freedom]
    z, n = Z_95, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
