"""How an exported artifact is tested before it is published."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.custom_metrics import CustomMetrics
from finetune_api.gates import Gates
from finetune_api.goals import (
    APART,
    CONTAINED,
    ELSEWHERE,
    JUDGED,
    Baseline,
    Metric,
    asked_rule,
    concerns,
    contradicting,
)
from finetune_api.judging import Judge, OtherModel
from finetune_api.review import Reviewing


class Coverage(StrEnum):
    """How much of a set of questions that come with this version is asked."""

    OFF = "Off"
    SAMPLE = "Sample"
    FULL = "Full"


class Generator(StrEnum):
    """A program that runs the models under test."""

    TRANSFORMERS = "Transformers"
    VLLM = "VLLM"


class Examination(ApiModel):
    """What the models are asked: the part of an evaluation that its figures depend on."""

    max_samples: Annotated[int, Field(ge=10, le=100000)] = 200
    """Maximum number of test examples that the base model, the tuned model and the artifact each answer."""
    golden_prompts: Annotated[int, Field(ge=2, le=32)] = 8
    """Prompts whose answers are published with the artifact; serving uses them to prove that the adapter is active."""
    general: Coverage = Coverage.SAMPLE
    """Questions outside the task (arithmetic, instructions, format, facts, reading, refusals) for base and tuned model:
    they show what tuning made the model forget. Sample: a fixed part of each kind."""
    adversarial: Coverage = Coverage.SAMPLE
    """Harmful requests and benign ones that sound alike, jailbreaks, injected instructions, secrets, off-topic
    questions, people to be treated alike: they show what tuning did to safety. Sample: a fixed part of each kind."""
    generator: Generator = Generator.TRANSFORMERS
    """Which program runs base model, tuned model and artifact. Transformers: within the stage, whatever was trained
    here. VLLM: the model server's engine, with base and adapter in one, where the platform's admin offers it
    (images.evaluateVllm of the chart's values)."""
    baseline: OtherModel | None = None
    """Another model that answers the same test examples, prompted as well as it can be: whether using that one would
    have done."""


class Evaluation(Gates, Reviewing, Examination):
    """How the exported artifact is tested before it is published."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule.as_schema()
                for rule in (asked_rule("general"), asked_rule("adversarial"), JUDGED, ELSEWHERE, CONTAINED, APART)
            ]
        }
    )

    judge: Judge | None = None
    """Have another model compare the artifact's answers with the base model's, before anything is published: for free
    text, where no metric says whether an answer is good."""
    metrics: CustomMetrics = []
    """Metric containers of the platform that measure the answers, or the models, in addition to the built-in metrics,
    one after the other. Goals use their figures as metric custom."""

    @model_validator(mode="after")
    def _asked(self) -> "Evaluation":
        if self.judge is None and any(goal.metric is Metric.JUDGE_WIN_RATE for goal in self.goals):
            raise ValueError(JUDGED.message)
        if self.baseline is None and any(goal.baseline is Baseline.ENDPOINT for goal in self.goals):
            raise ValueError(ELSEWHERE.message)
        names = {each.name for each in self.metrics}
        if any(goal.custom and goal.custom.partition(".")[0] not in names for goal in self.goals):
            raise ValueError(CONTAINED.message)
        if contradicting(self.goals):
            raise ValueError(APART.message)
        for field, coverage in (("general", self.general), ("adversarial", self.adversarial)):
            if coverage is Coverage.OFF and concerns(field, self.goals):
                raise ValueError(asked_rule(field).message)
        return self

    @property
    def examination(self) -> Examination:
        """Without what is judged by: other goals need no other answers."""
        return Examination(**{name: getattr(self, name) for name in Examination.model_fields})

    @property
    def gates(self) -> Gates:
        """What the figures are judged by."""
        return Gates(goals=self.goals, on_inconclusive=self.on_inconclusive, on_fail=self.on_fail)

    @property
    def reviewing(self) -> Reviewing:
        """Whether people have a say."""
        return Reviewing(human_review=self.human_review, review=self.review)
