"""The geometry of charts, which ``reports/charts.html.j2`` draws as inline SVG.

Places along the width are shares of it (0 to 1), so that text keeps its size on every screen; heights are pixels.
Numbers come in, nothing else: no text of the data set is ever drawn.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor, log, log10
from typing import Final, NamedTuple, Protocol

from finetune_jobs.reports.bins import Bins, nice

_PANEL: Final = 84
"""Height of a histogram."""
_CURVE: Final = 260
_TICKS: Final = 4
_DOTS: Final = 40
"""Most points of a line that are marked with dots."""
_MARGIN: Final = 0.03
"""Free space left and right of a curve."""


class Kind(StrEnum):
    """What a mark stands for. The style sheet gives it a colour and a lightness, some have a texture, too: whoever
    sees no colours, or prints in grey, tells neighbours apart."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    LOST = "lost"
    ASIDE = "aside"
    SCORE = "score"

    @property
    def texture(self) -> str:
        """Id of the pattern that is drawn over the colour; empty: none."""
        return {Kind.VALIDATION: "stripes", Kind.TEST: "dots"}.get(self, "")


@dataclass(frozen=True)
class Segment:
    """A piece of a bar; shares are of the bar's full width."""

    kind: Kind
    share: float
    begin: float | None = None
    """Where it begins; None: where the one before ends."""


class Mark(NamedTuple):
    """A segment at its place."""

    kind: Kind
    begin: float
    share: float


@dataclass(frozen=True)
class Bar:
    """One horizontal bar. It repeats numbers that stand beside it as text, and is hidden from screen readers."""

    segments: Sequence[Segment]
    interval: tuple[float, float] | None = None
    """Ends of an error bar."""

    @property
    def marks(self) -> list[Mark]:
        """The segments that can be seen, one after the other."""
        marks, end = [], 0.0
        for segment in self.segments:
            begin = end if segment.begin is None else segment.begin
            end = begin + segment.share
            if segment.share > 0:
                marks.append(Mark(segment.kind, begin, segment.share))
        return marks

    @property
    def borders(self) -> list[float]:
        """Where two segments meet."""
        marks = self.marks
        return [mark.begin for mark in marks[1:]]


class Tick(NamedTuple):
    """A label of an axis."""

    text: str
    place: float

    @property
    def anchor(self) -> str:
        """So that the label does not leave the chart."""
        return "start" if self.place < 0.05 else "end" if self.place > 0.95 else "middle"


class Column(NamedTuple):
    """A bin of a histogram."""

    begin: float
    width: float
    top: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """How many examples have how many tokens; its height is that of the fullest bin."""

    kind: Kind
    caption: str
    description: str
    """For screen readers."""
    columns: Sequence[Column]
    ticks: Sequence[Tick]
    limit: float | None
    """Where a line marks the most tokens; None: too far away."""
    height: int = _PANEL

    @classmethod
    def of(
        cls, counts: Counter[int], bins: Bins, kind: Kind, limit: int, caption: str, description: str
    ) -> "Histogram":
        """The histogram of ``counts``, with ``limit`` as a line."""
        heights = bins.counts(counts)
        top, wide = max(1, *heights), 1 / bins.number
        columns = [
            Column(i * wide, wide * 0.9, _PANEL * (1 - height / top), _PANEL * height / top)
            for i, height in enumerate(heights)
            if height
        ]
        step = max(1, ceil(nice(bins.end / _TICKS)))
        ticks = [Tick(f"{value:,}", value / bins.end) for value in range(0, bins.end + 1, step)]
        return cls(kind, caption, description, columns, ticks, limit / bins.end if limit <= bins.end else None)


