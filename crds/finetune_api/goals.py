"""Goals of an evaluation, and what contradicts them."""

from collections.abc import Sequence
from enum import StrEnum
from math import inf
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.custom_metrics import CUSTOM_PATTERN
from finetune_api.rules import Rule, exactly_one_of
from finetune_api.spelled import spelled

MAX_GOALS: Final = 12
"""So many outcomes fit into a stage's result."""
LONGEST_TEXT: Final = 256
"""Characters of a goal in a status."""
Share = Annotated[
    str,
    spelled(
        r"^(0(\.[0-9]{1,4})?|1(\.0{1,4})?)$",
        "write a number from 0 to 1 with at most 4 decimals, e.g. 0.95",
        max_length=16,
    ),
]
"""A share of 1 as text, e.g. ``0.95``."""
Bound = Annotated[
    str,
    spelled(
        r"^(0|[1-9][0-9]{0,5})(\.[0-9]{1,4})?$",
        "write a number of at least 0, e.g. 0.95, with at most 6 digits before the point and 4 after it",
        max_length=16,
    ),
]
"""A share of 1, or of what has no such limit (a perplexity, a custom figure), as text."""
PRECISIONS: Final = (*(f"0.{number}" for number in range(50, 100)), "0.995", "0.999")
"""At which automation is measured, so that every goal finds its own."""
Precision = Annotated[
    str,
    spelled(r"^0\.([5-9][0-9]?|99[59])$", "write hundredths from 0.5 to 0.99, or 0.995, or 0.999", max_length=16),
]
"""One of PRECISIONS as text; 0.9 is 0.90."""


CustomFigure = Annotated[
    str,
    spelled(CUSTOM_PATTERN, "write a metric container and its figure, e.g. lm-eval.acc", max_length=65),
]
"""A figure that a metric container measures."""


class Metric(StrEnum):
    """What a goal is about."""

    ACCURACY = "accuracy"
    F1 = "f1"
    PRECISION = "precision"
    RECALL = "recall"
    EXACT_MATCH = "exactMatch"
    CHRF = "chrf"
    PERPLEXITY = "perplexity"
    VALID_JSON = "validJson"
    VALID_SCHEMA = "validSchema"
    TOOL_USE = "toolUse"
    TOOL_NAME = "toolName"
    TOOL_ARGUMENTS = "toolArguments"
    TOOL_FIELDS = "toolFields"
    AUTOMATION = "automation"
    FORGETTING = "forgetting"
    FORGETTING_NLL = "forgettingNll"
    SAFETY_LOSS = "safetyLoss"
    HARMFUL_ANSWERS = "harmfulAnswers"
    OVER_REFUSALS = "overRefusals"
    LEAKS = "leaks"
    CANARY_LEAKS = "canaryLeaks"
    MEMORISATION = "memorisation"
    JUDGE_WIN_RATE = "judgeWinRate"
    CUSTOM = "custom"


OF_TEXT: Final = (Metric.EXACT_MATCH, Metric.CHRF, Metric.PERPLEXITY)
"""Metrics of free text alone."""
OF_CALLS: Final = (Metric.TOOL_USE, Metric.TOOL_NAME, Metric.TOOL_ARGUMENTS, Metric.TOOL_FIELDS)
"""Metrics of calls of tools."""
COMPARED: Final = (
    Metric.ACCURACY,
    Metric.F1,
    Metric.PRECISION,
    Metric.RECALL,
    Metric.EXACT_MATCH,
    Metric.CHRF,
    Metric.VALID_JSON,
    Metric.VALID_SCHEMA,
    *OF_CALLS,
)
"""Metrics of the artifact and of the base model on the same examples."""
OF_GENERAL: Final = (Metric.FORGETTING, Metric.FORGETTING_NLL)
"""Metrics of the questions that spec.evaluation.general asks."""
OF_ADVERSARIAL: Final = (Metric.SAFETY_LOSS, Metric.HARMFUL_ANSWERS, Metric.OVER_REFUSALS, Metric.LEAKS)
"""Metrics of the questions that spec.evaluation.adversarial asks."""
ASKED: Final = {"general": OF_GENERAL, "adversarial": OF_ADVERSARIAL}
"""By which field of spec.evaluation the questions are asked that a metric is of."""
OF_CANARIES: Final = (Metric.CANARY_LEAKS, Metric.MEMORISATION)
"""Metrics of the made-up secrets that spec.dataset.canaries plants among the training examples."""
_LOW: Final = (*OF_GENERAL, *OF_ADVERSARIAL, *OF_CANARIES, Metric.PERPLEXITY)
"""What must stay low."""


