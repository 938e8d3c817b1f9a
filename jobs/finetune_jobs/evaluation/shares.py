"""Measures beside those of the task that are means over rows: calls of tools, and JSON of extractions. Pure functions,
no model."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from finetune_api.dataset import TaskType
from finetune_api.goals import Metric
from finetune_jobs.artifacts import calls
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.evaluation.clusters import Groups
from finetune_jobs.evaluation.estimates import measure_rows
from finetune_jobs.evaluation.grouped import rows_in_groups
from finetune_jobs.evaluation.tasks import call_overlap, calls_tools, fields_of, is_json, same_calls

Value = Callable[[str, str], float]
"""What an answer (second) is worth beside the right one (first), 0 to 1."""


def names_right(truth: str, answer: str) -> float:
    """Whether the same tools are called, each as often."""
    wanted, given = (Counter(name for name, _ in calls.read(text) or []) for text in (truth, answer))
    return float(wanted == given)


def fields_right(truth: str, answer: str) -> float:
    """F1 of the fields of the arguments; where neither side has any, the names decide."""
    if not fields_of(truth) and (not calls_tools(answer) or not fields_of(answer)):
        return names_right(truth, answer)
    return call_overlap(truth, answer, names=False).f1


OF_EACH_CALL: Final[Mapping[Metric, Value]] = {
    Metric.TOOL_NAME: names_right,
    Metric.TOOL_ARGUMENTS: lambda truth, answer: float(same_calls(truth, answer)),
    Metric.TOOL_FIELDS: fields_right,
}
"""Of the rows whose right answer calls a tool."""


def measure_matching(
    truth: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    problem_of: Callable[[Any], str],
    groups: Groups | None = None,
) -> Measurements:
    """How many answers match a schema, of the rows that are not answered by calls. An answer that cannot be looked at
    does not match. ``groups``: which rows are alike."""
    rows = [number for number, text in enumerate(truth) if not calls_tools(text)]
    if not rows:
        return Measurements(rows=len(truth))

    def matches(answer: str) -> float:
        return float(is_json(answer) and not calls_tools(answer) and not problem_of(json.loads(answer)))

    values = {model: [matches(given[n]) for n in rows] for model, given in answers.items()}
    return _measured(Metric.VALID_SCHEMA, values, rows, groups).model_copy(update={"rows": len(truth)})


def measure_shares(
    task: TaskType, truth: Sequence[str], answers: Mapping[str, Sequence[str]], groups: Groups | None = None
) -> Measurements:
    """Calls, where one is right or is made: whether tools are called is of all rows, the others of those that should.
    JSON, of an Extraction. ``groups``: which rows are alike."""
    everything = range(len(truth))
    called = [number for number in everything if calls_tools(truth[number])]
    wanted: list[tuple[Metric, Sequence[int], Value]]
    wanted = [(metric, called, value) for metric, value in OF_EACH_CALL.items()]
    if any(calls_tools(*truth, *given) for given in answers.values()):
        wanted.insert(0, (Metric.TOOL_USE, everything, lambda t, a: float(calls_tools(t) == calls_tools(a))))
    if task is TaskType.EXTRACTION:
        others = [number for number in everything if not calls_tools(truth[number])]
        wanted.append((Metric.VALID_JSON, others, lambda _, a: float(is_json(a) and not calls_tools(a))))
    made = Measurements(rows=len(truth))
    for metric, rows, value in wanted:
        if rows:
            values = {model: [value(truth[n], given[n]) for n in rows] for model, given in answers.items()}
            made = made.with_more(_measured(metric, values, rows, groups))
    return made


def _measured(
    metric: Metric, values: Mapping[str, Sequence[float]], rows: Sequence[int], groups: Groups | None
) -> Measurements:
    """``rows``: which of all rows have a value."""
    found = measure_rows(metric, values)
    if groups is None:
        return found
    counted = np.zeros(len(groups.numbers), dtype=bool)
    counted[list(rows)] = True
    return rows_in_groups(found, values, groups.among(counted))
