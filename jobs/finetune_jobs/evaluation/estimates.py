"""Intervals of every metric and of the differences between models, from their answers to the same rows.

Shares of rows (accuracy, exact match) have Wilson's interval; what is of one class: ``classes``. Means over classes or
rows, and their differences, are bootstrapped: rows are drawn again with replacement, and one draw serves all models, so
that differences are paired.

A bootstrap of few rows that are all right has no width. Therefore four imaginary rows are among those that are drawn,
which every model answers right or wrong by the toss of a coin: what Agresti and Coull (1998) add to a share and Agresti
and Min (2005) to a paired difference. They count for the intervals only, never for a value.

Perplexity is neither a share nor a mean over rows: see ``texts``. Here every row stands for itself: where rows stand in
groups that are alike, ``grouped`` widens all of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Final

import numpy as np

from finetune_api.dataset import TaskType
from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import ELSEWHERE, Difference, Figure, MeasuredMetric, Measurements
from finetune_jobs.evaluation.classes import OF_A_CLASS, Coded, measure_classes
from finetune_jobs.evaluation.clusters import Floats, Numbers
from finetune_jobs.evaluation.metrics import Scores, compare, wilson
from finetune_jobs.evaluation.tasks import call_overlap, calls_tools, overlap_for, right_for, score_task
from finetune_jobs.evaluation.texts import Likelihoods, chrf

METRICS: Final = ("accuracy", *OF_A_CLASS)
"""The first is the share of right answers, and the others follow it in the order of these names."""
OF_TEXT: Final = (Metric.EXACT_MATCH.value, *METRICS[1:], Metric.CHRF.value)
"""The same of free text, whose right answers are those with the very words."""
PAIRS: Final = (
    ("tuned", "base"),
    ("artifact", "tuned"),
    *(("artifact", asked) for asked in ("base", "fewShot", "verbose", "constrained", ELSEWHERE)),
)
"""Which model is compared with which, if both were asked."""
DRAWS: Final = 2000
SEED: Final = 20
IMAGINARY: Final = 4.0
"""Imaginary rows among those that are drawn."""
_CELLS: Final = 2_000_000
"""Numbers in memory at a time: draws of a block times distinct rows."""


@dataclass(frozen=True)
class _Cells:
    """Distinct rows, real ones and imaginary ones, as arrays with one entry each."""

    weights: Floats
    """How often each is there."""
    right: Floats
    """(cells, models): the values of the metrics that are means over the rows, for each metric in turn."""
    truth: Numbers
    """Number of the right label; empty where answers are no classes."""
    given: Numbers
    """(cells, models): number of the answered label; the number after the last is none."""


def measure(
    task: TaskType,
    truth: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    likelihoods: Likelihoods | None = None,
) -> Measurements:
    """Every metric of every model, and the differences of PAIRS. ``labels`` are the allowed ones of a classification;
    with ``likelihoods`` there is a perplexity. Raises ValueError when there are no rows."""
    scores = {model: score_task(task, truth, given, labels) for model, given in answers.items()}
    metrics, is_label = metrics_of(task), task is TaskType.CLASSIFICATION
    known = sorted({*labels, *truth}) if is_label else []
    rows = Coded.of(known, truth, list(answers.values())) if is_label else None
    cells = _distinct(rows) if rows else _with_imaginary(row_values(task, truth, list(answers.values())), len(metrics))
    draws = _draw(cells, metrics, len(answers), len(known))
    pairs = [pair for pair in PAIRS if set(pair) <= answers.keys()]
    exact = {(a, b): compare(truth, answers[b], answers[a], right_for(task)).p_value for a, b in pairs}
    overall = [
        MeasuredMetric(metric=name, cases=len(truth), models=_overall(name, scores, draws))
        for name in metrics
        if name != Metric.CHRF
    ]
    if task is TaskType.TEXT:
        overall.append(_overall_chrf(truth, answers, draws[Metric.CHRF]))
    columns = {model: number for number, model in enumerate(answers)}
    differences: list[Difference] = []
    for found in overall:
        drawn = draws[found.metric]
        for first, second in pairs:
            value = found.models[first].value - found.models[second].value
            estimate = _interval(value, drawn[:, columns[first]] - drawn[:, columns[second]])
            p_value = exact[first, second] if found.metric == metrics[0] else None
            names = {"metric": found.metric, "model": first, "against": second}
            differences.append(Difference(**names, estimate=estimate, p_value=p_value))
    each, apart = measure_classes(rows, scores, pairs) if rows else ([], [])
    differences += apart
    if likelihoods and (perplexities := likelihoods.perplexities()):
        name = Metric.PERPLEXITY.value
        overall.append(MeasuredMetric(metric=name, cases=len(truth), models=perplexities))
        differences += [
            Difference(metric=name, model=first, against=second, estimate=change)
            for first, second in pairs
            if (change := likelihoods.change(first, second))
        ]
    return Measurements(rows=len(truth), measured=[*overall, *each], differences=differences)


def measure_rows(metric: str, values: Mapping[str, Sequence[float]]) -> Measurements:
    """A metric that is a mean of values of rows, 0 to 1, by model, and the differences of PAIRS. A share of rows, which
    has no other values than 0 and 1, has Wilson's interval."""
    rows = len(next(iter(values.values())))
    table = np.array([list(each) for each in values.values()]).T
    drawn = _draw(_with_imaginary(table, 1), [metric], len(values), 0)[metric]
    columns = {model: number for number, model in enumerate(values)}
    is_share = bool(((table == 0) | (table == 1)).all())
    models: dict[str, Figure] = {}
    for model, each in values.items():
        mean = fmean(each)
        low, high = wilson(sum(each), rows)
        models[model] = (
            Figure(value=mean, low=low, high=high) if is_share else _interval(mean, drawn[:, columns[model]])
        )
    differences = [
        Difference(
            metric=metric,
            model=first,
            against=second,
            estimate=_interval(
                models[first].value - models[second].value, drawn[:, columns[first]] - drawn[:, columns[second]]
            ),
        )
        for first, second in PAIRS
        if {first, second} <= values.keys()
    ]
    return Measurements(
        rows=rows, measured=[MeasuredMetric(metric=metric, cases=rows, models=models)], differences=differences
    )


