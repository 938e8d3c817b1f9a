"""The goals as an evaluation's page shows them, before all figures. Pure functions, no model."""

from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.gates import GateOutcome, Gates
from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.conclusion import Conclusion
from finetune_jobs.evaluation.gates import judge

_ANSWERS: Final = {
    GateOutcome.PASS: ("Pass", "✓ met"),
    GateOutcome.FAIL: ("Fail", "✕ missed"),
    GateOutcome.INCONCLUSIVE: ("Warn", "! inconclusive"),
}

_LATER: Final = "The judge is asked later, before anything is published, unless another gate has stopped the run."
_NEXT: Final = "Its metric container runs after the models have answered, before anything is published."


def goals_reached(gates: Gates, measurements: Measurements, task: TaskType) -> list[Conclusion]:
    """What the artifact reached of each goal, or of the one gate that stands without goals; publish judges the same."""
    each = [gates.model_copy(update={"goals": [goal]}) for goal in gates.goals] or [gates]
    return [_reached(one, measurements, task) for one in each]


def _reached(one: Gates, measurements: Measurements, task: TaskType) -> Conclusion:
    if any(goal.metric is Metric.JUDGE_WIN_RATE for goal in one.goals):
        return Conclusion(one.texts(task)[0], "Warn", "! later", _LATER, "")
    containers = {each.metric.partition(".")[0] for each in measurements.measured if "." in each.metric}
    if any(goal.custom and goal.custom.partition(".")[0] not in containers for goal in one.goals):
        return Conclusion(one.texts(task)[0], "Warn", "! later", _NEXT, "")
    [question] = one.texts(task, chrf=measurements.main_metric(task) is Metric.CHRF)
    try:
        [found] = judge(one, measurements, task)
    except StageError as error:
        return Conclusion(question, "Warn", "! not measured", error.message, "")
    badge, answer = _ANSWERS[found.outcome]
    return Conclusion(question, badge, answer, found.sentence, "")
