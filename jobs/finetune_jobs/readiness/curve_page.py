"""The learning curve as one HTML page: what was measured, and what more examples would bring."""

from typing import Final

from finetune_jobs.readiness import charts
from finetune_jobs.readiness.document import TableRow, document, section, sentences, table
from finetune_jobs.readiness.forecast import Forecast
from finetune_jobs.readiness.learning_curve import LearningCurve

TITLE: Final = "What more examples would bring"


def render_curve(forecast: Forecast) -> str:
    """The page. Equal forecasts give equal bytes."""
    header = f'<p class="verdict">{sentences(forecast.sentence())}</p>\n'
    measured = [TableRow(f"{point.examples:,}", [f"{point.error:.4f}"]) for point in forecast.points]
    text = (
        "Each line is a training of its own with the same recipe, on a part of the examples that holds the smaller "
        "ones. The last one is the training whose weights were kept."
    )
    head = ["training examples", "validation loss"]
    sections = [section("Measured", f"<p>{text}</p>\n{table('Loss per token of the validation part', head, measured)}")]
    if forecast.curve:
        sections.append(_expected(forecast, forecast.curve))
    return document(TITLE, header, sections)


def _expected(forecast: Forecast, curve: LearningCurve) -> str:
    largest = forecast.points[-1].examples
    sizes = sorted({largest, forecast.target, 2 * largest, curve.reach})
    lines = [
        TableRow(f"{point.examples:,}", [f"{point.error:.3g}", f"{point.low:.3g} – {point.high:.3g}"])
        for point in map(curve.predict, sizes)
    ]
    text = (
        f"The dots are the trainings. The power law through them is what it says of up to {curve.reach:,} examples "
        "(dashed), with a 95 % interval. It holds for more examples of the same kind only."
    )
    chart = charts.learning_curve(curve, f"Learning curve from {len(curve.points)} trainings; the table has its values")
    expected = table("Expected validation loss", ["training examples", "loss", "95 % interval"], lines)
    return section("Expected", f"<p>{sentences(text)}</p>\n<figure>{chart}</figure>\n{expected}")