def metrics_of(task: TaskType) -> tuple[str, ...]:
    """What is measured of the answers to a task."""
    return OF_TEXT if task is TaskType.TEXT else METRICS


def _overall(metric: str, scores: Mapping[str, Scores], draws: Mapping[str, Floats]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for number, (model, score) in enumerate(scores.items()):
        if metric in (Metric.ACCURACY, Metric.EXACT_MATCH):
            found[model] = Figure(value=score.accuracy, low=score.interval[0], high=score.interval[1])
        else:
            found[model] = _interval(getattr(score, metric), draws[metric][:, number])
    return found


def nearness(truth: str, answer: str) -> float:
    """chrF of texts. Calls of tools are no texts: what they have in common are names and arguments."""
    return call_overlap(truth, answer).f1 if calls_tools(truth, answer) else chrf(truth, answer)


def _overall_chrf(truth: Sequence[str], answers: Mapping[str, Sequence[str]], drawn: Floats) -> MeasuredMetric:
    means = {model: fmean(map(nearness, truth, given)) for model, given in answers.items()}
    models = {model: _interval(mean, drawn[:, number]) for number, (model, mean) in enumerate(means.items())}
    return MeasuredMetric(metric=Metric.CHRF.value, cases=len(truth), models=models)


def _interval(value: float, drawn: Floats) -> Figure:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Figure(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _distinct(rows: Coded) -> _Cells:
    """Rows that agree in everything that counts are one cell: of many rows of a classification, few are distinct."""
    classes = len(rows.known)
    patterns = np.array(list(product((0.0, 1.0), repeat=rows.given.shape[1])))
    share = IMAGINARY / len(patterns)
    distinct, counts = np.unique(np.column_stack([rows.truth, rows.given]), axis=0, return_counts=True)
    support = np.bincount(rows.truth, minlength=classes) / len(rows.truth)
    imaginary = np.repeat(np.arange(classes), len(patterns))
    tossed = np.tile(patterns, (classes, 1))
    another = (imaginary + 1) % max(2, classes)
    said = np.where(tossed > 0, imaginary[:, None], another[:, None])
    labels, given = np.concatenate([distinct[:, 0], imaginary]), np.concatenate([distinct[:, 1:], said])
    weights = np.concatenate([counts, np.repeat(support, len(patterns)) * share])
    return _Cells(weights, (given == labels[:, None]).astype(float), labels, given)


def _with_imaginary(values: Floats, metrics: int) -> _Cells:
    """Rows with (rows, metrics × models) values that are no classes."""
    models = values.shape[1] // metrics
    patterns = np.array(list(product((0.0, 1.0), repeat=models)))
    right = np.concatenate([values, np.tile(patterns, metrics)])
    weights = np.concatenate([np.ones(len(values)), np.full(len(patterns), IMAGINARY / len(patterns))])
    return _Cells(weights, right, np.empty(0, np.intp), np.empty((0, models), np.intp))


def row_values(task: TaskType, truth: Sequence[str], answers: Sequence[Sequence[str]]) -> Floats:
    """(rows, metrics × models): accuracy of each model, precision of each model, and so on."""
    right, overlap = right_for(task), overlap_for(task)
    overlaps = [[overlap(t, a) for t, a in zip(truth, given, strict=True)] for given in answers]
    columns = [[float(right(t, a)) for t, a in zip(truth, given, strict=True)] for given in answers]
    columns += [[getattr(each, metric) for each in given] for metric in METRICS[1:] for given in overlaps]
    if task is TaskType.TEXT:
        columns += [list(map(nearness, truth, given)) for given in answers]
    return np.array(columns).T


def _draw(cells: _Cells, metrics: Sequence[str], models: int, labels: int) -> dict[str, Floats]:
    """The metrics in each draw: (draws, models) by name."""
    rows = round(cells.weights.sum())
    generator = np.random.default_rng(SEED)
    block = max(1, min(DRAWS, _CELLS // len(cells.weights)))
    blocks: list[dict[str, Floats]] = []
    for start in range(0, DRAWS, block):
        size = min(block, DRAWS - start)
        drawn = generator.multinomial(rows, cells.weights / cells.weights.sum(), size=size).astype(float)
        means = (drawn @ cells.right / rows).reshape(size, -1, models)
        if labels:
            blocks.append({"accuracy": means[:, 0], **_by_label(drawn, cells, models, labels)})
        else:
            blocks.append({metric: means[:, number] for number, metric in enumerate(metrics)})
    return {name: np.concatenate([each[name] for each in blocks]) for name in blocks[0]}


def _by_label(drawn: Floats, cells: _Cells, models: int, labels: int) -> dict[str, Floats]:
    one_hot = np.eye(labels + 1)
    support = (drawn @ one_hot[cells.truth])[:, None, :labels]
    given = np.stack([(drawn @ one_hot[cells.given[:, m]])[:, :labels] for m in range(models)], axis=1)
    right = np.stack(
        [(drawn @ (one_hot[cells.truth] * cells.right[:, m, None]))[:, :labels] for m in range(models)], axis=1
    )
    return {name: drawn for name, drawn in ratios(support, given, right).items() if name in OF_A_CLASS}


def ratios(support: Floats, given: Floats, right: Floats) -> dict[str, Floats]:
    """Of classes in draws, from counts (draws, models, labels): the means over the classes, (draws, models), by name,
    and those of each class as ``<name>/label``."""
    counted = (support + given) > 0
    table = {
        "precision": right / np.maximum(given, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(support + given, 1),
    }
    overall = {name: values.sum(2) / np.maximum(counted.sum(2), 1) for name, values in table.items()}
    return overall | {f"{name}/label": values for name, values in table.items()}
