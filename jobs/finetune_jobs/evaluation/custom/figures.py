"""What a metric container's report amounts to: figures with intervals, and differences between models. Pure functions.

A report gives a score for each answer, or a mean with its standard error. Both come down to the same three numbers:
mean, standard deviation and count. Where the least and the most possible value are known, four imaginary cases are
added to an interval, two at each end, as Agresti and Coull (1998) do for a share (``estimates`` does the same): nine
perfect answers of nine prove no perfection. They never count for a value. Without such a range the interval is
Student's: few cases say little of how far apart they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Final

from finetune_api.custom_metrics import (
    FigureRule,
    MetricRun,
    MetricsReport,
    ModelFigure,
    ReportedFigure,
    custom_name,
    offered_figures,
)
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.measurements import Difference, Figure, MeasuredMetric
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.behaviour.paired import Interval, square_and_add, student_95
from finetune_jobs.evaluation.clusters import ANYTHING, Groups, mean, mean_gain
from finetune_jobs.evaluation.estimates import IMAGINARY
from finetune_jobs.evaluation.grouped import widened
from finetune_jobs.evaluation.metrics import Z_95

ARTIFACT: Final = "artifact"


@dataclass(frozen=True)
class CustomMeasured:
    """What one container measured."""

    measured: list[MeasuredMetric]
    differences: list[Difference]
    """Of the artifact against every other model that was measured."""


def taken(run: MetricRun, report: MetricsReport, models: Sequence[str], answers: Sequence[str]) -> CustomMeasured:
    """The figures of a report of an evaluation of these ``models``. ``answers``: of each, the group of rows that are
    alike to which it belongs, empty where it stands for itself.

    Raises StageError (MetricFailed) for one that is missing, twice there, not listed, or out of its range.
    """
    place, seen = f"metrics.json of metric {run.name!r}", set[tuple[str, str]]()
    for each in report.measured:
        _require_listed(place, run, each)
        if (each.figure, each.part) in seen:
            raise StageError(Reason.METRIC_FAILED, f"{place} has {_named(each)} twice.")
        seen.add((each.figure, each.part))
        _require_models(place, each, models)
        for model, figure in each.models.items():
            _require_possible(f"{place}: {_named(each)} of {model}", figure, run.figures[each.figure], len(answers))
    reported = {figure for figure, _ in seen}
    if missing := [name for name, rule in sorted(run.figures.items()) if not rule.optional and name not in reported]:
        raise StageError(Reason.METRIC_FAILED, f"{place} lacks {', '.join(missing)}, which the platform's values list.")
    groups = Groups.of(answers)
    measured = [_measured(run, each, groups) for each in report.measured]
    differences = [
        _difference(run, each, against, groups)
        for each in report.measured
        for against in each.models
        if against != ARTIFACT
    ]
    return CustomMeasured(measured, differences)


def _require_listed(place: str, run: MetricRun, each: ReportedFigure) -> None:
    if each.figure not in run.figures:
        known = offered_figures(run.figures)
        raise StageError(
            Reason.METRIC_FAILED,
            f"{place} reports {shorten(each.figure)!r}, which the platform's values do not list for it; they list: "
            f"{known}.",
        )


def _require_models(place: str, each: ReportedFigure, models: Sequence[str]) -> None:
    if ARTIFACT not in each.models:
        raise StageError(Reason.METRIC_FAILED, f"{place}: {_named(each)} is not of the artifact.")
    if unknown := [name for name in each.models if name not in models]:
        raise StageError(
            Reason.METRIC_FAILED,
            f"{place}: {_named(each)} is of {shorten(unknown[0])!r}, which is none of the models that answered: "
            f"{', '.join(models)}.",
        )


def _require_possible(place: str, figure: ModelFigure, rule: FigureRule, answers: int) -> None:
    if figure.scores and len(figure.scores) != answers:
        raise StageError(
            Reason.METRIC_FAILED, f"{place} has {len(figure.scores):,} scores for {answers:,} lines of answers.jsonl."
        )
    given = figure.scores or [each for each in (figure.value,) if each is not None]
    least, most = rule.minimum, rule.maximum
    for value in given:
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"{'any' if least is None else f'{least:g}'} to {'any' if most is None else f'{most:g}'}"
            raise StageError(Reason.METRIC_FAILED, f"{place} is {value:g}, outside its range, {bounds}.")


def _named(each: ReportedFigure) -> str:
    return f"{each.figure} of {shorten(each.part)!r}" if each.part else each.figure


@dataclass(frozen=True)
class _Sample:
    """What is known of the cases that a figure rests on."""

    mean: float
    deviation: float
    """Standard deviation of the cases (of the sample)."""
    n: int

    @classmethod
    def of(cls, figure: ModelFigure) -> "_Sample":
        """Of scores, or of a mean and its standard error."""
        if figure.scores:
            return cls.of_scores(figure.scores)
        n = figure.n or 1
        return cls(figure.value or 0.0, (figure.standard_error or 0.0) * sqrt(n), n)

    @classmethod
    def of_scores(cls, scores: Sequence[float]) -> "_Sample":
        """Of the scores of a model, or of their differences."""
        return cls(fmean(scores), stdev(scores) if len(scores) > 1 else 0.0, len(scores))

    def interval(self, low: float | None, high: float | None, rows: float = IMAGINARY) -> Interval:
        """The 95 % interval of the mean: with half of the imaginary cases at each end of the range, if it has two, or
        Student's, of which one case tells nothing."""
        if low is None or high is None:
            half = student_95(self.n - 1) * self.deviation / sqrt(self.n) if self.n > 1 else ANYTHING
            return self.mean - half, self.mean + half
        n = self.n + rows
        mean = (self.n * self.mean + rows * (low + high) / 2) / n
        squares = (self.n - 1) * self.deviation**2 + self.n * self.mean**2 + rows * (low**2 + high**2) / 2
        half = Z_95 * sqrt(max(0.0, squares / n - mean**2) / n)
        return mean - half, mean + half


