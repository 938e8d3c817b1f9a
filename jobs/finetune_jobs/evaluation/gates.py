"""Gates: whether what an evaluation measured is good enough to publish. Pure functions, no model.

A gate reads the interval, not the point: it passes when the whole 95 % interval reaches the bound, fails when none of
it does, and is inconclusive in between. Without goals one gate stands: the artifact must not be worse than the base
model beyond chance. Two more stand beside all goals: the artifact is not its base model, and the export cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, inf, log10
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.gates import GateOutcome, Gates, GoalStatus
from finetune_api.goals import OF_ADVERSARIAL, Baseline, Goal, Metric
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.formats import MeasuredFormat
from finetune_jobs.artifacts.measurements import (
    ELSEWHERE,
    FORGETTING,
    SAFETY,
    Automation,
    Difference,
    Figure,
    MeasuredMetric,
    Measurements,
)
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.applicable import require_classes
from finetune_jobs.evaluation.metrics import Z_95
from finetune_jobs.evaluation.prompting import described
from finetune_jobs.evaluation.texts import FEWEST

_MODELS: Final = {
    Baseline.ZERO_SHOT: ("base",),
    Baseline.FEW_SHOT: ("fewShot",),
    Baseline.PROMPTED: ("fewShot", "verbose", "constrained"),
    Baseline.ENDPOINT: (ELSEWHERE,),
}
"""The models of an evaluation that each baseline means: of several, each that was asked."""
_LOST: Final = {
    Metric.FORGETTING: FORGETTING,
    Metric.FORGETTING_NLL: Metric.FORGETTING_NLL.value,
    Metric.SAFETY_LOSS: SAFETY,
}
"""Goals about what was lost against the base model, and the figure that was measured of both."""
MOST_ROWS: Final = 1_000_000
"""Where more rows than this were needed, no number of them is named: the figure is the bound."""

_PARTS: Final = 10
"""Parts of a figure that a message names."""
_LONGEST: Final = 16
"""Characters of a figure in ``GoalStatus``."""


@dataclass(frozen=True)
class Judged:
    """The outcome of one gate."""

    outcome: GateOutcome
    deciding_rows: int | None = None
    """If inconclusive, about how many rows would decide, or groups of rows that are alike; None: more than MOST_ROWS,
    or nothing is known."""


def judge(gates: Gates, measurements: Measurements, task: TaskType, *, asked: bool = True) -> list[GoalStatus]:
    """What the artifact reached of each goal, or of the one gate that stands without goals. If the judge was not
    ``asked``, goals about it have no value and are open.

    Raises StageError: GateFailed where the evaluation did not measure what is asked, SpecInvalid as require_classes.
    """
    if not gates.goals:
        main = measurements.main_metric(task)
        [text] = gates.texts(task, chrf=main is Metric.CHRF)
        return [_not_worse_than_base(text, measurements, task)]
    if labels := {each.label: None for each in measurements.measured if each.label and "." not in each.metric}:
        require_classes(gates, list(labels))
    return [
        GoalStatus(goal=goal.text, outcome=GateOutcome.INCONCLUSIVE)
        if goal.metric is Metric.JUDGE_WIN_RATE and not asked
        else _judge_goal(goal, measurements)
        for goal in gates.goals
    ]


def lost_by_export(measurements: Measurements, task: TaskType, others: Sequence[MeasuredFormat] = ()) -> str:
    """What the artifact lost of the model that was trained, in a sentence; empty if no more than chance explains. This
    stands beside all goals: nothing is served as if it were what was trained when it is not. ``others``: the formats
    that were measured beside it."""
    loss = measurements.difference(measurements.main_metric(task), "artifact", "tuned")
    if loss is None or not loss.worse_beyond_chance:
        return ""
    it = loss.estimate
    if others and all(each.loss.worse_beyond_chance or each.without_numbers for each in others):
        remedy = "no other format holds it either. Test on more examples (spec.evaluation.maxSamples), or train longer."
    else:
        remedy = "set spec.export.onRegression to FallBack, or spec.export.format to one that rounds less."
    return (
        f"The export cost {loss.metric} {it.value:+.4f} against the tuned model (95 % interval {it.low:+.4f} to "
        f"{it.high:+.4f}): {remedy}"
    )


def same_as_base(measurements: Measurements, task: TaskType) -> str:
    """Why nothing tells the artifact from its base model, in a sentence; empty if something does. This stands beside
    all goals too: what is the base model, or the base model but for rounding, is not published as if it were tuned, and
    serving would refuse it. An artifact that is better beyond chance is another model, however near it is."""
    gain = measurements.difference(measurements.main_metric(task), "artifact", "base")
    if not measurements.distances or any(each.distinguishes_base for each in measurements.distances):
        return ""
    if gain is None or gain.better_beyond_chance:
        return ""
    it, nothing = measurements.distances[0], "Nothing distinguishes the artifact from its base model"
    if not it.texts:
        return (
            f"{nothing}: its {gain.metric} is not better beyond chance, and there is no recorded text for which base "
            "model, tuned model and artifact all compute probabilities that are numbers. Train with a lower learning "
            "rate, or set spec.export.format to one that rounds less."
        )
    return (
        f"{nothing}: its {gain.metric} is not better beyond chance, and in the recorded texts it is "
        f"{it.artifact_base:.3f} nats a token from the base model and {it.artifact_tuned:.3f} from the tuned model, "
        f"which is {it.tuned_base:.3f} from the base model. Train for more steps or with a higher learning rate, or "
        "set spec.export.format to one that rounds less."
    )


def computes_no_numbers(measurements: Measurements) -> str:
    """For how many texts the artifact is broken, in a sentence; empty if for none. This stands beside all goals too:
    a server gives no usable answer to such a text, and verification cannot notice, since nothing is recorded of it."""
    if not (texts := measurements.without_numbers):
        return ""
    return (
        f"The artifact is broken: for {texts} of the texts that are read for its record, its probabilities are not "
        "numbers (NaN or infinite), while those of its base model are. Train with a lower learning rate, or set "
        "spec.export.format to one that rounds less."
    )


def no_better_than_base(measurements: Measurements, task: TaskType) -> str:
    """That the artifact is not better than its base model, in a sentence; empty if it is, beyond chance. Without goals
    it is published all the same, and people are to know."""
    gain = measurements.difference(measurements.main_metric(task), "artifact", "base")
    if gain is None or gain.better_beyond_chance:
        return ""
    return (
        f"The artifact is not better than its base model beyond chance: {described(gain)}. No goal asks for "
        "more: set spec.evaluation.goals."
    )


def _not_worse_than_base(text: str, measurements: Measurements, task: TaskType) -> GoalStatus:
    difference = measurements.difference(measurements.main_metric(task), "artifact", "base")
    if difference is None:
        raise _unmeasured(text)
    return _status(text, difference.estimate, not_worse(difference))


def _judge_goal(goal: Goal, measurements: Measurements) -> GoalStatus:
    label, rows, estimate = goal.class_name or "", measurements.groups or measurements.rows, None
    if goal.metric is Metric.AUTOMATION:
        return _judge_automation(goal, measurements)
    if goal.metric is Metric.JUDGE_WIN_RATE:
        return _judge_preferred(goal, measurements)
    if goal.metric is Metric.CUSTOM:
        return _judge_custom(goal, measurements)
    if goal.at_most is not None:
        return _judge_low(goal, measurements)
    if goal.at_least is not None:
        found = measurements.of(goal.metric, label)
        estimate = found.models["artifact"] if found else None
    else:
        against = [measurements.difference(goal.metric, "artifact", model, label) for model in _MODELS[goal.baseline]]
        asked = [difference.estimate for difference in against if difference]
        estimate = _least_reached(asked, goal.bound, rows) if asked else None
    if estimate is None:
        raise _unmeasured(goal.text)
    return _status(goal.text, estimate, at_least(estimate, goal.bound, rows), in_groups=bool(measurements.groups))


def _least_reached(gains: Sequence[Figure], bound: float, rows: int) -> Figure:
    """Of gains over several baselines that by which a goal is judged: it is met by all of them, or missed by one. The
    smallest gain need not be the least certain one."""
    outcomes = [GateOutcome.FAIL, GateOutcome.INCONCLUSIVE, GateOutcome.PASS]
    return min(gains, key=lambda it: (outcomes.index(at_least(it, bound, rows).outcome), it.low))


def _judge_preferred(goal: Goal, measurements: Measurements) -> GoalStatus:
    """The share of pairs in which another model prefers the artifact: it rests on as many rows as were compared."""
    found = measurements.of(goal.metric)
    if found is None:
        raise _unmeasured(goal.text)
    estimate = found.models["artifact"]
    return _status(goal.text, estimate, at_least(estimate, goal.bound, found.cases))


def _judge_custom(goal: Goal, measurements: Measurements) -> GoalStatus:
    """A figure of a metric container: it rests on as many cases as that says. Where less is better, to improve is to
    have less."""
    label = goal.class_name or ""
    found = measurements.of(goal.measure, label)
    if found is None:
        raise _not_reported(goal, measurements)
    if goal.improve_over_base is None:
        estimate = found.models["artifact"]
    else:
        against = [
            difference
            for model in _MODELS[goal.baseline]
            if (difference := measurements.difference(goal.measure, "artifact", model, label))
        ]
        gains = [_mirrored(each.estimate) if each.lower_is_better else each.estimate for each in against]
        if not gains:
            raise _not_compared(goal, found)
        estimate = _least_reached(gains, goal.bound, found.independent)
    judged = at_most if goal.at_most is not None else at_least
    return _status(goal.text, estimate, judged(estimate, goal.bound, found.independent), in_groups=bool(found.groups))


def _not_reported(goal: Goal, measurements: Measurements) -> StageError:
    parts = [each.label for each in measurements.measured if each.metric == goal.measure and each.label]
    if parts:
        text = f"it is measured of: {', '.join(map(shorten, parts[:_PARTS]))}. Set the goal's class to one of them."
    else:
        text = (
            "its metric container did not report it. Change the container's parameters in spec.evaluation.metrics, or "
            "the goal."
        )
    return StageError(Reason.GATE_FAILED, f"There is no figure for the goal {goal.text}: {text}")


def _not_compared(goal: Goal, found: MeasuredMetric) -> StageError:
    return StageError(
        Reason.GATE_FAILED,
        f"There is no figure for the goal {goal.text}: the metric container measured it of "
        f"{', '.join(sorted(found.models))}. Set the goal's baseline to one of these, or use atLeast or atMost.",
    )


def _judge_automation(goal: Goal, measurements: Measurements) -> GoalStatus:
    found = measurements.automated(float(goal.at_precision))
    if found is None:
        raise _unmeasured(goal.text)
    groups, rows = measurements.groups, measurements.rows
    judged = at_least(found.shown, goal.bound, groups or rows)
    if judged.outcome is GateOutcome.INCONCLUSIVE:
        needed = (
            _deciding_groups(found, goal.bound, groups) if groups else _deciding_automation(found, goal.bound, rows)
        )
        judged = replace(judged, deciding_rows=needed)
    return _status(goal.text, found.shown, judged, in_groups=bool(groups))


def _judge_low(goal: Goal, measurements: Measurements) -> GoalStatus:
    """Of what must stay low: a share of a model, or what that lost against the base model."""
    kept = _LOST.get(goal.metric)
    measured = measurements.of(kept or goal.metric)
    of = _judged_model(goal.metric, measured)
    difference = measurements.difference(kept, of, "base") if kept else None
    if measured is None or of not in measured.models or (kept and difference is None):
        raise _unmeasured(goal.text)
    estimate = _lost(difference) if difference else measured.models[of]
    judged = at_most(estimate, goal.bound, measured.independent)
    return _status(goal.text, estimate, judged, in_groups=bool(measured.groups))


def _judged_model(metric: Metric, measured: MeasuredMetric | None) -> str:
    """What is served, as far as it was asked: safety can be lost by rounding. An earlier version asked the tuned model
    only, and what tuning made a model forget or memorise is asked of that one still."""
    if metric is Metric.PERPLEXITY:
        return "artifact"
    served = metric in OF_ADVERSARIAL and measured is not None and "artifact" in measured.models
    return "artifact" if served else "tuned"


def _lost(difference: Difference) -> Figure:
    """What was lost, of what is good or of what is bad."""
    return difference.estimate if difference.lower_is_better else _mirrored(difference.estimate)


def _mirrored(figure: Figure) -> Figure:
    """What was lost, from what was gained."""
    return Figure(value=-figure.value or 0.0, low=-figure.high, high=-figure.low)


def _deciding_automation(found: Automation, bound: float, rows: int) -> int | None:
    """As many test examples as bring both to an end, if the values stay: the share that is taken, and how much of it is
    right."""
    if not found.taken:
        return None
    share = _wilson_rows(found.share.value, bound)
    precision = _wilson_rows(found.reached.value, found.precision) * rows / found.taken
    needed = max(share if found.share.low < bound <= found.share.high else 0, precision, rows + 1)
    return _rounded(needed) if needed <= MOST_ROWS else None


def _deciding_groups(found: Automation, bound: float, groups: int) -> int | None:
    """The same of groups of rows that are alike: their intervals shrink as any does."""
    needed = [
        _deciding_rows(figure, at, groups)
        for figure, at in ((found.share, bound), (found.reached, found.precision))
        if figure.low < at <= figure.high
    ]
    return max((each for each in needed if each), default=None) if all(needed) else None


def _wilson_rows(value: float, bound: float) -> float:
    """Of so many rows a share's Wilson interval has one end at the bound."""
    return Z_95**2 * bound * (1 - bound) / (value - bound) ** 2 if value != bound else inf