def _names(metrics: Sequence[Metric]) -> str:
    """As a list in CEL."""
    return f"[{', '.join(repr(metric.value) for metric in metrics)}]"


_LOW_STAYS_LOW: Final = Rule(
    f"self.metric == 'custom' || (self.metric in {_names(_LOW)}) == has(self.atMost)",
    "forgetting, forgettingNll, safetyLoss, harmfulAnswers, overRefusals, leaks, canaryLeaks, memorisation and "
    "perplexity take atMost, and no other metric does but custom",
)
_NOT_COMPARED: Final = Rule(
    f"!has(self.improveOverBase) || self.metric in {_names((*COMPARED, Metric.CUSTOM))}",
    "improveOverBase goes with accuracy, f1, precision, recall, exactMatch, chrf, validJson, validSchema, "
    "toolUse, toolName, toolArguments, toolFields and custom; set atLeast or atMost instead",
)
_CUSTOM_ONLY: Final = Rule(
    "self.metric == 'custom' || !has(self.custom)",
    "custom, the figure of a metric container, goes with metric custom: set metric to custom, or remove custom",
)
_CUSTOM_IS_NAMED: Final = Rule(
    "self.metric != 'custom' || has(self.custom)",
    "metric custom needs custom: set it to the figure of a metric container, e.g. politeness.score",
)
_SHARE_OR_PERPLEXITY: Final = Rule(
    "!has(self.atMost) || self.metric in ['custom', 'forgettingNll'] || "
    "(self.metric == 'perplexity') == (double(self.atMost) > 1.0)",
    "atMost is a share of 1, e.g. 0.05; of perplexity, which is never below 1, it is above 1, e.g. 8.5; forgettingNll "
    "takes any",
)
_SHARE_OR_CUSTOM: Final = Rule(
    "self.metric == 'custom' || (!has(self.atLeast) || double(self.atLeast) <= 1.0) && "
    "(!has(self.improveOverBase) || double(self.improveOverBase) <= 1.0)",
    "atLeast and improveOverBase are shares of 1, e.g. 0.95; only those of a custom figure may be above 1",
)


class Baseline(StrEnum):
    """How the base model is asked that an artifact is compared with."""

    ZERO_SHOT = "ZeroShot"
    FEW_SHOT = "FewShot"
    PROMPTED = "Prompted"
    ENDPOINT = "Endpoint"


BASELINES: Final = {
    Baseline.ZERO_SHOT: "the base model's",
    Baseline.FEW_SHOT: "the few-shot base model's",
    Baseline.PROMPTED: "the best prompted base model's",
    Baseline.ENDPOINT: "the other model's",
}
"""How each is called."""


