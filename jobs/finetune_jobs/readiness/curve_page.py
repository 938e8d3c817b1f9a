"""The learning curve as one HTML page: what was measured, and what more examples would bring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from finetune_jobs.readiness.forecast import Forecast
from finetune_jobs.readiness.learning_curve import LearningCurve
from finetune_jobs.reports import page
from finetune_jobs.reports.charts import Curve
from finetune_jobs.reports.page import Fact, Table, TableRow

TITLE: Final = "What more examples would bring"
_STEPS: Final = 64
"""Places at which the curve is drawn."""


@dataclass(frozen=True)
class Expected:
    """What the curve says of more examples."""

    text: str
    chart: Curve
    table: Table


def render_curve(forecast: Forecast, identity: Sequence[Fact] = ()) -> str:
    """The page. Equal forecasts give equal bytes."""
    measured = Table(
        "Loss per token of the validation part",
        ["training examples", "validation loss"],
        [TableRow(f"{point.examples:,}", [f"{point.error:.4f}"]) for point in forecast.points],
    )
    return page.render(
        "readiness/learning_curve.html.j2",
        TITLE,
        identity,
        verdict=forecast.sentence(),
        measured=measured,
        expected=_expected(forecast, forecast.curve) if forecast.curve else None,
    )


def _expected(forecast: Forecast, curve: LearningCurve) -> Expected:
    sizes = [point.examples for point in curve.points]
    told = sorted({max(sizes), forecast.target, 2 * max(sizes), curve.reach})
    lines = [
        TableRow(f"{point.examples:,}", [f"{point.error:.3g}", f"{point.low:.3g} – {point.high:.3g}"])
        for point in map(curve.predict, told)
    ]
    chart = Curve.of(
        [(point.examples, point.error) for point in curve.points],
        [curve.predict(size) for size in _geometric(min(sizes), curve.reach)],
        f"Learning curve from {len(curve.points)} trainings; the table has its values",
    )
    text = (
        f"Each dot is a training. The curve is a power law fitted to them and extrapolated to {curve.reach:,} examples "
        "(dashed), with a 95 % interval. It holds only for more examples of the same kind."
    )
    return Expected(
        text, chart, Table("Expected validation loss", ["training examples", "loss", "95 % interval"], lines)
    )


def _geometric(first: int, last: int) -> list[int]:
    """Sizes that lie evenly on a logarithmic axis."""
    return sorted({round(first * (last / first) ** (i / _STEPS)) for i in range(_STEPS + 1)})
