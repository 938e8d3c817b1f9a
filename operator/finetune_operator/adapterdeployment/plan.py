"""AdapterDeployment: what to do next, as a pure function of what was observed.

The story: find the revision that should serve (the target). If another one serves (stable), start the target beside it
as the candidate, verify it, and move the Service to it (``advance.py``). Whatever happens to a candidate, the stable
revision is not touched until another one has been verified. Afterwards its pods stay for a while, and traffic goes back
to them if the new one fails under it (``last_good.py``). Where there is no hardware for both, and the spec says so, the
pods of the stable revision stop first, and start again if the candidate fails (``gap.py``).
"""

from dataclasses import replace
from datetime import datetime

from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.adapters import shown
from finetune_operator.adapterdeployment.advance import advance, after_refusal, keep_serving
from finetune_operator.adapterdeployment.budget import BUDGET, budget_actions
from finetune_operator.adapterdeployment.cleanup import plan_cleanup
from finetune_operator.adapterdeployment.context import RolloutContext
from finetune_operator.adapterdeployment.delivery import deliver
from finetune_operator.adapterdeployment.endings import fail, has_clients
from finetune_operator.adapterdeployment.endpoint import endpoint_state
from finetune_operator.adapterdeployment.gap import (
    RETURN_SECONDS,
    has_begun,
    is_on_its_way_back,
    overdue,
    stable_replicas,
)
from finetune_operator.adapterdeployment.last_good import (
    Kept,
    answers,
    go_back,
    is_blocked,
    is_over,
    keep_left,
    kept,
    let_go,
    proves_again,
    roll_back,
    to_keep,
    unproved,
    watched,
)
from finetune_operator.adapterdeployment.look import look
from finetune_operator.adapterdeployment.observe import ObservedDeployment, UnplannedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.record import failed_in_place, fallen
from finetune_operator.adapterdeployment.revision_objects import is_encrypted, serve
from finetune_operator.adapterdeployment.rollout import Rollout
from finetune_operator.adapterdeployment.route import ROUTE, look_after, route_actions, takes_back
from finetune_operator.adapterdeployment.status import compose, compose_unplanned, transition_events
from finetune_operator.adapterdeployment.step import RolloutStep
from finetune_operator.adapterdeployment.target import Target, find_target, recorded_target
from finetune_operator.adapterdeployment.turns import is_queued
from finetune_operator.blockers import Blocker, refused
from finetune_operator.framework.actions import Plan
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.framework.reading import Unplanned
from finetune_operator.resources.deployment import (
    ANNOTATION_ARTIFACT_DIGEST,
    ANNOTATION_ARTIFACT_URI,
    deployment_name,
)
from finetune_operator.resources.service import port_of


def plan(observed: ObservedDeployment | UnplannedDeployment, now: datetime) -> Plan[AdapterDeploymentStatus]:
    """Actions, the new status, events and the time of the next pass."""
    if isinstance(observed, Unplanned):
        status = compose_unplanned(observed, now)
        return Plan(status, events=transition_events(observed.status, status))
    seeing = look(observed, now)
    observed = seeing.observed
    target = find_target(observed)
    stable, previous = serving_revision(observed, target, now), kept(observed)
    context = RolloutContext(observed, stable, now)
    seen = watched(context, previous)
    if previous is not None and is_over(observed, previous, seen, now):
        previous = None
    if stable is not None and previous is not None and seen.problem is not None and not is_blocked(observed):
        step = roll_back(observed, target, stable, previous, seen.problem, now)
    elif isinstance(target, Target) and (blocker := refused(observed)):
        # The candidate stays what it is, and the refused object is tried again: the rollout does not begin anew.
        step = after_refusal(context, target)
        target = blocker
    elif isinstance(target, Blocker):
        step = _hold(context, target)
    elif stable is not None and stable.revision == target.revision:
        replicas = stable_replicas(observed, stable, None, now)
        # Without its source, what serves is the target. What failed of that is remembered for when the source is back.
        tried = _remembered(observed) if target.source_blocker else None
        brought = deliver(observed, target.record, target.adapters, recorded(stable, target), now)
        actions = (*serve(observed, target, replicas), *brought.actions)
        step = RolloutStep(brought.stable, tried, actions, brought.events, brought.due_after, brought.blocked)
    elif stable is not None and previous is not None and _can_go_back(observed, target, previous):
        step = go_back(observed, target, stable, previous, now)
    else:
        step = advance(context, target)
        step = replace(step, events=(*proves_again(observed, target, previous, step), *step.events))
    endpoint = endpoint_state(observed, step.stable, now)
    before = step.left or stable
    keep = to_keep(observed, before, previous, step, now)
    rollout = Rollout(observed, target, step.stable, step.candidate, endpoint, now, keep, step.fallen)
    if rollout.lacks_room and seen.problem is None and seen.due_after is None:  # where they may be needed, they stay
        rollout = replace(rollout, previous=None)
    cleanup = plan_cleanup(rollout, seeing.under_way)
    keeps = keep_left(observed, rollout.previous, now) or None if rollout.previous else None
    back = RETURN_SECONDS if is_on_its_way_back(observed, step.stable, step.candidate, now) else None
    looks = [
        seconds
        for seconds in (
            *(step.requeue_after, cleanup.due_after, endpoint.due_after, seen.due_after, keeps, back, seeing.due_after),
            look_after(observed),
        )
        if seconds is not None
    ]
    status, serving = compose(rollout), step.stable
    port = port_of(tls=is_encrypted(observed, serving.revision)) if serving else None
    return Plan(
        status=status,
        actions=(
            step.actions + cleanup.first + cleanup.last
            if step.takes_back
            else cleanup.first + step.actions + cleanup.last
        ),
        first=frozenset({ROUTE}) if takes_back(observed, step.stable, step.candidate) else frozenset(),
        optional={
            BUDGET: budget_actions(observed, serving.revision if serving else ""),
            ROUTE: route_actions(observed, port, step.candidate, now),
            **seeing.actions,
        },
        events=step.events + let_go(observed, before, step) + transition_events(observed.resource.status, status),
        requeue_after=min(looks, default=None),
        blocked=step.blocked,
    )


