"""What an evaluation measured, where its rows stand in groups that are alike: every interval holds the one that takes
each row for itself and the one over the groups (``clusters``). Values stay. Pure functions, no model.

No exact test decides here: McNemar's takes each row for itself, so that ten rows of one supplier would be ten proofs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from finetune_api.dataset import TaskType
from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import Difference, Figure, MeasuredMetric, Measurements
from finetune_jobs.evaluation.behaviour.paired import Interval
from finetune_jobs.evaluation.classes import Coded
from finetune_jobs.evaluation.clusters import (
    Floats,
    Groups,
    Mask,
    Numbers,
    drawn_means,
    mean,
    reach,
    supported,
    supported_gain,
)
from finetune_jobs.evaluation.estimates import METRICS, metrics_of, ratios, row_values

_NOT_OF_ROWS: Final = (Metric.PERPLEXITY,)
"""``texts`` knows their groups itself."""


@dataclass(frozen=True)
class Answered:
    """What was asked, and what each model said."""

    task: TaskType
    truth: Sequence[str]
    answers: Mapping[str, Sequence[str]]
    groups: Groups


@dataclass(frozen=True)
class _Seen:
    """The rows as arrays, and the metrics in each draw of groups."""

    models: Sequence[str]
    values: Mapping[str, Floats]
    """By metric, (rows, models): what each row counts. Of a mean over classes: whether it is right."""
    draws: Mapping[str, Floats]
    """As ``estimates`` has them: (draws, models), and of each class (draws, models, labels)."""
    known: Sequence[str]
    """The classes."""
    truth: Numbers
    given: Numbers
    """(rows, models); the number after the last class is none of them."""

    def of_label(self, metric: str, label: str, model: int) -> Mask:
        """Which rows a metric of a class rests on."""
        number = self.known.index(label)
        right, said = self.truth == number, self.given[:, model] == number
        return np.asarray({"precision": said, "recall": right, "f1": right | said}[metric])


def in_groups(found: Measurements, asked: Answered) -> Measurements:
    """The same with intervals over the groups."""
    labels = {each.label: None for each in found.measured if each.label}
    return _over(found, _seen(asked, list(labels)), asked.groups)


def rows_in_groups(found: Measurements, values: Mapping[str, Sequence[float]], groups: Groups) -> Measurements:
    """The same for a metric that is a mean of values of rows (``estimates.measure_rows``), by model."""
    [metric] = {each.metric for each in found.measured}
    rows = np.array([list(each) for each in values.values()]).T
    draws, nothing = {metric: drawn_means(rows, groups)}, np.empty((0, len(values)), np.intp)
    seen = _Seen(list(values), {metric: rows}, draws, [], np.empty(0, np.intp), nothing)
    return _over(found, seen, groups)


def _over(found: Measurements, seen: _Seen, groups: Groups) -> Measurements:
    return found.model_copy(
        update={
            "groups": groups.count,
            "measured": [_measured(each, seen, groups) for each in found.measured],
            "differences": [_difference(each, seen, groups) for each in found.differences],
        }
    )


def widened(figure: Figure, *intervals: Interval, least: float, most: float) -> Figure:
    """A figure whose interval holds its own and others, within the range of what it measures."""
    low = max(least, min(figure.low, *(each[0] for each in intervals)))
    high = min(most, max(figure.high, *(each[1] for each in intervals)))
    return Figure(value=figure.value, low=min(low, figure.value), high=max(high, figure.value))


def _seen(asked: Answered, labels: Sequence[str]) -> _Seen:
    models, rows = list(asked.answers), len(asked.truth)
    if asked.task is not TaskType.CLASSIFICATION:
        metrics = metrics_of(asked.task)
        columns = row_values(asked.task, asked.truth, list(asked.answers.values()))
        means = drawn_means(columns, asked.groups).reshape(-1, len(metrics), len(models))
        each = columns.reshape(rows, len(metrics), len(models))
        return _Seen(
            models,
            {metric: each[:, number] for number, metric in enumerate(metrics)},
            {metric: means[:, number] for number, metric in enumerate(metrics)},
            [],
            np.empty(0, np.intp),
            np.empty((0, len(models)), np.intp),
        )
    known = sorted({*labels, *asked.truth})
    coded = Coded.of(known, asked.truth, list(asked.answers.values()))
    right = (coded.given == coded.truth[:, None]).astype(float)
    by_label = _by_label(coded.truth, coded.given, len(known), asked.groups)
    draws = {"accuracy": drawn_means(right, asked.groups), **by_label}
    return _Seen(models, dict.fromkeys(METRICS, right), draws, known, coded.truth, coded.given)


def _by_label(truth: Numbers, given: Numbers, labels: int, groups: Groups) -> dict[str, Floats]:
    """Precision, recall and F1 in each draw of groups."""

    def counted(classes: Numbers, counts: Floats) -> Floats:
        """(groups, labels)"""
        table = np.zeros((groups.count, labels + 1))
        np.add.at(table, (groups.numbers, classes), counts)
        return table[:, :labels]

    ones, models = np.ones(len(truth)), range(given.shape[1])
    support = counted(truth, ones)
    said = [counted(given[:, model], ones) for model in models]
    right = [counted(truth, (given[:, model] == truth).astype(float)) for model in models]
    blocks = [
        ratios(
            (drawn @ support)[:, None],
            np.stack([drawn @ each for each in said], axis=1),
            np.stack([drawn @ each for each in right], axis=1),
        )
        for drawn in groups.draws(3 * labels * len(models))
    ]
    return {name: np.concatenate([each[name] for each in blocks]) for name in blocks[0]}


def _measured(found: MeasuredMetric, seen: _Seen, groups: Groups) -> MeasuredMetric:
    if found.metric in _NOT_OF_ROWS:
        return found.model_copy(update={"groups": groups.count})
    if found.label:
        held = groups.among(seen.truth == seen.known.index(found.label))
        update = {model: _of_label(found, number, seen, groups) for number, model in enumerate(seen.models)}
        return found.model_copy(update={"groups": held.count, "models": update})
    models = {}
    for number, model in enumerate(seen.models):
        figure = found.models[model]
        drawn, basis = seen.draws[found.metric][:, number], seen.values[found.metric][:, number]
        intervals = (reach(figure.value, drawn, groups.count), supported(basis, groups, figure.value))
        models[model] = widened(figure, *intervals, least=0, most=1)
    return found.model_copy(update={"groups": groups.count, "models": models})


def _of_label(found: MeasuredMetric, model: int, seen: _Seen, groups: Groups) -> Figure:
    """Of one class: a share of the rows that it rests on, or, of F1, a function of one (``classes``)."""
    figure = found.models[seen.models[model]]
    rows = seen.of_label(found.metric, found.label, model)
    if not rows.any():
        return figure
    low, high = mean(seen.values["accuracy"][rows, model], groups.among(rows))
    if found.metric == "f1":
        low, high = 2 * low / (1 + low), 2 * high / (1 + high)
    return widened(figure, (low, high), least=0, most=1)


def _difference(found: Difference, seen: _Seen, groups: Groups) -> Difference:
    if found.metric in _NOT_OF_ROWS:
        return found
    first, second = seen.models.index(found.model), seen.models.index(found.against)
    basis = seen.values[found.metric][:, first] - seen.values[found.metric][:, second]
    drawn = seen.draws[f"{found.metric}/label" if found.label else found.metric]
    if found.label:
        number = seen.known.index(found.label)
        drawn, rows = drawn[:, :, number], seen.truth == number
        if not rows.any():
            return found.model_copy(update={"p_value": None})
        basis, groups = basis[rows], groups.among(rows)
    intervals = (
        reach(found.estimate.value, drawn[:, first] - drawn[:, second], groups.count),
        supported_gain(basis, groups),
    )
    return found.model_copy(update={"estimate": widened(found.estimate, *intervals, least=-1, most=1), "p_value": None})