class Estimate(Protocol):
    """An error to expect with so many examples, and the ends of its interval."""

    @property
    def examples(self) -> int: ...
    @property
    def error(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class GridLine(NamedTuple):
    """A horizontal line with its value."""

    text: str
    y: float


class Dot(NamedTuple):
    """A measured point."""

    place: float
    y: float


@dataclass(frozen=True)
class Curve:
    """Measured points, the curve through them, its interval, and beyond the largest size the extrapolation.

    The paths are in units of a hundredth of the width.
    """

    description: str
    grid: Sequence[GridLine]
    dots: Sequence[Dot]
    ticks: Sequence[Tick]
    band: str
    measured: str
    beyond: str
    height: int = _CURVE

    @classmethod
    def of(cls, points: Sequence[tuple[int, float]], expected: Sequence[Estimate], description: str) -> "Curve":
        """``points``: examples and error of each training; ``expected``: estimates from the smallest of these sizes to
        beyond the largest, in order, on a logarithmic axis."""
        smallest, largest = min(size for size, _ in points), max(size for size, _ in points)
        reach = expected[-1].examples
        ends = [value for each in expected for value in (each.low, each.high)]
        bottom, top, step = _scale([*ends, *(error for _, error in points)])

        def x(examples: float) -> float:
            return _MARGIN + (1 - 2 * _MARGIN) * log(examples / smallest) / log(reach / smallest)

        def y(error: float) -> float:
            return 20 + (_CURVE - 20) * (1 - (error - bottom) / (top - bottom))

        upper = [(x(each.examples), y(each.high)) for each in expected]
        lower = [(x(each.examples), y(each.low)) for each in reversed(expected)]
        return cls(
            description=description,
            grid=_grid(bottom, top, step, y),
            dots=[Dot(x(size), y(error)) for size, error in points],
            ticks=[Tick(f"{size:,}", x(size)) for size in (smallest, largest, reach)],
            band=f"{_path([*upper, *lower])}Z",
            measured=_path([(x(each.examples), y(each.error)) for each in expected if each.examples <= largest]),
            beyond=_path([(x(each.examples), y(each.error)) for each in expected if each.examples >= largest]),
        )


@dataclass(frozen=True)
class Line:
    """One measure over the steps of a training: a line, and dots where it has few points."""

    kind: Kind
    path: str
    """In units of a hundredth of the width."""
    dots: Sequence[Dot]


@dataclass(frozen=True)
class LineChart:
    """Measures over the steps of a training, on one scale."""

    description: str
    """For screen readers."""
    grid: Sequence[GridLine]
    lines: Sequence[Line]
    ticks: Sequence[Tick]
    height: int = _CURVE

    @classmethod
    def of(cls, series: Mapping[Kind, Sequence[tuple[float, float]]], description: str) -> "LineChart":
        """``series``: steps and values of each measure, in order; at least one has a point."""
        points = [point for each in series.values() for point in each]
        last = max(1.0, *(step for step, _ in points))
        bottom, top, distance = _scale([value for _, value in points])

        def place(step: float) -> float:
            return _MARGIN + (1 - 2 * _MARGIN) * step / last

        def y(value: float) -> float:
            return 20 + (_CURVE - 20) * (1 - (value - bottom) / (top - bottom))

        lines = [
            Line(
                kind,
                _path([(place(step), y(value)) for step, value in each]),
                [Dot(place(step), y(value)) for step, value in each] if len(each) <= _DOTS else [],
            )
            for kind, each in series.items()
            if each
        ]
        ticks = [Tick(f"step {step:,}", place(step)) for step in sorted({0, round(last / 2), round(last)})]
        return cls(description, _grid(bottom, top, distance, y), lines, ticks)


def _grid(bottom: float, top: float, distance: float, y: Callable[[float], float]) -> list[GridLine]:
    decimals = max(0, -floor(log10(distance)))
    values = (bottom + i * distance for i in range(round((top - bottom) / distance) + 1))
    return [GridLine(f"{value:.{decimals}f}", y(value)) for value in values]


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Round ends of an axis for all values, and the distance of its grid lines."""
    low, high = min(values), max(values)
    step = nice((high - low or high or 1.0) / _TICKS)
    return floor(low / step) * step, (floor(high / step) + 1) * step, step


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x * 100:.2f} {y:.2f}" for x, y in points)
