"""For how long a candidate may take, and what it held hardware for if it took longer. Pure."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.health import HOLDS_NOTHING, LONG_WAIT_SECONDS, NEEDS_SOMEBODY
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import Outlook, ServerProblem, has_node
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.framework.conditions import ConditionType, parse_timestamp
from finetune_operator.framework.objects import Object


def promoting_left(candidate: RevisionStatus, target: Target, now: datetime) -> float | None:
    """Seconds that a verified candidate still has to start its other pods; None for one that is not verified."""
    if candidate.state is not RevisionState.PROMOTING:
        return None
    age = (now - parse_timestamp(candidate.since)).total_seconds()
    return max(0.0, target.serving.start_seconds - age)


def held_too_long(problem: ServerProblem | None) -> ServerProblem | None:
    """The problem, if a pod has held its node for as long as it may."""
    return problem if problem is not None and problem.outlook is Outlook.GIVE_BACK else None


def refused_for_long(
    observed: ObservedDeployment, candidate: RevisionStatus, seconds: float, pods: Sequence[Object], now: datetime
) -> ServerProblem | None:
    """Why the rollout does not go on, if the API server has refused an object of it for so many seconds of its state
    while pods hold hardware.

    A refusal leaves the candidate as it was; a wait of its pods for hardware is the candidate's own reason.
    """
    stalled = next((each for each in observed.resource.status.conditions if each.type == ConditionType.STALLED), None)
    if stalled is None or stalled.status != "True":
        return None
    if stalled.reason not in HOLDS_NOTHING or stalled.reason == candidate.reason:
        return None
    since = max(map(parse_timestamp, (stalled.last_transition_time, candidate.since)))
    age = (now - since).total_seconds()
    if age < seconds or not any(map(has_node, pods)):
        return None
    return ServerProblem(Reason(stalled.reason), stalled.message)


def promotion_overdue(problem: ServerProblem | None, replicas: int, target: Target) -> ServerProblem:
    """Why a verified candidate is not promoted: its first pods hold hardware that the others do not get."""
    said = f"Verified, but not all of its {replicas} pods were ready {target.serving.start_seconds} s later."
    if problem is None:
        return ServerProblem(Reason.DEADLINE_EXCEEDED, said)
    return ServerProblem(problem.reason, f"{said} {problem.message}")


def long_wait_left(candidate: RevisionStatus, now: datetime) -> float | None:
    """Seconds until a wait counts as long; None if it does not wait for hardware or a verdict, or already for long."""
    left = LONG_WAIT_SECONDS - (now - parse_timestamp(candidate.since)).total_seconds()
    return left if candidate.reason in NEEDS_SOMEBODY and left > 0 else None
