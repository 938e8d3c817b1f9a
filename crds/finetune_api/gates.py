"""The gates that an artifact passes to be published, and what they found."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from finetune_api.base import ApiModel, Count, OpenEnum, WireModel
from finetune_api.dataset import MAX_CANARIES, TaskType
from finetune_api.goals import ASKED, LONGEST_TEXT, MAX_GOALS, OF_CANARIES, Goal, Metric


class OnInconclusive(StrEnum):
    """What becomes of an artifact whose test is too small to tell."""

    BLOCK = "Block"
    WARN = "Warn"


class OnFail(StrEnum):
    """What becomes of an artifact that misses a goal."""

    STOP = "Stop"
    PUBLISH_AS_CANDIDATE = "PublishAsCandidate"


class Gates(ApiModel):
    """What an artifact must reach to be published."""

    goals: Annotated[list[Goal], Field(max_length=MAX_GOALS)] = []
    """What the artifact must reach. By default it must only not be worse than the base model, beyond chance."""
    on_inconclusive: OnInconclusive = OnInconclusive.BLOCK
    """What to do if the test is too small to tell. Block: as if the goal was missed. Warn: publish, and say so."""
    on_fail: OnFail = OnFail.STOP
    """What to do if a goal is missed. Stop: nothing is published. PublishAsCandidate: published under the channel
    candidate, which nothing serves by itself. The run fails either way (GateFailed)."""

    def texts(self, task: TaskType, *, chrf: bool = True) -> list[str]:
        """What is judged, for people: the goals, or the one gate that stands without any; ``chrf`` as in
        ``main_metric``."""
        return [goal.text for goal in self.goals] or [f"{main_metric(task, chrf=chrf)} not worse than the base model's"]


def main_metric(task: TaskType, *, chrf: bool = True) -> Metric:
    """By which models of a task are compared. A text is hardly ever the very words that were expected; ``chrf``:
    whether the evaluation measured it, which earlier versions did not."""
    if task is TaskType.TEXT:
        return Metric.CHRF if chrf else Metric.F1
    return Metric.ACCURACY


class GateOutcome(OpenEnum):
    """What a gate says."""

    PASS = "Pass"
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"


class GoalStatus(WireModel):
    """A goal and what the artifact reached."""

    goal: Annotated[str, Field(max_length=LONGEST_TEXT)]
    """The goal, e.g. accuracy at least 0.95."""
    value: Annotated[str, Field(max_length=16)] = ""
    """The figure, or the difference to the base model. Empty: nothing was asked, since the run ended anyway."""
    low: Annotated[str, Field(max_length=16)] = ""
    """Lower end of its 95 % interval."""
    high: Annotated[str, Field(max_length=16)] = ""
    """Upper end."""
    outcome: GateOutcome
    """Pass, Fail or Inconclusive."""
    deciding_rows: Count = None
    """If inconclusive: about how many test examples would decide."""
    deciding_groups: int | None = None
    """The same if test examples form groups of similar rows: about how many groups would decide; 0: too many to
    estimate."""

    @property
    def about(self) -> str:
        """The metric, or the container's figure."""
        return self.goal.partition(" ")[0]

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        if not self.value:
            return f"Not judged: {self.goal}."
        found = f"{self.goal}: {self.value} (95 % interval {self.low} to {self.high})"
        if self.outcome is GateOutcome.FAIL:
            return f"Missed {found}."
        if self.outcome is GateOutcome.INCONCLUSIVE:
            rows = f"about {self.deciding_rows:,}" if self.deciding_rows else "many more"
            if self.about in OF_CANARIES:
                if self.deciding_rows and self.deciding_rows <= MAX_CANARIES:
                    return f"Too few canaries for {found}; {rows} would decide: set spec.dataset.canaries."
                return (
                    f"Too few canaries for {found}; {rows} would decide, and spec.dataset.canaries plants at most "
                    f"{MAX_CANARIES}. Raise atMost, or set onInconclusive to Warn."
                )
            if asked := next((field for field, metrics in ASKED.items() if self.about in metrics), ""):
                more = f"Full for spec.evaluation.{asked} asks all that there are"
                return f"Too few questions for {found}; {rows} would decide. {more}."
            if self.about == Metric.JUDGE_WIN_RATE:
                more = "raise spec.evaluation.judge.maxExamples and maxSamples, or set onInconclusive to Warn"
                return f"Too few pairs of different answers for {found}; {rows} would decide: {more}."
            if self.deciding_groups is not None:
                groups = f"about {self.deciding_groups:,}" if self.deciding_groups else "many more"
                return (
                    f"Too few groups of test examples for {found}; {groups} would decide, however many rows each has."
                )
            return f"Too few test examples for {found}; {rows} would decide."
        return f"Met {found}."


def blocking(found: list[GoalStatus], on_inconclusive: OnInconclusive) -> list[GoalStatus]:
    """The goals for which an artifact is not accepted. An outcome of a newer version is no pass."""
    accepted = {GateOutcome.PASS} | ({GateOutcome.INCONCLUSIVE} if on_inconclusive is OnInconclusive.WARN else set())
    return [each for each in found if each.outcome not in accepted]


_Found = tuple[GateOutcome, str, str, str, int | None]
_InGroups = tuple[GateOutcome, str, str, str, int | None, int]
_FOUND: Final = TypeAdapter(list[_Found | _InGroups])
"""Groups, if there are any, come last: results of earlier versions have none."""


def packed(found: Sequence[GoalStatus]) -> str:
    """What was found, without what was asked: a stage's result is short, and a goal may name a long label."""
    rows: list[_Found | _InGroups] = []
    for each in found:
        row = (each.outcome, each.value, each.low, each.high, each.deciding_rows)
        rows.append(row if each.deciding_groups is None else (*row, each.deciding_groups))
    return _FOUND.dump_json(rows).decode()


def unpacked(text: str, asked: Sequence[str]) -> list[GoalStatus]:
    """The same with what was asked (``Gates.texts``). Raises ValueError for anything else."""
    rows = zip(asked, _FOUND.validate_json(text), strict=True)
    return [
        GoalStatus(
            goal=goal,
            outcome=outcome,
            value=value,
            low=low,
            high=high,
            deciding_rows=more,
            deciding_groups=groups[0] if groups else None,
        )
        for goal, (outcome, value, low, high, more, *groups) in rows
    ]
