"""Charts as inline SVG that need no script: places along the width are percentages, so that text keeps its size.

Numbers and the names of parts come in, nothing else: no text of the data set is ever drawn here.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor, log, log10
from typing import Final

from finetune_jobs.readiness.checklist import quantile
from finetune_jobs.readiness.learning_curve import LearningCurve

_MAX_BINS: Final = 40
_PANEL: Final = 84
"""Height of a histogram in pixels."""
_CURVE: Final = 260
_TICKS: Final = 4
_STEPS: Final = 32
"""Places at which a curve is drawn, before and after the largest measured size."""
_MARGIN: Final = 3.0
"""Free space left and right of a curve, in percent of the width."""


class Kind(StrEnum):
    """What a mark stands for; the style sheet gives it a colour."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    LOST = "lost"
    ASIDE = "aside"


@dataclass(frozen=True)
class Segment:
    """A piece of a bar; shares are of the bar's full width, 0 to 1."""

    kind: Kind
    share: float
    begin: float | None = None
    """Where it begins; None: where the one before ends."""


def bar(segments: Iterable[Segment]) -> str:
    """One horizontal bar. It repeats numbers that stand beside it as text, and is hidden from screen readers."""
    rects, end = ['<rect class="track" width="100%" height="100%"/>'], 0.0
    for segment in segments:
        begin = end if segment.begin is None else segment.begin
        end = begin + segment.share
        if segment.share > 0:
            x, width = _percent(begin), _percent(segment.share)
            rects.append(f'<rect class="{segment.kind}" x="{x}" width="{width}" height="100%"/>')
    return f'<svg class="bar" aria-hidden="true">{"".join(rects)}</svg>'


def swatch(kind: Kind) -> str:
    """The colour of a kind, for a key."""
    return f'<svg aria-hidden="true"><rect class="{kind}" width="100%" height="100%"/></svg>'


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
        width = max(1, ceil(_nice((end + 1) / _MAX_BINS)))
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


def histogram(counts: Counter[int], bins: Bins, kind: Kind, limit: int, description: str) -> str:
    """How many examples have how many tokens, with ``limit`` as a line; its height is that of the fullest bin."""
    heights = bins.counts(counts)
    top = max(1, *heights)
    wide = 100 / bins.number
    rects = "".join(
        f'<rect class="{kind}" x="{i * wide:.2f}%" width="{wide * 0.9:.2f}%" '
        f'y="{_PANEL * (1 - height / top):.1f}" height="{_PANEL * height / top:.1f}"/>'
        for i, height in enumerate(heights)
        if height
    )
    return (
        f'<svg role="img" aria-label="{description}" height="{_PANEL + 22}">{rects}'
        f'<line class="axis" x1="0" x2="100%" y1="{_PANEL}" y2="{_PANEL}"/>'
        f"{_token_axis(bins)}{_limit_line(bins, limit)}</svg>"
    )


def _token_axis(bins: Bins) -> str:
    step = max(1, ceil(_nice(bins.end / _TICKS)))
    ticks = []
    for value in range(0, bins.end + 1, step):
        place = value / bins.end
        ticks.append(_text(f"{value:,}", place, _PANEL + 16))
    return "".join(ticks)


def _limit_line(bins: Bins, limit: int) -> str:
    if limit > bins.end:
        return ""
    x = _percent(limit / bins.end)
    return f'<line class="limit" x1="{x}" x2="{x}" y1="0" y2="{_PANEL}"/>'


def learning_curve(curve: LearningCurve, description: str) -> str:
    """Measured points, the curve through them, its 95 % interval, and beyond the largest size the extrapolation."""
    smallest = min(point.examples for point in curve.points)
    largest = max(point.examples for point in curve.points)
    sizes = _geometric(smallest, curve.reach, 2 * _STEPS)
    predictions = [curve.predict(size) for size in sizes]
    floor_, top, step = _scale(
        [*(p.low for p in predictions), *(p.high for p in predictions), *(p.error for p in curve.points)]
    )

    def x(examples: float) -> float:
        return _MARGIN + (100 - 2 * _MARGIN) * log(examples / smallest) / log(curve.reach / smallest)

    def y(error: float) -> float:
        return 20 + (_CURVE - 20) * (1 - (error - floor_) / (top - floor_))

    decimals = max(0, -floor(log10(step)))
    upper = [(x(p.examples), y(p.high)) for p in predictions]
    lower = [(x(p.examples), y(p.low)) for p in reversed(predictions)]
    measured = [(x(p.examples), y(p.error)) for p in predictions if p.examples <= largest]
    beyond = [(x(p.examples), y(p.error)) for p in predictions if p.examples >= largest]
    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="0" y="{y(value) - 4:.1f}">{value:.{decimals}f}</text>'
        for value in (floor_ + i * step for i in range(round((top - floor_) / step) + 1))
    )
    dots = "".join(
        f'<circle class="train" cx="{x(p.examples):.2f}%" cy="{y(p.error):.1f}" r="4"/>' for p in curve.points
    )
    return (
        f'<svg role="img" aria-label="{description}" height="{_CURVE + 22}">{grid}'
        f'<svg viewBox="0 0 100 {_CURVE}" preserveAspectRatio="none" height="{_CURVE}">'
        f'<path class="band" d="{_path([*upper, *lower])}Z"/><path class="curve" d="{_path(measured)}"/>'
        f'<path class="curve beyond" d="{_path(beyond)}"/></svg>{dots}'
        f"{''.join(_text(f'{size:,}', x(size) / 100, _CURVE + 18) for size in (smallest, largest, curve.reach))}</svg>"
    )


def _geometric(first: int, last: int, steps: int) -> list[int]:
    return sorted({round(first * (last / first) ** (i / steps)) for i in range(steps + 1)})


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Round ends of an axis for all values, and the distance of its grid lines."""
    low, high = min(values), max(values)
    step = _nice((high - low or high or 1.0) / _TICKS)
    return floor(low / step) * step, (floor(high / step) + 1) * step, step


def _nice(number: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(number))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number * (1 - 1e-9))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _text(text: str, place: float, y: float) -> str:
    """A label below ``place`` (0 to 1 of the width) that does not leave the chart."""
    anchor = "start" if place < 0.05 else "end" if place > 0.95 else "middle"
    return f'<text x="{_percent(place)}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _percent(share: float) -> str:
    return f"{share * 100:.2f}%"
