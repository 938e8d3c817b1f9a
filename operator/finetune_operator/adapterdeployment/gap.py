"""The gap in service of a rollout in place: when it begins, whose pods are wanted in it, how long it may take. Pure.

Where there is no hardware for two revisions, the pods of the one that serves stop first (``spec.strategy``):

```
             the notice is over, and                     it serves
             the old pods are gone                 ┌──────────────────▶ Serving
Stopping ──────────────────────────▶ Starting … ───┤
announced: ``gapStartsAt``                         └──────────────────▶ Failed, and the one before starts again
                                      nothing goes on for a while, or it fails
```

Two rules keep clients and hardware safe. The public Service points to the old revision, which has no pods, until the
new one is verified. And the pods of a revision are asked for once no other revision's are: in this order both ways.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from finetune_api.meta import LABEL_REVISION, LABEL_ROLE
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem, has_node
from finetune_operator.adapterdeployment.turns import ACTIVE, is_ahead, is_announced
from finetune_operator.framework.conditions import ConditionType, parse_timestamp, timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, Object
from finetune_operator.resources.deployment import SERVER

STALE_SECONDS: Final = LONG_WAIT_SECONDS
"""For how long a gap may last without hardware, or without a verification that runs, before the revision before comes
back. Waiting for room is nothing special while something serves; here nothing does."""
RETURN_SECONDS: Final = 1.0
"""When to look whether the pods of another revision are no longer asked for, so that the one before can start."""


class Remains(NamedTuple):
    """What is left of the pods that have to go before a candidate starts."""

    left: bool
    """Whether any are asked for, or still there."""
    due_after: float | None = None
    """Seconds until the first of those that are stopping should be gone, or the first of the others is not waited for
    any more."""


def has_begun(candidate: RevisionStatus | None, now: datetime) -> bool:
    """Whether the pods of what serves are not to be there, for a candidate's sake."""
    if candidate is None or candidate.gap_starts_at is None or candidate.state not in ACTIVE or is_ahead(candidate):
        return False
    return candidate.state is not RevisionState.STOPPING or parse_timestamp(candidate.gap_starts_at) <= now


def goes_in_place(observed: ObservedDeployment, stable: RevisionStatus | None, now: datetime) -> bool:
    """Whether the pods of what serves stop before those of another revision start. A gap that has begun is used by
    whatever is asked for next, and ends in place whatever the spec says by then."""
    return stable is not None and _one_at_a_time(observed, now)


def gap_start(observed: ObservedDeployment, stable: RevisionStatus, now: datetime) -> str:
    """When the gap begins: as announced, or after the notice. At the next second where nobody gets answers as it is;
    never in the pass that announces it."""
    before = observed.resource.status.candidate
    if before is not None and before.gap_starts_at is not None and is_announced(before):
        return before.gap_starts_at
    live = observed.child(DEPLOYMENTS, stable.deployment) or {}
    serves = bool((live.get("status") or {}).get("readyReplicas")) and observed.resource.spec.replicas > 0
    notice = observed.resource.spec.strategy.notice_seconds if serves else 0
    return timestamp(now + timedelta(seconds=notice + 1))  # whole seconds: it is cut off


def stable_replicas(
    observed: ObservedDeployment, stable: RevisionStatus, candidate: RevisionStatus | None, now: datetime
) -> int:
    """So many pods of what serves are wanted beside a candidate of this pass."""
    if has_begun(candidate, now):
        return 0
    live = observed.child(DEPLOYMENTS, stable.deployment)
    starts = live is None or not _asks_for_pods(live)
    waits = starts and _one_at_a_time(observed, now) and any(map(_asks_for_pods, _others(observed, stable.revision)))
    return 0 if waits else observed.resource.spec.replicas


