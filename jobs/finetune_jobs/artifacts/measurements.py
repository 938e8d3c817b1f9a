"""What an evaluation measured, with intervals: written by evaluate into ``metrics.json``, judged by publish."""

from typing import Final

from finetune_api.base import WireModel

CHANCE: Final = 0.05
"""p-value below which a difference is called more than chance."""


class Figure(WireModel):
    """A figure that a sample of rows gave, and its 95 % interval."""

    value: float
    low: float
    high: float


class MeasuredMetric(WireModel):
    """One metric of every model, on the same rows."""

    metric: str
    """accuracy, precision, recall or f1."""
    label: str = ""
    """The class that it is about; empty: all rows."""
    cases: int
    """Rows that it rests on: of a class, those with this label."""
    models: dict[str, Figure]
    """By the name of the model."""


class Difference(WireModel):
    """One metric of a model minus that of another, on the same rows (paired)."""

    metric: str
    label: str = ""
    model: str
    against: str
    estimate: Figure
    p_value: float | None = None
    """Of accuracy: McNemar's exact test."""

    @property
    def worse_beyond_chance(self) -> bool:
        """Whether ``model`` has been shown to be worse: by the exact test where there is one, else by the interval."""
        if self.p_value is not None:
            return self.estimate.value < 0 and self.p_value < CHANCE
        return self.estimate.high < 0

    @property
    def better_beyond_chance(self) -> bool:
        """The opposite of ``worse_beyond_chance``; two models may be neither."""
        if self.p_value is not None:
            return self.estimate.value > 0 and self.p_value < CHANCE
        return self.estimate.low > 0


class Measurements(WireModel):
    """All of them."""

    rows: int
    """Test examples that every model answered."""
    measured: list[MeasuredMetric] = []
    differences: list[Difference] = []

    def of(self, metric: str, label: str = "") -> MeasuredMetric | None:
        """A metric; None if it was not measured."""
        return next((each for each in self.measured if (each.metric, each.label) == (metric, label)), None)

    def difference(self, metric: str, model: str, against: str, label: str = "") -> Difference | None:
        """How two models differ in a metric; None if that was not measured."""
        wanted = (metric, label, model, against)
        return next((d for d in self.differences if (d.metric, d.label, d.model, d.against) == wanted), None)
