"""Models behind URLs that an evaluation asks: one to compare with, and a judge that compares answers."""

from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel, WireModel
from finetune_api.distillation import TeacherPrices, TeacherRef
from finetune_api.hashing import digest

MOST_JUDGED: Final = 200
"""Pairs on the page on which people vote: a judge sees the same ones."""


class Judge(ApiModel):
    """A model behind an OpenAI-compatible URL that compares the artifact's answers with the base model's."""

    endpoint: TeacherRef
    """The model that judges. It gets test examples and answers, and must be none of those under test."""
    rubric: Annotated[str | None, Field(min_length=1, max_length=4096)] = None
    """By what the better answer is chosen. Default: right by the expected answer, then complete, then to the point."""
    max_examples: Annotated[int, Field(ge=5, le=MOST_JUDGED)] = 100
    """Maximum number of pairs of different answers that are judged, the first of those on the evaluation's
    review.html."""
    max_requests: Annotated[int, Field(ge=10, le=10000)] = 500
    """Maximum number of requests about one evaluation, of all pods together; at least twice maxExamples. Each
    pair takes two, and more where an answer is no verdict."""
    max_answer_tokens: Annotated[int, Field(ge=16, le=131072)] = 1024
    """Maximum tokens of a verdict; a judge that thinks before it answers needs more."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of concurrent requests."""
    requests_per_minute: Annotated[int | None, Field(ge=1, le=100000)] = None
    """Maximum requests per minute, evenly spread. Default: no limit."""
    prices: TeacherPrices | None = None
    """Prices of the judge. If omitted, tokens are counted but not their cost."""

    @property
    def identity(self) -> str:
        """Equal for judges that are asked the same: whose verdicts on an evaluation are one object."""
        shapes = [self.endpoint.url, self.endpoint.model, self.rubric, self.max_examples, self.max_answer_tokens]
        return digest(shapes)


class OtherModel(ApiModel):
    """A model behind an OpenAI-compatible URL that answers the test examples too, untuned."""

    endpoint: TeacherRef
    """The model. It gets the test examples' prompts, and the examples that the base model is shown."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=131072)] = 1024
    """Maximum tokens of an answer; one that is cut off there counts as it is."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of concurrent requests."""
    requests_per_minute: Annotated[int | None, Field(ge=1, le=100000)] = None
    """Maximum requests per minute, evenly spread. Default: no limit."""


class JudgeStatus(WireModel):
    """What the judge of spec.evaluation.judge said of the artifact's answers."""

    model: Annotated[str, Field(max_length=128)] = ""
    """Name of the model that judged."""
    win_rate: Annotated[str, Field(max_length=16)] = ""
    """Share of pairs in which it prefers the artifact, a tie counting half. Empty: it gave no verdict."""
    low: Annotated[str, Field(max_length=16)] = ""
    """Lower end of its 95 % interval."""
    high: Annotated[str, Field(max_length=16)] = ""
    """Upper end."""
    wins: Annotated[int, Field(ge=0)] = 0
    """Pairs in which it prefers the artifact's answer in both orders."""
    losses: Annotated[int, Field(ge=0)] = 0
    """Pairs in which it prefers the base model's answer in both orders."""
    ties: Annotated[int, Field(ge=0)] = 0
    """Pairs in which it says so, or says another thing in the other order."""
    undecided: Annotated[int, Field(ge=0)] = 0
    """Pairs on which it gave no verdict."""
    agreed: Annotated[int, Field(ge=0)] = 0
    """Of the pairs on which people voted too: those in which it says what most of them say."""
    voted: Annotated[int, Field(ge=0)] = 0
    """Pairs on which people voted and the judge gave a verdict."""
    cost_usd: Annotated[str, Field(max_length=16)] = ""
    """What its requests cost in US dollars; empty: its prices are not known."""
    message: Annotated[str, Field(max_length=512)] = ""
    """Why it gave no verdict, or was not asked; empty: it did."""