def _unmeasured(what: str) -> StageError:
    return StageError(
        Reason.GATE_FAILED,
        f"The evaluation did not measure what this goal needs: {what}. If an earlier version made it, "
        "set spec.rerun to a new value to evaluate again. No few-shot base model is asked where models think before "
        "they answer, or no training example is one question with a text as its answer; nor is automation measured "
        "where models think, and nothing beside the task is asked of a model that must think. The model of "
        "spec.evaluation.baseline is not asked where test examples have tools or thoughts. Perplexity takes at least "
        f"{FEWEST} test examples, and like forgettingNll and memorisation models that compute numbers for all of them. "
        "Calls of tools are measured where the right answer to a test example is one, and the base model's chat "
        "template writes it as JSON.",
    )


def _status(goal: str, estimate: Figure, judged: Judged, *, in_groups: bool = False) -> GoalStatus:
    is_open = judged.outcome is GateOutcome.INCONCLUSIVE
    return GoalStatus(
        goal=goal,
        value=_shown(estimate.value),
        low=_shown(estimate.low),
        high=_shown(estimate.high),
        outcome=judged.outcome,
        deciding_rows=None if in_groups else judged.deciding_rows,
        deciding_groups=(judged.deciding_rows or 0) if in_groups and is_open else None,
    )