def _figure(figure: ModelFigure, rule: FigureRule, groups: Groups | None) -> Figure:
    """The value with its 95 % interval; a value that comes without any measure of its error stands alone. What comes
    without scores says nothing of ``groups``."""
    if figure.low is not None and figure.high is not None:
        return Figure(value=figure.value or 0.0, low=figure.low, high=figure.high)
    sample = _Sample.of(figure)
    if not figure.scores and figure.standard_error is None:
        return Figure(value=sample.mean, low=sample.mean, high=sample.mean)
    found = _within(sample.mean, sample.interval(rule.minimum, rule.maximum), rule.minimum, rule.maximum)
    if not groups or not figure.scores:
        return found
    return _widened(found, mean(figure.scores, groups, rule.minimum, rule.maximum), rule.minimum, rule.maximum)


def _within(value: float, interval: Interval, least: float | None, most: float | None) -> Figure:
    low = interval[0] if least is None else max(least, interval[0])
    high = interval[1] if most is None else min(most, interval[1])
    return Figure(value=value, low=min(value, low), high=max(value, high))


def _widened(figure: Figure, interval: Interval, least: float | None, most: float | None) -> Figure:
    return widened(figure, interval, least=-inf if least is None else least, most=inf if most is None else most)


def _measured(run: MetricRun, each: ReportedFigure, groups: Groups | None) -> MeasuredMetric:
    rule, own = run.figures[each.figure], each.models[ARTIFACT]
    return MeasuredMetric(
        metric=custom_name(run.name, each.figure),
        label=each.part,
        cases=len(own.scores) or own.n or 1,
        groups=groups.count if groups and own.scores else 0,
        models={model: _figure(figure, rule, groups) for model, figure in each.models.items()},
    )


def _difference(run: MetricRun, each: ReportedFigure, against: str, groups: Groups | None) -> Difference:
    """Artifact minus another model: paired where both have a score for each answer. Otherwise as of two samples, which
    is too wide where the same cases were easy for both."""
    rule, own, other = run.figures[each.figure], each.models[ARTIFACT], each.models[against]
    width = None if rule.minimum is None or rule.maximum is None else rule.maximum - rule.minimum
    least, most = (None, None) if width is None else (-width, width)
    if own.scores and other.scores:
        gains = [mine - theirs for mine, theirs in zip(own.scores, other.scores, strict=True)]
        sample = _Sample.of_scores(gains)
        # Of four tosses of a coin for each model, two differ: Agresti and Min (2005).
        estimate = _within(sample.mean, sample.interval(least, most, IMAGINARY / 2), least, most)
        if groups:
            estimate = _widened(estimate, mean_gain(gains, groups, width), least, most)
    else:
        estimate = square_and_add(_figure(own, rule, groups), _figure(other, rule, groups))
    return Difference(
        metric=custom_name(run.name, each.figure),
        label=each.part,
        model=ARTIFACT,
        against=against,
        estimate=estimate,
        lower_is_better=not rule.higher_is_better,
    )