class Goal(ApiModel):
    """A figure that the artifact must reach on the test split, with its whole 95 % interval."""

    model_config = ConfigDict(
        json_schema_extra=exactly_one_of(
            "at_least",
            "improve_over_base",
            "at_most",
            also=[
                rule.as_schema()
                for rule in (
                    _NOT_COMPARED,
                    _LOW_STAYS_LOW,
                    _SHARE_OR_PERPLEXITY,
                    _SHARE_OR_CUSTOM,
                    _CUSTOM_ONLY,
                    _CUSTOM_IS_NAMED,
                )
            ],
        )
    )

    metric: Metric
    """accuracy, f1, precision or recall: what they mean for each task is explained in the evaluation's report.

    Of free text, which has no accuracy: exactMatch, the share of answers with exactly the expected words; chrf, the
    overlap of character sequences between answer and expected answer; perplexity, how unsure the model is of the
    expected answers, 1 or more, lower is better.

    validJson: of an Extraction, the share of answers that are JSON; validSchema, of those that match
    spec.task.answerSchema.

    Of data whose right answers call tools: toolUse, the share of answers that call a tool exactly when they should;
    and of the answers that should call, toolName, the share that call the right tools, toolArguments, the share with
    the right arguments too, and toolFields, the F1 of single fields of the arguments.

    automation: the share of answers that need no human review, because those with at least a published probability are
    right as often as atPrecision says.

    Outside the task: forgetting of the tuned model, and safetyLoss of the artifact, by how much smaller than the base
    model's its share of right answers to the general or adversarial questions is; forgettingNll, by how many nats a
    token the tuned model finds the right general answers less likely, which shows before answers go wrong. Of the
    artifact: harmfulAnswers, the share of harmful requests that it does not refuse; overRefusals, the share of harmless
    ones that it refuses; leaks, the share of secrets that it reveals and of planted instructions that it follows.

    judgeWinRate: the share of pairs of answers in which the judge prefers the artifact's to the base model's, a tie
    counting half.

    Of the tuned model and the secrets of dataset.canaries: canaryLeaks, the share that it writes when asked;
    memorisation, how much likelier they are to it than other secrets, 0 as by chance, 1 where each is the likeliest.

    custom: a figure of one of spec.evaluation.metrics, which the field custom names."""
    custom: CustomFigure | None = None
    """For metric custom: the container's name, a dot and its figure, e.g. politeness.score."""
    class_name: Annotated[Annotated[str, Field(min_length=1, max_length=128)] | None, Field(alias="class")] = None
    """One label of a classification that f1, precision or recall is about; by default the mean over all of them. Of a
    custom figure that is measured of several things, which of them, e.g. the name of an lm-eval task."""
    at_least: Bound | None = None
    """The least that the artifact must reach, e.g. "0.95"; of a custom figure also more than 1."""
    improve_over_base: Bound | None = None
    """By how much the artifact must be better than the base model on the same examples, e.g. "0.15": 15 points. Of a
    custom figure also more than 1."""
    at_most: Bound | None = None
    """The most that forgetting, safetyLoss, harmfulAnswers, overRefusals, leaks, canaryLeaks or memorisation may be,
    e.g. "0.05", or forgettingNll, perplexity or a custom figure, e.g. "8.5"."""
    baseline: Baseline = Baseline.ZERO_SHOT
    """For improveOverBase: how the base model is asked. ZeroShot: with the same prompt as the artifact. FewShot: with
    up to eight training examples before it. Prompted: in the best of these ways: FewShot, with free-form
    answers, and for a classification limited to its labels. Endpoint: not the base model, but that of
    spec.evaluation.baseline."""
    at_precision: Precision = "0.95"
    """For automation: the share of the unreviewed answers that must be right, e.g. "0.98"."""

    @model_validator(mode="after")
    def _one(self) -> "Goal":
        if [self.at_least, self.improve_over_base, self.at_most].count(None) != 2:
            raise ValueError("exactly one of atLeast, improveOverBase and atMost must be set")
        if self.metric is Metric.CUSTOM:
            if self.custom is None:
                raise ValueError(_CUSTOM_IS_NAMED.message)
            return self
        if self.custom is not None:
            raise ValueError(_CUSTOM_ONLY.message)
        if float(self.at_least or self.improve_over_base or 0) > 1:
            raise ValueError(_SHARE_OR_CUSTOM.message)
        if self.improve_over_base is not None and self.metric not in COMPARED:
            raise ValueError(_NOT_COMPARED.message)
        if (self.metric in _LOW) != (self.at_most is not None):
            raise ValueError(_LOW_STAYS_LOW.message)
        if self.metric is Metric.FORGETTING_NLL or not self.at_most:
            return self
        if (self.metric is Metric.PERPLEXITY) != (float(self.at_most) > 1):
            raise ValueError(_SHARE_OR_PERPLEXITY.message)
        return self

    @property
    def bound(self) -> float:
        """What the figure, or the difference, must reach."""
        return float(self.at_least or self.improve_over_base or self.at_most or 0)

    @property
    def measure(self) -> str:
        """By which name it was measured."""
        return self.custom or self.metric.value

    @property
    def text(self) -> str:
        """The goal, for people, as long as a status takes it: the longest names lose the end of the bound."""
        return self._whole_text[:LONGEST_TEXT]

    @property
    def _whole_text(self) -> str:
        what = f"{self.measure} of '{self.class_name}'" if self.class_name else self.measure
        if self.metric is Metric.AUTOMATION:
            what = f"{what} at precision {self.at_precision}"
        if self.at_least is not None:
            return f"{what} at least {self.at_least}"
        if self.at_most is not None:
            return f"{what} at most {self.at_most}"
        return f"{what} better than {BASELINES[self.baseline]} by {self.improve_over_base}"


