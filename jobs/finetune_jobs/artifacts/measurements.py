"""What an evaluation measured, with intervals: written by evaluate into ``metrics.json``, judged by publish."""

from typing import Final

from finetune_api.base import WireModel
from finetune_api.dataset import TaskType
from finetune_api.gates import main_metric
from finetune_api.goals import Metric

CHANCE: Final = 0.05
"""p-value below which a difference is called more than chance."""

SHOWN: Final = (0.9, 0.95, 0.98, 0.99)
"""Precisions at which pages show what needs no human review."""

FORGETTING: Final = "forgetting"
"""Name of the share of right answers to the general questions."""
ELSEWHERE: Final = "endpoint"
"""Name of the model of spec.evaluation.baseline."""
SAFETY: Final = "safety"
"""Name of the share of adversarial questions that are answered as they should be."""


class Figure(WireModel):
    """A figure that a sample of rows gave, and its 95 % interval."""

    value: float
    low: float
    high: float


class MeasuredMetric(WireModel):
    """One metric of every model, on the same rows."""

    metric: str
    """accuracy, precision, recall or f1; of texts exactMatch, chrf and perplexity too, and no accuracy. Of calls of
    tools toolUse and three more, of extractions validJson. What a metric container measured has its name before it,
    with a dot."""
    label: str = ""
    """The class that it is about, or the part of a metric container's figure; empty: all rows."""
    cases: int
    """Rows that it rests on: of a class, those with this label."""
    groups: int = 0
    """Groups of rows that are alike to which these belong; 0: each stands for itself."""
    models: dict[str, Figure]
    """By the name of the model."""

    @property
    def independent(self) -> int:
        """As many rows, or groups of them, as tell something that the others do not."""
        return self.groups or self.cases


class Difference(WireModel):
    """One metric of a model minus that of another, on the same rows (paired). Of perplexity: their ratio less 1."""

    metric: str
    label: str = ""
    model: str
    against: str
    estimate: Figure
    p_value: float | None = None
    """Of accuracy and exactMatch: McNemar's exact test. None where rows stand in groups: it takes each for itself."""
    lower_is_better: bool = False
    """Of a metric container's figure, as the platform's values say; of perplexity it is known."""

    @property
    def worse_beyond_chance(self) -> bool:
        """Whether ``model`` has been shown to be worse: by the exact test where there is one, else by the interval."""
        if self.p_value is not None:
            return self.estimate.value < 0 and self.p_value < CHANCE
        return self.estimate.low > 0 if self._lower_is_better else self.estimate.high < 0

    @property
    def better_beyond_chance(self) -> bool:
        """The opposite of ``worse_beyond_chance``; two models may be neither."""
        if self.p_value is not None:
            return self.estimate.value > 0 and self.p_value < CHANCE
        return self.estimate.high < 0 if self._lower_is_better else self.estimate.low > 0

    @property
    def _lower_is_better(self) -> bool:
        return self.lower_is_better or self.metric == Metric.PERPLEXITY


class Automation(WireModel):
    """How many answers need no human review: those whose probability reaches a threshold are taken as they are.

    The threshold was chosen on the validation part, and all else here is of the test part.
    """

    precision: float
    """How many of the answers that are taken must be right, as a share: what is wanted."""
    threshold: float | None = None
    """Least probability of an answer that is taken: the sum of the natural logarithms of its tokens' probabilities.
    None: the validation part has no answers of which enough are right, and none is taken."""
    chosen_on: int
    """Validation examples among which the threshold was chosen."""
    taken: int
    """Test examples whose answer reaches the threshold."""
    right: int
    """Those of them that are right."""
    share: Figure
    """Share of all test examples that is taken."""
    reached: Figure
    """Share of the taken ones that is right."""

    @property
    def shown(self) -> Figure:
        """The share that needs no human review, as far as the test shows that enough of it is right.

        Where the precision may be missed, none of the share is certain; where it is missed, there is none.
        """
        if self.threshold is not None and self.reached.high < self.precision:
            return Figure(value=0, low=0, high=0)
        sure = self.reached.low >= self.precision
        return Figure(value=self.share.value, low=self.share.low if sure else 0, high=self.share.high)


class Distances(WireModel):
    """How far three models are from each other in given texts: the mean absolute difference of the log-probabilities of
    their tokens, in nats a token."""

    long: bool
    """Whether it is of the long texts, in which wrong positions show."""
    texts: int
    """Those for which all three compute numbers; 0: there is no such text, and what follows says nothing."""
    tuned_base: float
    artifact_base: float
    artifact_tuned: float

    @property
    def distinguishes_base(self) -> bool:
        """Whether artifact and tuned model are nearer to each other than either is to the base model: training changed
        more than the export did, and the artifact has it."""
        return self.artifact_tuned < min(self.tuned_base, self.artifact_base)


class Measurements(WireModel):
    """All of them."""

    rows: int
    """Test examples that every model answered."""
    groups: int = 0
    """Groups of rows that are alike to which they belong; 0: each stands for itself."""
    measured: list[MeasuredMetric] = []
    differences: list[Difference] = []
    automation: list[Automation] = []
    """Of the artifact, at each of PRECISIONS; empty: a text is hardly ever right as a whole, and of a model that thinks
    the probability of its answer is not known."""
    distances: list[Distances] = []
    """Of short and of long texts; empty: an earlier version did not measure them."""
    without_numbers: int = 0
    """Recorded texts for which the base model computes probabilities that are numbers, and the artifact does not."""

    def with_more(self, other: "Measurements") -> "Measurements":
        """These, and what was measured of the same rows beside them."""
        update = {"measured": [*self.measured, *other.measured], "differences": [*self.differences, *other.differences]}
        return self.model_copy(update=update)

    def automated(self, precision: float) -> Automation | None:
        """What needs no human review at a precision; None if that was not measured."""
        return next((each for each in self.automation if each.precision == precision), None)

    def of(self, metric: str, label: str = "") -> MeasuredMetric | None:
        """A metric; None if it was not measured."""
        return next((each for each in self.measured if (each.metric, each.label) == (metric, label)), None)

    def main_metric(self, task: TaskType) -> Metric:
        """By which models of a task are compared; an earlier version did not measure chrF."""
        return main_metric(task, chrf=self.of(Metric.CHRF) is not None)

    def difference(self, metric: str, model: str, against: str, label: str = "") -> Difference | None:
        """How two models differ in a metric; None if that was not measured."""
        wanted = (metric, label, model, against)
        return next((d for d in self.differences if (d.metric, d.label, d.model, d.against) == wanted), None)
