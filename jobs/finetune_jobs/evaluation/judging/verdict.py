"""What a judge's preferences amount to, what they are kept as, and whether people agree. Pure functions, no model."""

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Final

from finetune_api.base import WireModel
from finetune_api.goals import Metric
from finetune_api.judging import JudgeStatus
from finetune_jobs.artifacts.measurements import Figure, MeasuredMetric
from finetune_jobs.evaluation.judging.comparison import Preference
from finetune_jobs.evaluation.metrics import wilson

MOST_UNDECIDED: Final = 0.2
"""Share of the pairs without a verdict from which there is none at all (own judgement): those that a judge cannot
decide are not like the others."""


class Judgement(WireModel):
    """``judged/<judge>.json``: what a judge said of an evaluation's answers."""

    SCHEMA: ClassVar[int] = 1

    schema_version: int = SCHEMA
    digest: str
    """ReviewSheet.address: which pairs."""
    model: str
    url: str
    rubric: str | None = None
    """None: the default one."""
    baseline: str
    """As ReviewSheet."""
    preferences: dict[str, Preference]
    """By the id of the pair."""
    reasons: dict[str, int] = {}
    """Why pairs are undecided, and how many for each reason."""
    requests: int = 0
    """Requests that were answered or may be charged, of all pods."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: str = ""
    """Empty: prices are not known."""

    @property
    def counts(self) -> Counter[Preference]:
        """Pairs by what the judge thinks of them."""
        return Counter(self.preferences.values())

    @property
    def decided(self) -> int:
        """Pairs with a verdict, ties included."""
        return len(self.preferences) - self.counts[Preference.UNDECIDED]

    @property
    def figure(self) -> Figure | None:
        """The win rate, and Wilson's interval, which ties, half a win each, make wider than it has to be. None: too
        little was decided."""
        if self.no_verdict:
            return None
        won = self.counts[Preference.ARTIFACT] + self.counts[Preference.TIE] / 2
        low, high = wilson(won, self.decided)
        return Figure(value=won / self.decided, low=low, high=high)

    @property
    def no_verdict(self) -> str:
        """Why there is no win rate, for people; empty: there is one."""
        pairs, undecided = len(self.preferences), self.counts[Preference.UNDECIDED]
        if not pairs:
            return "No two answers differ, so there is nothing to judge."
        if undecided > MOST_UNDECIDED * pairs:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
            return (
                f"The judge {self.model!r} decided {self.decided} of {pairs} pairs, which is too few. The others: "
                f"{why}. Name a model that writes the JSON it is asked for, or raise maxAnswerTokens or maxRequests of "
                "spec.evaluation.judge."
            )
        return ""

    @property
    def measured(self) -> list[MeasuredMetric]:
        """The win rate as a metric of the artifact, for the gates; none if there is none."""
        if (figure := self.figure) is None:
            return []
        return [MeasuredMetric(metric=Metric.JUDGE_WIN_RATE, cases=self.decided, models={"artifact": figure})]


def spared(model: str) -> JudgeStatus:
    """Of a judge that is not asked, since its verdict would change nothing."""
    return JudgeStatus(
        model=model, message=f"The judge {model!r} was not asked, because another gate stops the run anyway."
    )


def status_of(judgement: Judgement, voted: Mapping[str, float]) -> JudgeStatus:
    """For the status; ``voted``: as ``Tally.means``."""
    counts, figure = judgement.counts, judgement.figure
    agreed, of = agreement(judgement, voted)
    ends = {"win_rate": figure.value, "low": figure.low, "high": figure.high} if figure else {}
    shown = {name: f"{value:.4f}" for name, value in ends.items()}
    return JudgeStatus(
        model=judgement.model,
        **shown,
        wins=counts[Preference.ARTIFACT],
        losses=counts[Preference.BASE],
        ties=counts[Preference.TIE],
        undecided=counts[Preference.UNDECIDED],
        agreed=agreed,
        voted=of,
        cost_usd=judgement.cost_usd,
        message=judgement.no_verdict[:512],
    )


def agreement(judgement: Judgement, voted: Mapping[str, float]) -> tuple[int, int]:
    """Pairs on which judge and people say the same, and those on which both said something. People say what most of
    their votes say; votes that cancel out are a tie."""
    both = {
        pair: said for pair, said in judgement.preferences.items() if pair in voted and said is not Preference.UNDECIDED
    }
    return sum(said is meant(voted[pair]) for pair, said in both.items()), len(both)


def meant(mean: float) -> Preference:
    """What the mean of people's votes on a pair says."""
    if mean == 0.5:
        return Preference.TIE
    return Preference.ARTIFACT if mean > 0.5 else Preference.BASE


def in_words(judgement: Judgement, voted: Mapping[str, float]) -> str:
    """The verdict for people."""
    if (figure := judgement.figure) is None:
        return judgement.no_verdict
    counts = judgement.counts
    text = (
        f"The judge {judgement.model!r} prefers the artifact in {counts[Preference.ARTIFACT]} of {judgement.decided} "
        f"pairs and the base model in {counts[Preference.BASE]}, with {counts[Preference.TIE]} ties: win rate "
        f"{figure.value:.1%} (95 % interval {figure.low:.1%} to {figure.high:.1%})."
    )
    agreed, of = agreement(judgement, voted)
    return f"{text} It agrees with people on {agreed} of {of} pairs." if of else text
