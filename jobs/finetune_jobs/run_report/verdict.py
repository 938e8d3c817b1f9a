"""How a run ended: its goals as the artifact was judged by them, the judge, the people (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import ValidationError

from finetune_api.artifact_source import Channel
from finetune_api.base import WireModel
from finetune_api.gates import GateOutcome, GoalStatus, unpacked
from finetune_api.judging import JudgeStatus
from finetune_api.review import ReviewStatus, ReviewTerms
from finetune_jobs.evaluation.conclusion import Conclusion

_ANSWERS: Final = {
    GateOutcome.PASS: ("Pass", "✓ met"),
    GateOutcome.FAIL: ("Fail", "✕ missed"),
    GateOutcome.INCONCLUSIVE: ("Warn", "! inconclusive"),
}

M = TypeVar("M", bound=WireModel)


@dataclass(frozen=True)
class RunVerdict:
    """What publish says of a run."""

    scalars: Mapping[str, str]
    """Its result's: the goals, the judge, the people, the channel."""
    artifact: str = ""
    """Digest of what was published; empty: nothing was."""
    why: str = ""
    """Why not."""
    waits: bool = False
    """Whether people are to vote first."""


@dataclass(frozen=True)
class RunEnding:
    """How the run ended."""

    badge: str
    """A class of the style sheet."""
    answer: str
    text: str
    artifact: str = ""
    """URI of what was published; empty: nothing was."""


def ending_of(said: RunVerdict, uri: str) -> RunEnding:
    """How it ended; ``uri`` is that of the artifact, if there is one."""
    if said.waits:
        return RunEnding("Warn", "! waiting", f"Nothing is published until people have voted. {said.why}")
    if not said.artifact:
        return RunEnding("Fail", "✕ stopped", f"A gate stopped the run. {said.why}")
    if said.scalars.get("channel") == Channel.CANDIDATE:
        return RunEnding("Warn", "! candidate", "Published as a candidate: served only if its URI is pinned.", uri)
    return RunEnding("Pass", "✓ published", "The artifact is the newest one under its output name.", uri)


def goals_of(scalars: Mapping[str, str], texts: Sequence[str]) -> list[Conclusion]:
    """The goals with what the artifact reached; ``texts`` are those of ``Gates.texts``. None, if the result does not
    tell: those of an earlier version did not, and a stage that failed before it judged has none."""
    try:
        found = unpacked(scalars.get("goals", "[]"), texts)
    except ValueError:
        return []
    return [_goal(each) for each in found]


def verdicts_of(scalars: Mapping[str, str], terms: ReviewTerms) -> list[Conclusion]:
    """What another model and people said, where they were asked."""
    found: list[Conclusion] = []
    judge, review = _read(scalars, "judge", JudgeStatus), _read(scalars, "review", ReviewStatus)
    if judge:
        found.append(_judge(judge))
    if review:
        badge, answer = _ANSWERS[review.outcome]
        found.append(Conclusion("What people prefer", badge, answer, review.sentence(terms), ""))
    return found


def _goal(status: GoalStatus) -> Conclusion:
    badge, answer = _ANSWERS[status.outcome] if status.value else ("Warn", "! not measured")
    return Conclusion(status.goal, badge, answer, status.sentence, "")


def _judge(status: JudgeStatus) -> Conclusion:
    """A judge decides nothing by itself: a goal about judgeWinRate does, which stands among the goals."""
    question = f"What the judge {status.model} prefers"
    if not status.win_rate:
        return Conclusion(question, "Warn", "! no verdict", status.message, "")
    text = (
        f"It prefers the artifact in {status.wins:,} pairs, the base model in {status.losses:,}, neither in "
        f"{status.ties:,}; {status.undecided:,} have no verdict. Win rate {status.win_rate} (95 % interval "
        f"{status.low} to {status.high})."
    )
    agreed = f" It agrees with people on {status.agreed:,} of {status.voted:,} pairs." if status.voted else ""
    low, high = float(status.low), float(status.high)
    badge, answer = ("Pass", "✓ artifact") if low > 0.5 else ("Fail", "✕ base") if high < 0.5 else ("Warn", "! neither")
    return Conclusion(question, badge, answer, text + agreed, "")


def _read(scalars: Mapping[str, str], name: str, model: type[M]) -> M | None:
    """A part of the result; None if it is not there, or from a version whose form is not known."""
    try:
        return model.model_validate_json(scalars[name]) if name in scalars else None
    except ValidationError:
        return None
