"""Human review: whether people must prefer an artifact before it is published, and what they have said."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, WireModel
from finetune_api.gates import GateOutcome
from finetune_api.goals import Share


class HumanReview(StrEnum):
    """Whether an artifact waits for people's votes."""

    OFF = "Off"
    REQUIRED = "Required"


class ReviewTerms(ApiModel):
    """What the votes on an artifact must show."""

    win_rate: Share = "0.5"
    """The share of pairs in which people must prefer the artifact, a tie counting half, with its whole 95 % interval.
    "0.5": more often than not."""
    votes: Annotated[int, Field(ge=5, le=100000)] = 30
    """The least number of votes, of all reviewers together. With fewer nothing is decided."""


class Reviewing(ApiModel):
    """Whether people vote on an artifact, and what their votes must show."""

    human_review: HumanReview = HumanReview.OFF
    """Required: before it publishes, the run waits (AwaitingReview) until the votes of people on the evaluation's
    review.html pass or fail. It holds no GPU meanwhile. To have new votes counted at once, set the annotation
    finetune.dev/review of this resource to a new value; otherwise they are counted once an hour."""
    review: ReviewTerms = ReviewTerms()
    """For humanReview Required: which votes pass."""


class ReviewStatus(WireModel):
    """The votes of people on the artifact's answers."""

    outcome: GateOutcome
    """Pass, Fail, or Inconclusive while there are too few votes."""
    votes: Annotated[int, Field(ge=0)] = 0
    """Votes of all reviewers."""
    reviewers: Annotated[int, Field(ge=0)] = 0
    """People who have voted."""
    win_rate: Annotated[str, Field(max_length=16)] = ""
    """Share of pairs in which they prefer the artifact, a tie counting half."""
    low: Annotated[str, Field(max_length=16)] = ""
    """Lower end of its 95 % interval."""
    high: Annotated[str, Field(max_length=16)] = ""
    """Upper end."""

    def sentence(self, terms: ReviewTerms) -> str:
        """What was found, for people."""
        said = f"{self.votes} vote{'' if self.votes == 1 else 's'} of {self.reviewers} reviewer"
        said += "" if self.reviewers == 1 else "s"
        if self.votes:
            said += f", win rate {self.win_rate} (95 % interval {self.low} to {self.high})"
        asked = f"at least {terms.votes} votes and a win rate of {terms.win_rate} are required"
        if self.outcome is GateOutcome.PASS:
            return f"Human review passed: {said}."
        if self.outcome is GateOutcome.FAIL:
            return f"Human review failed: {said}; {asked}."
        return f"Human review is undecided: {said}; {asked}."
