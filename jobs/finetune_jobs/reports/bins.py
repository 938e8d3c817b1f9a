"""Counts by size, gathered into the bins of a histogram (pure)."""

from collections import Counter
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final

_MAX_BINS: Final = 40


@dataclass(frozen=True)
class Bins:
    """Equal bins from 0 on; the last one holds everything that is larger, too."""

    width: int
    number: int

    @classmethod
    def of(cls, histogram: Counter[int], limit: int) -> "Bins":
        """Bins for all cases, and for ``limit`` where it is not far away. A long tail is gathered in the last bin."""
        end = min(max(histogram), 3 * quantile(histogram, 0.99))
        if limit <= 2 * end:
            end = max(end, limit)
        width = max(1, ceil(nice((end + 1) / _MAX_BINS)))
        return cls(width, end // width + 1)

    @property
    def end(self) -> int:
        """The first number beyond the last bin."""
        return self.width * self.number

    def gathered(self, histogram: Counter[int]) -> int:
        """Cases that stand in the last bin though they are larger."""
        return sum(count for value, count in histogram.items() if value >= self.end)

    def counts(self, histogram: Counter[int]) -> list[int]:
        """Cases in every bin."""
        counts = [0] * self.number
        for value, count in histogram.items():
            counts[min(value // self.width, self.number - 1)] += count
        return counts


def quantile(histogram: Counter[int], share: float) -> int:
    """The smallest number such that ``share`` of all cases are not above it (nearest rank). Not for an empty one."""
    rank, seen = share * histogram.total(), 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen >= rank:
            return value
    raise ValueError("an empty histogram has no quantile")


def nice(number: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(number))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number * (1 - 1e-9))