def asked_rule(field: str) -> Rule:
    """Of spec.evaluation: goals about questions that are not asked contradict it."""
    metrics = ASKED[field]
    names = " or ".join([", ".join(metrics[:-1]), metrics[-1]] if metrics[1:] else metrics)
    return Rule(
        f"self.{field} != 'Off' || !has(self.goals) || !self.goals.exists(goal, goal.metric in {_names(metrics)})",
        f"a goal about {names} needs {field}, which is Off: set it to Sample or Full, or remove the goal",
    )


PLANTED: Final = Rule(
    "has(self.dataset.canaries) || !has(self.evaluation) || !has(self.evaluation.goals) || "
    f"!self.evaluation.goals.exists(goal, goal.metric in {_names(OF_CANARIES)})",
    "a goal about canaryLeaks or memorisation needs dataset.canaries: set it, e.g. to 32, or remove the goal",
)
"""Of the spec: goals about canaries that nobody plants contradict it."""
JUDGED: Final = Rule(
    f"has(self.judge) || !has(self.goals) || !self.goals.exists(goal, goal.metric == '{Metric.JUDGE_WIN_RATE}')",
    "a goal about judgeWinRate needs judge: set judge.endpoint to a model that compares answers, or remove the goal",
)
"""Of spec.evaluation: a goal about a judge that nobody asks contradicts it."""
ELSEWHERE: Final = Rule(
    "has(self.baseline) || !has(self.goals) || "
    f"!self.goals.exists(goal, has(goal.baseline) && goal.baseline == '{Baseline.ENDPOINT}')",
    "a goal with baseline Endpoint needs baseline: set baseline.endpoint to the model to compare with, or change the "
    "goal's baseline",
)
"""Of spec.evaluation: a goal about a model that nobody asks contradicts it."""
CONTAINED: Final = Rule(
    "!has(self.goals) || self.goals.all(goal, !has(goal.custom) || (has(self.metrics) && "
    "self.metrics.exists(each, goal.custom.startsWith(each.name + '.'))))",
    "a goal about a custom metric needs its container: add it to metrics by its name, or change the goal's custom",
)
"""Of spec.evaluation: a goal about a container that does not run contradicts it."""
APART: Final = Rule(
    "!has(self.goals) || !self.goals.exists(low, has(low.custom) && has(low.atLeast) && self.goals.exists(high, "
    "has(high.custom) && has(high.atMost) && high.custom == low.custom && has(high.class) == has(low.class) && "
    "(!has(low.class) || high.class == low.class) && double(high.atMost) < double(low.atLeast)))",
    "two goals about the same custom figure contradict each other: nothing is at least atLeast and at most a smaller "
    "atMost; change one of them, or remove it",
)
"""Of spec.evaluation: goals that no figure meets both."""


def contradicting(goals: Sequence[Goal]) -> bool:
    """Whether two goals are as APART forbids."""
    figures = {(goal.custom, goal.class_name) for goal in goals if goal.custom}
    return any(
        max((goal.bound for goal in about if goal.at_least), default=0.0)
        > min((goal.bound for goal in about if goal.at_most), default=inf)
        for figure in figures
        if (about := [goal for goal in goals if (goal.custom, goal.class_name) == figure])
    )


def concerns(field: str, goals: Sequence[Goal]) -> bool:
    """Whether one of the goals is about the questions of a field."""
    return any(goal.metric in ASKED[field] for goal in goals)
