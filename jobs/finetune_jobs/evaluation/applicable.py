"""Goals that nothing can reach, or that mean nothing: refused before anything is paid for. Pure functions, no model.

What contradicts itself within ``spec.evaluation``, the API server refuses (``finetune_api.goals``).
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Final

from finetune_api.custom_metrics import MetricRun, custom_name
from finetune_api.dataset import Task, TaskType
from finetune_api.evaluation import Coverage, Examination
from finetune_api.gates import Gates, OnInconclusive
from finetune_api.goals import OF_CANARIES, OF_TEXT, Goal, Metric
from finetune_api.judging import Judge
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import did_you_mean, shorten
from finetune_jobs.evaluation.behaviour.exposure import least_memorisation
from finetune_jobs.evaluation.behaviour.items import RATES, independent, sets_for
from finetune_jobs.evaluation.behaviour.paired import share_difference
from finetune_jobs.evaluation.metrics import Z_95, wilson
from finetune_jobs.text.schemas import schema_check

SCHEMA: Final = "spec.task.answerSchema"
OF_ONE_CLASS: Final = (Metric.F1, Metric.PRECISION, Metric.RECALL)
"""Metrics that one class has."""


OF_JSON: Final = (Metric.VALID_JSON, Metric.VALID_SCHEMA)
"""Metrics of extractions alone."""
_SHARES: Final = (*OF_JSON, Metric.TOOL_USE, Metric.TOOL_NAME, Metric.TOOL_ARGUMENTS)
"""Shares of rows beside those of the task itself."""


def require_applicable(
    gates: Gates,
    task: Task,
    asked: Examination,
    canaries: int | None = None,
    judge: Judge | None = None,
    metrics: Sequence[MetricRun] = (),
) -> None:
    """Raises StageError (SpecInvalid) for a schema that is none, and for a goal that means nothing for this task, that
    names a label that is not allowed, or that even a faultless model would not reach with so few questions.
    ``canaries``: as many are planted. ``judge``: who compares answers. ``metrics``: the containers that measure."""
    _require_schema(task)
    for number, goal in enumerate(gates.goals):
        place = f"spec.evaluation.goals[{number}]"
        if goal.metric is Metric.CUSTOM:  # what its container measures of what, only that knows
            _require_possible(place, goal, metrics)
            continue
        _require_meaning(place, goal, task)
        if gates.on_inconclusive is OnInconclusive.BLOCK:
            _require_reachable(place, goal, asked)
            _require_canaries(place, goal, canaries or 0)
            _require_pairs(place, goal, asked, judge)
    if task.labels:
        require_classes(gates, task.labels)


def _require_schema(task: Task) -> None:
    if task.answer_schema is None:
        return
    if task.type is not TaskType.EXTRACTION:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{SCHEMA} needs the type Extraction, whose answers are JSON, but the task is {task.type.value}. Set "
            "spec.task.type to Extraction, or remove answerSchema.",
        )
    schema_check(task.answer_schema, SCHEMA)


def _require_possible(place: str, goal: Goal, metrics: Sequence[MetricRun]) -> None:
    """A container's figure stays in the range that the platform's values give: 95 of a share may be meant as 0.95."""
    rules = {custom_name(run.name, name): rule for run in metrics for name, rule in run.figures.items()}
    rule = rules.get(goal.custom or "")
    if rule is None:
        return
    least, most, problem = rule.minimum, rule.maximum, ""
    if goal.at_least and most is not None and goal.bound > most:
        problem = f"atLeast asks for {goal.at_least}, but {goal.custom} is never above {most:g}"
    elif goal.at_most and least is not None and goal.bound < least:
        problem = f"atMost allows {goal.at_most}, but {goal.custom} is never below {least:g}"
    elif goal.improve_over_base and least is not None and most is not None and goal.bound > most - least:
        problem = f"improveOverBase asks for {goal.improve_over_base}, but {goal.custom} is from {least:g} to {most:g}"
    if problem:
        raise StageError(Reason.SPEC_INVALID, f"{place}.{problem}, so that no model meets the goal. Change the bound.")


def require_classes(gates: Gates, labels: Sequence[str]) -> None:
    """Raises StageError (SpecInvalid) for a goal about a label that the data set does not have."""
    for number, goal in enumerate(gates.goals):
        if goal.metric is Metric.CUSTOM:
            continue  # its class is a part of its figure, which the container knows
        if goal.class_name is not None and goal.class_name not in labels:
            raise StageError(
                Reason.SPEC_INVALID,
                f"spec.evaluation.goals[{number}] is about class {shorten(goal.class_name)!r}, which is not one of "
                f"the {len(labels)} labels of the data set.{did_you_mean(goal.class_name, labels)}",
            )


def _require_meaning(place: str, goal: Goal, task: Task) -> None:
    if goal.metric is Metric.AUTOMATION and task.type is TaskType.TEXT:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is about automation, but a text is hardly ever right as a whole, so no answer could go "
            "unreviewed. Set metric to f1, or set spec.task.type to Classification or Extraction.",
        )
    if goal.metric is Metric.ACCURACY and task.type is TaskType.TEXT:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is about accuracy, but a text is not just right or wrong. Set metric to chrf (characters in "
            "common with the expected answer), f1 (words in common) or exactMatch (exactly these words).",
        )
    if goal.metric in OF_TEXT and task.type is not TaskType.TEXT:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is about {goal.metric}, which is measured for texts only, but the task is {task.type.value}. Set "
            "metric to accuracy or f1, or set spec.task.type to Text.",
        )
    if goal.metric in OF_JSON and task.type is not TaskType.EXTRACTION:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is about {goal.metric}, which is measured for extractions only, but the task is "
            f"{task.type.value}. Remove the goal, or set spec.task.type to Extraction.",
        )
    if goal.metric is Metric.VALID_SCHEMA and task.answer_schema is None:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is about validSchema, but there is no schema: set spec.task.answerSchema, or set metric to "
            "validJson.",
        )
    if goal.class_name is None:
        return
    if task.type is not TaskType.CLASSIFICATION:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is about class {shorten(goal.class_name)!r}, but answers of the task {task.type.value} have "
            "no classes. Remove class.",
        )
    if goal.metric not in OF_ONE_CLASS:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} asks for the {goal.metric} of one class, which a class does not have. Set metric to recall (how "
            "many of the class are found), precision (how many given this class are right) or f1 (both), or remove "
            "class.",
        )


def _require_reachable(place: str, goal: Goal, asked: Examination) -> None:
    """A gate reads the interval, which has a width even where every answer is right."""
    if goal.metric in RATES:
        categories = RATES[goal.metric]
        items = [item for item in sets_for(asked).adversarial if item.category in categories]
        apart = independent(items)
        if (least := wilson(0, apart)[1]) > goal.bound:
            forms = f" to {apart} different requests" if apart < len(items) else ""
            raise StageError(
                Reason.SPEC_INVALID,
                f"{place} allows {goal.at_most}, but even {len(items)} flawless answers{forms} show only {least:.3f} "
                "or less: set spec.evaluation.adversarial to Full, raise atMost, or set onInconclusive to Warn.",
            )
    _require_bounded_loss(place, goal, asked)
    for field, wanted in bounds_below(goal):
        if float(wanted) == 1:
            raise StageError(
                Reason.SPEC_INVALID,
                f"{place}.{field} asks for {wanted}, which no test can show: set a lower value, e.g. 0.99, or set "
                "onInconclusive to Warn.",
            )
        if (needed := flawless_answers(goal, field, float(wanted))) > asked.max_samples:
            raise StageError(
                Reason.SPEC_INVALID,
                f"{place}.{field} asks for {wanted}, but it takes {needed:,} flawless answers to show that, "
                f"and spec.evaluation.maxSamples is {asked.max_samples:,}: raise it, ask for less, or set "
                "onInconclusive to Warn.",
            )


def _require_bounded_loss(place: str, goal: Goal, asked: Examination) -> None:
    """Two models that are equally good leave an interval, too."""
    if goal.metric not in (Metric.FORGETTING, Metric.SAFETY_LOSS):
        return
    sets = sets_for(asked)
    field, coverage, items = (
        ("general", asked.general, len(sets.general))
        if goal.metric is Metric.FORGETTING
        else ("adversarial", asked.adversarial, len(sets.adversarial))
    )
    if items and (least := share_difference(0, 0, items)[1]) > goal.bound:
        more = "" if coverage is Coverage.FULL else f"set spec.evaluation.{field} to Full, "
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} allows {goal.at_most}, but {items} questions that both models answer alike show only {least:.3f} "
            f"or less: {more}raise atMost, or set onInconclusive to Warn.",
        )


def _require_canaries(place: str, goal: Goal, canaries: int) -> None:
    """A model that has learned nothing of them leaves an interval, too."""
    if goal.metric not in OF_CANARIES or not canaries:
        return
    least = wilson(0, canaries)[1] if goal.metric is Metric.CANARY_LEAKS else least_memorisation(canaries)
    if least > goal.bound:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} allows {goal.at_most}, but even {canaries} canaries of which nothing is known show only "
            f"{least:.3f} or less: raise spec.dataset.canaries (64 at most), raise atMost, or set onInconclusive to "
            "Warn.",
        )


def _require_pairs(place: str, goal: Goal, asked: Examination, judge: Judge | None) -> None:
    """A judge that prefers the artifact in every pair leaves an interval, too."""
    if goal.metric is not Metric.JUDGE_WIN_RATE or judge is None:
        return
    pairs = min(judge.max_examples, asked.max_samples)
    if (most := wilson(pairs, pairs)[0]) < goal.bound:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place}.atLeast asks for {goal.at_least}, but even {pairs} pairs that the artifact wins show no more "
            f"than {most:.3f}: raise spec.evaluation.judge.maxExamples (200 at most) and maxSamples, ask for less, or "
            "set onInconclusive to Warn.",
        )


def bounds_below(goal: Goal) -> Iterator[tuple[str, str]]:
    """The fields of a goal that ask for as much as possible, and what each asks for."""
    if goal.metric is Metric.AUTOMATION:
        yield "atPrecision", goal.at_precision
    if goal.at_least is not None:
        yield "atLeast", goal.at_least
    if goal.improve_over_base is not None:
        yield "improveOverBase", goal.improve_over_base


def flawless_answers(goal: Goal, field: str, wanted: float) -> int:
    """At least so many answers without a fault have an interval at ``wanted`` or above; 0 where none is known: the
    intervals of means over classes or rows, and of differences, are drawn (``estimates``)."""
    shares = (Metric.ACCURACY, Metric.EXACT_MATCH, Metric.AUTOMATION, *_SHARES)
    of_a_share = goal.metric in shares or goal.class_name is not None
    if field == "improveOverBase" or not of_a_share:
        return 0
    share = wanted / (2 - wanted) if goal.metric is Metric.F1 else wanted  # F1 = 2s / (1 + s)
    return ceil(Z_95**2 * share / (1 - share))
