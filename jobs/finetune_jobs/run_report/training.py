"""How the losses went, from the ``train_log.jsonl`` of a training (pure)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

from finetune_jobs.reports.charts import Kind, LineChart
from finetune_jobs.reports.page import Fact, Table, TableRow

_POINTS: Final = 200
"""Most points of a line: a training may have a hundred thousand steps, and a page a thousand pixels."""
_ROWS: Final = 12
"""Most validations in the table."""
_NAMES: Final = {Kind.TRAIN: "training loss", Kind.VALIDATION: "validation loss"}
_FACTS: Final = {
    "steps": "Steps",
    "tokens": "Tokens trained",
    "trainableParameters": "Trainable parameters",
    "learningRate": "Learning rate",
    "trainLoss": "Final training loss",
    "validationLoss": "Best validation loss",
}
"""Scalars of the stage, and their names."""
_COUNTS: Final = ("steps", "tokens", "trainableParameters")

Points = list[tuple[float, float]]
"""Steps and values, in order."""


@dataclass(frozen=True)
class History:
    """The losses of a training."""

    training: Points = field(default_factory=list)
    validation: Points = field(default_factory=list)

    @classmethod
    def read(cls, log: bytes) -> "History":
        """From the lines of the log. A line that is none, or a loss that is no number, is left out: the rest is shown
        all the same."""
        history = cls()
        for line in log.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            for name, points in (("loss", history.training), ("eval_loss", history.validation)):
                if (point := _point(entry, name)) is not None:
                    points.append(point)
        return history


@dataclass(frozen=True)
class TrainingSection:
    """The section about the training."""

    facts: Sequence[Fact]
    chart: LineChart | None = None
    """None: no loss is known."""
    names: Mapping[Kind, str] = field(default_factory=dict)
    text: str = ""
    table: Table | None = None


def training_section(history: History, scalars: Mapping[str, str]) -> TrainingSection:
    """Both losses over the steps, and the table of what is drawn; ``scalars`` are those of the stage."""
    facts = [Fact(name, [_shown(key, scalars[key])]) for key, name in _FACTS.items() if scalars.get(key)]
    if not history.training and not history.validation:
        return TrainingSection(facts)
    width = -(-len(history.training) // _POINTS)
    series = {Kind.TRAIN: thinned(history.training, width), Kind.VALIDATION: history.validation[-_POINTS:]}
    rows = _rows(history)
    each = f"Each point of the training loss is the mean of {width:,} steps." if width > 1 else ""
    text = (
        f"Loss per token of the answers. {each} If the validation loss rises while the training loss falls, the model "
        "memorises the examples (overfitting). The weights with the lowest validation loss were kept."
    )
    described = "Training and validation loss over the steps; the table has values"
    table = Table("Losses at each validation", ["step", "training (mean since the last)", "validation"], rows)
    return TrainingSection(facts, LineChart.of(series, described), _NAMES, text, table if rows else None)


def thinned(points: Sequence[tuple[float, float]], width: int) -> Points:
    """The mean of every ``width`` points that follow each other, at the last step of them."""
    groups = [points[begin : begin + width] for begin in range(0, len(points), max(1, width))]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _rows(history: History) -> list[TableRow]:
    rows: list[TableRow] = []
    before = 0.0
    for step, value in history.validation:
        since = [loss for at, loss in history.training if before < at <= step]
        mean = f"{sum(since) / len(since):.4f}" if since else "–"
        rows.append(TableRow(f"{step:,.0f}", [mean, f"{value:.4f}"]))
        before = step
    if len(rows) <= _ROWS:
        return rows
    shown = sorted({round(place * (len(rows) - 1) / (_ROWS - 1)) for place in range(_ROWS)})
    return [rows[place] for place in shown]


def _point(entry: Any, name: str) -> tuple[float, float] | None:
    if not isinstance(entry, dict):
        return None
    step, value = entry.get("step"), entry.get(name)
    if not isinstance(step, int | float) or not isinstance(value, int | float) or not isfinite(step):
        return None
    return (float(step), float(value)) if isfinite(value) else None


def _shown(key: str, value: str) -> str:
    return f"{int(value):,}" if key in _COUNTS and value.isdecimal() else value
