"""Whether the votes of people are enough to publish an artifact, or not to. Pure functions."""

from finetune_api.gates import GateOutcome, OnInconclusive
from finetune_api.reasons import Reason
from finetune_api.review import ReviewStatus, ReviewTerms
from finetune_api.stages import PublishParams
from finetune_jobs.artifacts.measurements import Figure
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.gates import at_least
from finetune_jobs.evaluation.metrics import at_every_look
from finetune_jobs.evaluation.review.sheet import MOST_PAIRS
from finetune_jobs.evaluation.review.stored import ReviewState


def judge_review(terms: ReviewTerms, state: ReviewState, *, warns: bool = False) -> ReviewStatus:
    """What the votes show: a win rate is judged by its whole interval, like any goal, and by nothing with fewer votes
    than the least number. ``warns``: what remains undecided is published with a warning.

    Raises StageError (GateFailed) where nobody can vote, since all answers are those of the base model, and where no
    votes could pass it, which would be waited for without end.
    """
    if not state.sheet.votable:
        raise StageError(
            Reason.GATE_FAILED,
            f"spec.evaluation.humanReview is Required, but none of the {len(state.sheet.pairs)} pairs on the review "
            "page has different answers, so there is nothing to vote on.",
        )
    pairs = len(state.sheet.votable)
    most = at_every_look(pairs, pairs)[0]
    if most < float(terms.win_rate) and not warns:
        raise StageError(
            Reason.GATE_FAILED,
            f"The review page has {pairs} pairs with different answers. Even if people preferred the artifact in all "
            f"of them, the 95 % interval of the win rate would begin at {most:.4f}, and {terms.win_rate} is required: "
            f"no votes can pass it. Test on more examples (spec.evaluation.maxSamples; a page has at most {MOST_PAIRS} "
            "pairs), or lower spec.evaluation.review.winRate.",
        )
    it = state.tally
    enough = it.votes >= terms.votes
    judged = at_least(Figure(value=it.win_rate, low=it.low, high=it.high), float(terms.win_rate), max(1, it.pairs))
    return ReviewStatus(
        outcome=judged.outcome if enough else GateOutcome.INCONCLUSIVE,
        votes=it.votes,
        reviewers=it.reviewers,
        win_rate=f"{it.win_rate:.4f}",
        low=f"{it.low:.4f}",
        high=f"{it.high:.4f}",
    )


def is_undecided(said: ReviewStatus, params: PublishParams) -> bool:
    """Whether to wait for more votes. With ``onInconclusive: Warn`` the least number of them is enough."""
    enough = warns(params) and said.votes >= params.reviewing.review.votes
    return said.outcome is GateOutcome.INCONCLUSIVE and not enough


def warns(params: PublishParams) -> bool:
    """Whether what remains undecided is published with a warning."""
    return params.gates.on_inconclusive is OnInconclusive.WARN
