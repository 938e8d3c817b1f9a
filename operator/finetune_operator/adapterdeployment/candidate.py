"""The candidate, from one state to the next, as the status records it. Pure.

```
Waiting ─▶ Starting ─▶ Verifying ─▶ Promoting ─▶ Serving
   ▲          │            │            │            (with steps, Canary comes before Promoting: ``canary.py``)
   └──────────┴────────────┴────────────┤  its pods have had hardware for as long as they may: another try later
                                        └─▶ Failed: only another artifact, runtime or spec is another try
```

In place, Stopping comes before Starting (``gap.py``), and nothing is tried again by itself: each try is a gap in
service.
"""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from finetune_api.reasons import Reason
from finetune_api.serving_status import CanaryStatus, RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.adapters import shown
from finetune_operator.adapterdeployment.context import RolloutContext
from finetune_operator.adapterdeployment.gap import gap_start, goes_in_place, remains
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.adapterdeployment.turns import ACTIVE, Turn, find_turn, is_ahead, is_announced, is_queued
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.resources.deployment import deployment_name

PAUSE_SECONDS: Final = 3600.0
"""For how long a candidate that has given its hardware back leaves it to others."""
RECORD_SECONDS: Final = 0.1
"""When to look whose turn it is, once a candidate is in line. Its record is in the cache by then, and wakes it too."""
_GETS_A_PLACE: Final = "It gets a place in the line of rollouts, and starts at once if its turn has come."
MESSAGE_LIMIT: Final = 1024
"""The API's limit; a scheduler's message about many nodes is longer."""
_CAUSE_LIMIT: Final = 768
"""What a cause may take of it, if more is said."""


class Candidacy(NamedTuple):
    """The target as the candidate."""

    candidate: RevisionStatus
    events: tuple[Event, ...] = ()
    due_after: float | None = None
    """Seconds until it may start, if it waits."""


def known_candidate(observed: ObservedDeployment, target: Target) -> RevisionStatus | None:
    """The candidate of the status, if it is the target."""
    known = observed.resource.status.candidate
    return known if known is not None and known.revision == target.revision else None


def candidacy(context: RolloutContext, target: Target) -> Candidacy:
    """The target as the candidate of the status, or as a new one; started, if nothing holds it back."""
    observed, now = context.observed, context.now
    known, limit = known_candidate(observed, target), observed.settings.max_concurrent_rollouts
    if known is not None:
        known = known.model_copy(update={"spec_hash": target.spec_hash})
        tried = observed.resource.status.candidate
        same_spec = tried is not None and tried.spec_hash == target.spec_hash
        if not same_spec:
            known = known.model_copy(update={"verification_retries": 0})
        if known.canary is not None and not same_spec:
            known = _proved_again(known, now)
        if known.state in ACTIVE:
            if is_announced(known) == goes_in_place(observed, context.stable, now):
                return _going_on(context, known)
            if limit is None or not _needs_turn(context):
                return _started(context, known)
        if known.state is RevisionState.FAILED and same_spec:
            return Candidacy(known)
        if left := _pause_left(observed, known, now):
            return Candidacy(known, due_after=left)
    waiting = known if known and known.state is RevisionState.WAITING else _new(observed, target, now)
    if limit is not None and _needs_turn(context):
        return _in_line(context, limit, waiting)
    return _started(context, waiting)


def in_state(
    revision: RevisionStatus, state: RevisionState, reason: Reason, message: str, now: datetime
) -> RevisionStatus:
    """The revision in a state, since now if it was in another one."""
    since = revision.since if revision.state is state else timestamp(now)
    update = {"state": state, "reason": reason, "message": message[:MESSAGE_LIMIT], "since": since}
    return revision.model_copy(update=update)


def given_back(candidate: RevisionStatus, problem: ServerProblem, now: datetime) -> RevisionStatus:
    """The candidate without pods: others can use its hardware, and it is tried again later."""
    again = timestamp(now + timedelta(seconds=PAUSE_SECONDS))
    message = (
        f"{problem.message[:_CAUSE_LIMIT].rstrip('. ')}. Its pods were removed, so that others can use the hardware; "
        f"it is tried again at {again}, or as soon as the spec changes."
    )
    return in_state(candidate, RevisionState.WAITING, problem.reason, message, now)


def _new(observed: ObservedDeployment, target: Target, now: datetime) -> RevisionStatus:
    """The target as a candidate that waits. One that replaces another in line keeps its place."""
    before = observed.resource.status.candidate
    return RevisionStatus(
        revision=target.revision,
        state=RevisionState.WAITING,
        artifact_digest=target.serving.artifact_digest,
        artifact_uri=target.serving.artifact_uri,
        adapters=shown(target.serving.adapters),
        deployment=deployment_name(observed.owner, target.revision),
        runtime=target.serving.runtime_name,
        storage=target.serving.storage,
        since=before.since if before is not None and is_queued(before) else timestamp(now),
        spec_hash=target.spec_hash,
    )


def _pause_left(observed: ObservedDeployment, known: RevisionStatus, now: datetime) -> float:
    """Seconds for which a candidate that gave its hardware back still waits; none once the spec has changed."""
    status = observed.resource.status
    changed = status.observed_generation != observed.resource.metadata.generation
    if known.state is not RevisionState.WAITING or known.reason == Reason.ROLLOUT_QUEUED or changed:
        return 0.0
    return max(0.0, PAUSE_SECONDS - (now - parse_timestamp(known.since)).total_seconds())