def undecidable(status: AdapterDeploymentStatus) -> str:
    """The word of a newer version on which the next step would hang: the candidate might have failed. Empty if there is
    none."""
    candidate = status.candidate
    if candidate is None or candidate.state.is_known:
        return ""
    return f"status.candidate.state is {str(candidate.state)!r}, which this version does not know"


def serving_revision(observed: ObservedDeployment, target: Target | Blocker, now: datetime) -> RevisionStatus | None:
    """The revision that clients are sent to.

    The status knows it. Without a status (a restored resource, or an operator that died before it recorded the first
    promotion) the public Service does: it never pointed to a revision that was not verified.
    """
    status = observed.resource.status
    if status.stable is not None:
        return status.stable
    revision = observed.traffic
    live = observed.child(DEPLOYMENTS, deployment_name(observed.owner, revision))
    if live is None or _unrecorded_promotion(observed, target, revision):
        return None
    artifact, record = live["metadata"].get("annotations") or {}, observed.records.get(revision)
    return RevisionStatus(
        revision=revision,
        state=RevisionState.SERVING,
        artifact_digest=artifact.get(ANNOTATION_ARTIFACT_DIGEST, ""),
        artifact_uri=artifact.get(ANNOTATION_ARTIFACT_URI, ""),
        adapters=shown(record.serving.adapters) if record else [],
        deployment=live["metadata"]["name"],
        since=timestamp(now),
        reason=Reason.SERVING,
    )


def _unrecorded_promotion(observed: ObservedDeployment, target: Target | Blocker, revision: str) -> bool:
    """The candidate was promoted but not recorded: the promotion is about to be repeated, with its scores."""
    candidate = observed.resource.status.candidate
    is_target = isinstance(target, Target) and target.revision == revision
    return is_target and candidate is not None and candidate.revision == revision


def _hold(context: RolloutContext, blocker: Blocker) -> RolloutStep:
    """Without a target, the stable revision keeps serving, and a candidate of an earlier target is deleted, unless it
    is to be remembered: also if it falls in this very pass, since the next one knows nothing of it. In a gap, it has
    failed if somebody else has a name that it needs: that is known only in the pass that meets it."""
    observed, actions = context.observed, keep_serving(context, None)
    known = observed.resource.status.candidate
    if known is not None and has_begun(known, context.now) and (observed.conflicts or observed.pending_deletion):
        # The next pass knows nothing of it, and would begin another gap.
        problem = overdue(observed, ServerProblem(blocker.reason, blocker.message))
        step = fail(context, known, problem, actions)
        return replace(step, requeue_after=RETURN_SECONDS)
    waits, is_blocked = blocker.requeue_after, not blocker.watched
    if known is not None and (fall := _fall(context, known)) is not None:
        return replace(fall, requeue_after=waits, blocked=is_blocked)
    return RolloutStep(context.stable, _remembered(observed), actions, requeue_after=waits, blocked=is_blocked)


def _fall(context: RolloutContext, known: RevisionStatus) -> RolloutStep | None:
    """The end of a canary that clients have reached, if it has failed by now, whatever is asked for; None: it has
    not."""
    target = recorded_target(context.observed, known) if has_clients(known) else None
    if target is None:
        return None
    step = advance(context, replace(target, spec_hash=known.spec_hash))
    has_failed = step.candidate is not None and step.candidate.state is RevisionState.FAILED
    return step if has_failed else None


def _remembered(observed: ObservedDeployment) -> RevisionStatus | None:
    """The candidate that clients had reached before it fell, or that failed in place: it must not be tried again when
    the target is back. It is forgotten if it was to be tried again and waits for its turn, or it would hold up those
    behind it for ever."""
    known = fallen(observed.resource.status)
    return known if known is not None and not is_queued(known) else failed_in_place(observed)


def _can_go_back(observed: ObservedDeployment, target: Target, previous: Kept) -> bool:
    """Whether the target is the revision before, its pods could serve at once, and no floor asks for more than they
    were verified by."""
    same = target.revision == previous.target.revision
    return same and answers(observed, previous) and not unproved(observed, previous.revision)


def recorded(stable: RevisionStatus, target: Target) -> RevisionStatus:
    """The revision with everything needed to recreate its pods; one that was found by its Service lacks it."""
    serving = target.serving
    return stable.model_copy(update={"runtime": serving.runtime_name, "storage": serving.storage})