def is_on_its_way_back(
    observed: ObservedDeployment, stable: RevisionStatus | None, candidate: RevisionStatus | None, now: datetime
) -> bool:
    """Whether what served before waits for the pods of another revision to go."""
    wanted = observed.resource.spec.replicas > 0 and stable is not None and not has_begun(candidate, now)
    return wanted and stable is not None and stable_replicas(observed, stable, candidate, now) == 0


def remains(observed: ObservedDeployment, candidate: RevisionStatus, now: datetime) -> Remains:
    """What is left of all serving pods, in a gap in which a candidate is about to start; its own, of an earlier try
    beside what served, have to go too.

    A pod that is being deleted counts until its grace period is over: after that, its node does not answer. Pods that
    nobody deletes, because they have lost their Deployment, do not hold up the gap for ever.
    """
    if any(map(_asks_for_pods, observed.children.get(DEPLOYMENTS, {}).values())):
        return Remains(True)
    age = (now - parse_timestamp(candidate.gap_starts_at or candidate.since)).total_seconds()
    ends = [deletion_left(pod, now) for pod in serving_pods(observed)]
    waits = [STALE_SECONDS - age if left is None else left for left in ends]
    left = [seconds for seconds in waits if seconds > 0]
    return Remains(bool(left), min(left, default=None))


def seconds_left(
    candidate: RevisionStatus, pods: Sequence[Object], start_seconds: float, verification_runs: bool, now: datetime
) -> float | None:
    """Seconds for which the gap may go on like this; None outside of one, and where the pods' own limits end it."""
    if not has_begun(candidate, now):
        return None
    age = (now - parse_timestamp(candidate.since)).total_seconds()
    match candidate.state:
        case RevisionState.STARTING:
            return max(0.0, STALE_SECONDS + (start_seconds if any(map(has_node, pods)) else 0.0) - age)
        case RevisionState.VERIFYING if not verification_runs:
            return max(0.0, STALE_SECONDS - age)
    return None


def overdue(observed: ObservedDeployment, problem: ServerProblem | None) -> ServerProblem:
    """Why the gap ends without the candidate: what its pods or its verification wait for, or what the API server has
    refused all along."""
    stalled = next((each for each in observed.resource.status.conditions if each.type == ConditionType.STALLED), None)
    said = (
        "It made no progress, and meanwhile requests were not answered. It is not retried automatically: set "
        "spec.rerun to a new value."
    )
    if problem is not None:
        reason = Reason.DEADLINE_EXCEEDED if problem.reason is Reason.WAITING else problem.reason
        return ServerProblem(reason, f"{said} {problem.message}")
    if stalled is not None and stalled.status == "True" and Reason(stalled.reason).is_known:
        return ServerProblem(Reason(stalled.reason), f"{said} {stalled.message}")
    return ServerProblem(Reason.DEADLINE_EXCEEDED, said)


def _one_at_a_time(observed: ObservedDeployment, now: datetime) -> bool:
    """Whether no two revisions may have pods."""
    return observed.resource.spec.in_place or has_begun(observed.resource.status.candidate, now)


def _others(observed: ObservedDeployment, revision: str) -> Iterator[Object]:
    """Deployments of other revisions."""
    for live in observed.children.get(DEPLOYMENTS, {}).values():
        if (live["metadata"].get("labels") or {}).get(LABEL_REVISION) != revision:
            yield live


def _asks_for_pods(live: Object) -> bool:
    return int(live["spec"].get("replicas", 1)) > 0


def serving_pods(observed: ObservedDeployment) -> Iterator[Object]:
    """Serving pods of all revisions that have not ended."""
    for pod in observed.pods:
        role = (pod["metadata"].get("labels") or {}).get(LABEL_ROLE)
        if role == SERVER and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            yield pod


def deletion_left(pod: Object, now: datetime) -> float | None:
    """Seconds until a pod that is being deleted should be gone; None for any other."""
    ends = pod["metadata"].get("deletionTimestamp")
    return (parse_timestamp(ends) - now).total_seconds() if ends else None