def _needs_turn(context: RolloutContext) -> bool:
    """Whether a candidate needs a turn: not while nothing serves, and not if it replaces one that has a turn, or will
    have one when its gap begins."""
    before = context.observed.resource.status.candidate
    has_turn = before is not None and before.state in ACTIVE
    if is_ahead(before) and not goes_in_place(context.observed, context.stable, context.now):
        has_turn = False
    return context.stable is not None and not has_turn


def _in_line(context: RolloutContext, limit: int, waiting: RevisionStatus) -> Candidacy:
    """The candidate in its place in line, or started if its turn has come."""
    observed, now = context.observed, context.now
    turn = find_turn(observed.contenders, observed.owner.uid, limit, now)
    if turn is None:
        message, due_after = _GETS_A_PLACE, RECORD_SECONDS
    elif turn.has_come:
        return _started(context, waiting)
    else:
        message, due_after = turn.message(observed.owner.namespace), turn.look_after
    queued = in_state(waiting, RevisionState.WAITING, Reason.ROLLOUT_QUEUED, message, now)
    return Candidacy(queued, due_after=due_after)


def _started(context: RolloutContext, waiting: RevisionStatus) -> Candidacy:
    """The candidate started beside what serves; or in place, where the pods of that have to stop first."""
    observed, stable, now = context.observed, context.stable, context.now
    fresh = {"verification": [], "verification_retries": 0, "gap_starts_at": None, "canary": None}
    anew = waiting.model_copy(update=fresh)
    if stable is None or not goes_in_place(observed, stable, now):
        return _starting(anew, now)
    before = observed.resource.status.candidate
    told, reason = is_announced(before), Reason.GAP_ANNOUNCED if is_ahead(before) else Reason.WAITING
    announced = anew.model_copy(update={"gap_starts_at": gap_start(observed, stable, now)})
    # A gap that only waits for its turn goes on waiting for it, whatever it is used for by now.
    stopping = _going_on(context, in_state(announced, RevisionState.STOPPING, reason, "", now))
    event = Event("Normal", Reason.GAP_ANNOUNCED, stopping.candidate.message)
    return stopping if told else stopping._replace(events=(event,))


def _going_on(context: RolloutContext, known: RevisionStatus) -> Candidacy:
    """A candidate that is under way. In place, it starts once the gap has begun and no pods are left. The gap begins
    when the notice is over and it has a turn: one that only waits for that keeps nobody from being rolled out."""
    observed, stable, now = context.observed, context.stable, context.now
    if known.state is not RevisionState.STOPPING or stable is None:
        return Candidacy(known)
    until = f"until revision {known.revision} is verified, or {stable.revision} serves again"
    left = (parse_timestamp(known.gap_starts_at or known.since) - now).total_seconds()
    if left > 0:
        message = (
            f"The pods of revision {stable.revision} stop at {known.gap_starts_at}, as spec.strategy asks; from then "
            f"on, requests are not answered {until}."
        )
        announced = in_state(known, RevisionState.STOPPING, Reason.GAP_ANNOUNCED, message, now)
        return Candidacy(announced, due_after=left)
    if is_ahead(known):
        if (turn := _missing_turn(observed, now)) is not None:
            notice = f"The notice period is over; revision {stable.revision} still serves."
            message = f"{notice} {turn.message(observed.owner.namespace)}"
            overdue = in_state(known, RevisionState.STOPPING, Reason.GAP_ANNOUNCED, message, now)
            return Candidacy(overdue, due_after=turn.look_after)
        known = known.model_copy(update={"gap_starts_at": timestamp(now), "since": timestamp(now)})
    found = remains(observed, known, now)
    if not found.left:
        return _starting(known, now)
    message = f"The pods of revision {stable.revision} stop. Requests are not answered {until}."
    stopping = in_state(known, RevisionState.STOPPING, Reason.GAP_IN_SERVICE, message, now)
    return Candidacy(stopping, due_after=found.due_after)


def _missing_turn(observed: ObservedDeployment, now: datetime) -> Turn | None:
    """What a gap that is due waits for; None if it may begin."""
    limit = observed.settings.max_concurrent_rollouts
    turn = None if limit is None else find_turn(observed.contenders, observed.owner.uid, limit, now)
    return None if turn is None or turn.has_come else turn


def _proved_again(known: RevisionStatus, now: datetime) -> RevisionStatus:
    """A canary whose spec has changed: it is verified again, and its steps begin anew. Its network stays open, since
    clients may still be connected."""
    message = "The spec has changed: it is verified again, and its steps start over."
    anew = in_state(known, RevisionState.VERIFYING, Reason.VERIFYING, message, now)
    return anew.model_copy(update={"verification": [], "canary": CanaryStatus()})


def _starting(waiting: RevisionStatus, now: datetime) -> Candidacy:
    message = f"Starting revision {waiting.revision} with artifact {waiting.artifact_digest[:12]}."
    started = in_state(waiting, RevisionState.STARTING, Reason.CANDIDATE_STARTING, "", now)
    return Candidacy(started, (Event("Normal", Reason.CANDIDATE_STARTING, message),))
