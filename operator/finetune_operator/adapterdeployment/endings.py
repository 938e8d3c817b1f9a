"""How a try to promote a candidate ends: it serves, it has failed, or it is given back and tried again later. Pure."""

from typing import Final

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.candidate import PAUSE_SECONDS, given_back, in_state
from finetune_operator.adapterdeployment.context import RolloutContext
from finetune_operator.adapterdeployment.gap import has_begun
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.revision import asked_gates
from finetune_operator.adapterdeployment.revision_objects import serve
from finetune_operator.adapterdeployment.route import ROUTE
from finetune_operator.adapterdeployment.step import RolloutStep
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.framework.actions import Action, Event
from finetune_operator.outcome.job import Verdict

SCORE_LIMIT: Final = 16
"""The API's limit; pods are not trusted to respect it."""


def fail(
    context: RolloutContext, candidate: RevisionStatus, problem: ServerProblem, actions: tuple[Action, ...]
) -> RolloutStep:
    """The candidate has failed: what serves keeps serving, or comes back if it was stopped for the candidate."""
    stable, now = context.stable, context.now
    failed = in_state(candidate, RevisionState.FAILED, problem.reason, problem.message, now)
    taken_back = failed.since if has_clients(candidate) else None
    failed = failed.model_copy(update={"gap_starts_at": None, "canary": None, "taken_back_at": taken_back})
    if problem.checks:
        failed = failed.model_copy(update={"verification": list(problem.checks)})
    goes_on = "comes back" if has_begun(candidate, now) else "keeps serving"
    if has_clients(candidate):
        goes_on = _all_traffic(context.observed, candidate)
    serves = f" Revision {stable.revision} {goes_on}." if stable else ""
    message = f"Revision {candidate.revision} was not promoted: {problem.message}{serves}"
    event = Event("Warning", problem.reason, message)
    return RolloutStep(stable, failed, actions, (event,), takes_back=has_clients(candidate))


def give_back(
    context: RolloutContext, candidate: RevisionStatus, problem: ServerProblem, actions: tuple[Action, ...]
) -> RolloutStep:
    """The candidate's pods are removed, and it is tried again after a pause."""
    waiting = given_back(candidate, problem, context.now).model_copy(update={"canary": None})
    message = f"Revision {candidate.revision} is not promoted yet: {waiting.message}"
    event = Event("Warning", problem.reason, message)
    return RolloutStep(context.stable, waiting, actions, (event,), PAUSE_SECONDS, takes_back=has_clients(candidate))


def has_clients(candidate: RevisionStatus) -> bool:
    """Whether a candidate has a share of the traffic."""
    return candidate.canary is not None and candidate.canary.started_at is not None


def _all_traffic(observed: ObservedDeployment, candidate: RevisionStatus) -> str:
    """What becomes of the traffic of what serves, once a canary beside it has failed."""
    routed = candidate.canary is not None and candidate.canary.routed_weight is not None
    if routed and observed.unmet.get(ROUTE):
        return "is to get all traffic again; the condition RouteAccepted says why the HTTPRoute is not changed yet"
    if observed.refusal and not routed:
        return "is to get all traffic again; the condition Stalled says what the API server refuses"
    return "gets all traffic again"


def scored(candidate: RevisionStatus, verdict: Verdict) -> RevisionStatus:
    """The candidate with what its verification measured."""
    scores = verdict.result.scalars if verdict.result else {}
    return candidate.model_copy(
        update={
            "accuracy": scores.get("accuracy", "")[:SCORE_LIMIT],
            "expected_accuracy": scores.get("expectedAccuracy", "")[:SCORE_LIMIT],
        }
    )


def promote(context: RolloutContext, target: Target, candidate: RevisionStatus, said: str) -> RolloutStep:
    """Verified and ready: the public Service now points to it."""
    serving = in_state(candidate, RevisionState.SERVING, Reason.SERVING, said, context.now)
    serving = serving.model_copy(update={"gap_starts_at": None, "canary": None, "verification_retries": 0})
    observed, spec = context.observed, context.observed.resource.spec
    serving = serving.model_copy(update={"gates": asked_gates(spec), "verified_by": spec.verification})
    message = f"Revision {target.revision} serves artifact {candidate.artifact_digest[:12]}. {said}"
    return RolloutStep(serving, actions=serve(observed, target), events=(Event("Normal", Reason.PROMOTED, message),))
