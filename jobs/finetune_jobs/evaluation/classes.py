"""One class of a classification: the intervals of its precision, recall and F1, and of the differences between models.
Pure functions, no model.

Precision and recall are shares, with Wilson's interval. F1 of one class is a monotone function of a share,
F1 = 2s / (1 + s) with s = right / (right + missed + wrongly given) (Hand, Christen and Kirielle, "F*: an interpretable
transformation of the F-measure", 2021), so its interval is that share's, transformed.

A difference is never drawn from all rows: of a class there are few among them, and where one model has all of these
right and the other none, draws have no width. Its interval follows from those of both models, and from how far what a
row does to the one figure goes along with what it does to the other (``square_and_add``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from finetune_jobs.artifacts.measurements import Difference, Figure, MeasuredMetric
from finetune_jobs.evaluation.behaviour.paired import square_and_add
from finetune_jobs.evaluation.clusters import Floats, Mask, Numbers
from finetune_jobs.evaluation.metrics import LabelScores, Scores, wilson

OF_A_CLASS: Final = ("precision", "recall", "f1")
_NEVER: Final = LabelScores(0, 0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Coded:
    """The rows of a classification as numbers."""

    known: Sequence[str]
    """The classes, whose places are the numbers."""
    truth: Numbers
    """Of the right label of each row."""
    given: Numbers
    """(rows, models): of the answered label; the number after the last is none of them."""

    @classmethod
    def of(cls, known: Sequence[str], truth: Sequence[str], answers: Sequence[Sequence[str]]) -> "Coded":
        """``answers``: of each model; ``known`` holds every right label."""
        numbers = {label: number for number, label in enumerate(known)}
        said = [[numbers.get(each, len(known)) for each in given] for given in answers]
        return cls(known, np.array([numbers[each] for each in truth], np.intp), np.array(said, np.intp).T)


def measure_classes(
    rows: Coded, scores: Mapping[str, Scores], pairs: Sequence[tuple[str, str]]
) -> tuple[list[MeasuredMetric], list[Difference]]:
    """Every metric of every class, and how far the models of ``pairs`` are apart in it. ``scores``: of the models, in
    the order in which ``rows`` has their answers."""
    measured: list[MeasuredMetric] = []
    differences: list[Difference] = []
    places = {model: place for place, model in enumerate(scores)}
    for number, label in enumerate(rows.known):
        of_label = {model: each.labels.get(label, _NEVER) for model, each in scores.items()}
        cases = max(each.support for each in of_label.values())
        is_right, is_given = rows.truth == number, rows.given == number
        for metric in OF_A_CLASS:
            models = {model: _figure(metric, each) for model, each in of_label.items()}
            measured.append(MeasuredMetric(metric=metric, label=label, cases=cases, models=models))
            values = np.array([each.value for each in models.values()])
            together = _correlations(metric, is_right, is_given, values)
            for model, against in pairs:
                along = float(together[places[model], places[against]])
                estimate = square_and_add(models[model], models[against], along)
                names = {"metric": metric, "label": label, "model": model, "against": against}
                differences.append(Difference(**names, estimate=estimate))
    return measured, differences


def _figure(metric: str, row: LabelScores) -> Figure:
    """Of its answers, its rows, or both. Where there are none, nothing is known: 0 to 1."""
    right = round(row.recall * row.support)
    value = getattr(row, metric)
    total = {"precision": row.given, "recall": row.support, "f1": row.support + row.given - right}[metric]
    if not total:
        return Figure(value=value, low=0, high=1)
    low, high = wilson(right, total)
    if metric == "f1":
        low, high = 2 * low / (1 + low), 2 * high / (1 + high)
    return Figure(value=value, low=min(value, low), high=max(value, high))


def _correlations(metric: str, is_right: Mask, is_given: Mask, values: Floats) -> Floats:
    """(models, models): of what a row moves the figures by, each a ratio of two sums over the rows; 0 for a figure that
    no row moves. ``is_given``: (rows, models); ``values``: of the figure, by model."""
    rows, given = is_right[:, None].astype(float), is_given.astype(float)
    above = {"precision": rows * given, "recall": rows * given, "f1": 2 * rows * given}[metric]
    below = {"precision": given, "recall": rows, "f1": rows + given}[metric]
    moved = above - values * below
    products = moved.T @ moved
    sizes = np.sqrt(np.diag(products))
    scale = np.outer(sizes, sizes)
    return np.asarray(np.clip(np.divide(products, scale, out=np.zeros_like(products), where=scale > 0), -1, 1))
