"""Are more examples worth it? What a learning curve says of the validation loss, and when it says nothing (pure)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from finetune_jobs.readiness.learning_curve import MIN_SIZES, NOISE, LearningCurve, Point, Prediction, fit

WORTHWHILE: Final = 0.05
"""Fall of the validation loss, as a share of it, that more examples should bring (own judgement): the eye sees less in
the loss, but hardly anything in the answers."""


class Worth(StrEnum):
    """Whether more examples of the same kind pay."""

    WORTH_IT = "WorthIt"
    HARDLY_WORTH_IT = "HardlyWorthIt"
    UNCERTAIN = "Uncertain"
    """They should pay, but the interval includes no gain at all."""
    UNKNOWN = "Unknown"
    """No curve fits the measurements."""


_IN_WORDS: Final = {
    Worth.WORTH_IT: "worth it",
    Worth.HARDLY_WORTH_IT: "hardly worth it",
    Worth.UNCERTAIN: "the interval is too wide to say whether that is worth it",
}


@dataclass(frozen=True)
class Forecast:
    """Measurements, and what they predict for more examples."""

    points: tuple[Point, ...]
    """Examples trained on and the validation loss, the smallest first; the last one is the training of all examples."""
    curve: LearningCurve | None
    """None where none can be drawn."""
    why_not: str
    """Why none can; empty where one is."""
    aside: int
    """Training examples that a pilot left aside."""

    @property
    def target(self) -> int:
        """The number of examples that the forecast is about: with a pilot all that there are, otherwise twice as many
        as were trained on; in any case no more than the curve speaks of."""
        trained = self.points[-1].examples
        wanted = trained + self.aside if self.aside else 2 * trained
        return min(wanted, self.curve.reach) if self.curve else wanted

    @property
    def prediction(self) -> Prediction | None:
        """The validation loss with ``target`` examples."""
        return self.curve.predict(self.target) if self.curve else None

    @property
    def worth(self) -> Worth:
        """The verdict: more examples should make the loss fall by WORTHWHILE, and the whole interval below today's."""
        expected = self.prediction
        if expected is None:
            return Worth.UNKNOWN
        measured = self.points[-1].error
        if expected.error > measured * (1 - WORTHWHILE):
            return Worth.HARDLY_WORTH_IT
        return Worth.WORTH_IT if expected.high < measured else Worth.UNCERTAIN

    def sentence(self) -> str:
        """For the status."""
        expected = self.prediction
        if expected is None:
            return f"No forecast for more examples: {self.why_not}"
        return (
            f"{self._amount()} would bring the validation loss from {self.points[-1].error:.3g} to "
            f"{expected.error:.3g} (95 % interval {expected.low:.3g} to {expected.high:.3g}): {_IN_WORDS[self.worth]}."
        )

    def _amount(self) -> str:
        trained = self.points[-1].examples
        if not self.aside:
            return f"Twice the examples ({self.target:,})"
        if self.target == trained + self.aside:
            return f"All {self.target:,} examples (the pilot used {trained:,})"
        return f"{self.target:,} of the {trained + self.aside:,} examples (the limit of the curve)"

    def scalars(self) -> dict[str, str]:
        """The stage's scalars, as docs/reference/stages.md names them."""
        expected = self.prediction
        figures = {"forecastExamples": str(self.target), "forecastLoss": f"{expected.error:.4f}"} if expected else {}
        return {"moreExamples": self.worth.value} | figures

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        law = asdict(self.curve.best) if self.curve else None
        expected = self.prediction
        return {
            "measure": "validationLoss",
            "points": [{"examples": p.examples, "validationLoss": p.error} for p in self.points],
            "law": law,
            "forecast": asdict(expected) if expected else None,
            "moreExamples": self.worth.value,
            "sentence": self.sentence(),
        }


def forecast(points: Sequence[Point], aside: int = 0) -> Forecast:
    """What ``points`` say; ``aside`` are training examples that a pilot left aside. Not for no points at all.

    There is no forecast where too few sizes were measured, and where the loss does not fall with more examples by more
    than chance moves it (NOISE): a power law through such points would be an invention.
    """
    ordered = tuple(sorted(points, key=lambda point: point.examples))
    why_not = _why_unusable(ordered)
    return Forecast(ordered, None if why_not else fit(ordered), why_not, aside)


def _why_unusable(points: Sequence[Point]) -> str:
    """Why no curve fits the points; empty if one does."""
    sizes = {point.examples for point in points}
    if len(sizes) < MIN_SIZES:
        measured = "only one size was" if len(sizes) == 1 else f"only {len(sizes)} sizes were"
        return f"{measured} measured; a curve needs {MIN_SIZES}."
    told = ", ".join(f"{point.error:.3g} with {point.examples:,}" for point in points)
    rises = any(after.error > before.error * (1 + NOISE) for before, after in pairwise(points))
    if rises or points[-1].error > points[0].error * (1 - NOISE):
        return (
            f"the validation loss does not fall steadily ({told}). A larger validation part gives a more reliable loss."
        )
    return ""