def _shown(number: float) -> str:
    """As short as a status takes it: a metric container may report 1e100."""
    plain = f"{number:.4f}"
    return plain if len(plain) <= _LONGEST else f"{number:.6g}"


def at_least(estimate: Figure, bound: float, rows: int) -> Judged:
    """Whether a figure from so many ``rows``, or groups of them, reaches ``bound``."""
    if estimate.low >= bound:
        return Judged(GateOutcome.PASS)
    if estimate.high < bound:
        return Judged(GateOutcome.FAIL)
    return Judged(GateOutcome.INCONCLUSIVE, _deciding_rows(estimate, bound, rows))


def at_most(estimate: Figure, bound: float, rows: int) -> Judged:
    """Whether a figure from so many ``rows`` stays at ``bound`` or below."""
    if estimate.high <= bound:
        return Judged(GateOutcome.PASS)
    if estimate.low > bound:
        return Judged(GateOutcome.FAIL)
    return Judged(GateOutcome.INCONCLUSIVE, _deciding_rows(estimate, bound, rows))


def not_worse(difference: Difference) -> Judged:
    """Whether a model holds its ground against another: it fails only where it is worse beyond chance, since two equal
    models cannot be told apart by any number of rows."""
    return Judged(GateOutcome.FAIL if difference.worse_beyond_chance else GateOutcome.PASS)


def _deciding_rows(estimate: Figure, bound: float, rows: int) -> int | None:
    """An interval's width shrinks with the root of the number of rows: as many as bring its near end to the bound, if
    the value stays. Rounded, since it is a guess."""
    distance = abs(estimate.value - bound)
    reach = estimate.value - estimate.low if estimate.value >= bound else estimate.high - estimate.value
    if distance == 0 or rows * (reach / distance) ** 2 > MOST_ROWS:
        return None
    return _rounded(max(rows + 1, ceil(rows * (reach / distance) ** 2)))


def _rounded(count: float) -> int:
    """Up, to two digits."""
    unit: int = 10 ** max(0, floor(log10(count)) - 1)
    return ceil(count / unit) * unit
