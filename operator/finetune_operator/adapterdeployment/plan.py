"""AdapterDeployment: what to do next, as a pure function of what was observed.

The story: find the revision that should serve (the target). If another one serves (stable), start the target beside it
as the candidate, verify it, and move the Service to it. Whatever happens to a candidate, the stable revision is not
touched until another one has been verified. Afterwards its pods stay for a while, and traffic goes back to them if the
new one does not stand it (``last_good.py``). Where there is no hardware for both, and the spec says so, the pods of the
stable revision stop first, and start again if the candidate fails (``gap.py``).
"""

from dataclasses import replace
from datetime import datetime

from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.adapters import shown
from finetune_operator.adapterdeployment.budget import BUDGET, budget_actions
from finetune_operator.adapterdeployment.canary import (
    canary_sighting,
    has_proved_itself,
    is_routed,
    is_shared,
    step_on,
    takes_steps,
)
from finetune_operator.adapterdeployment.candidate import (
    candidacy,
    in_state,
    known_candidate,
)
from finetune_operator.adapterdeployment.cleanup import plan_cleanup
from finetune_operator.adapterdeployment.delivery import deliver
from finetune_operator.adapterdeployment.endings import fail, give_back, promote, scored
from finetune_operator.adapterdeployment.endpoint import endpoint_state
from finetune_operator.adapterdeployment.gap import (
    RETURN_SECONDS,
    STALE_SECONDS,
    has_begun,
    is_on_its_way_back,
    overdue,
    seconds_left,
    serving_pods,
    stable_replicas,
)
from finetune_operator.adapterdeployment.health import Sighting, candidate_due_after, candidate_problem, is_available
from finetune_operator.adapterdeployment.history import was_rolled_back
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
from finetune_operator.adapterdeployment.limits import (
    held_too_long,
    long_wait_left,
    promoting_left,
    promotion_overdue,
    refused_for_long,
)
from finetune_operator.adapterdeployment.look import LOOK, look
from finetune_operator.adapterdeployment.observe import ObservedDeployment, UnplannedDeployment
from finetune_operator.adapterdeployment.pod_problems import Outlook, ServerProblem
from finetune_operator.adapterdeployment.record import failed_in_place, records
from finetune_operator.adapterdeployment.revision_objects import (
    direct_traffic,
    is_encrypted,
    open_policy,
    serve,
    start_candidate,
)
from finetune_operator.adapterdeployment.rollout import Rollout
from finetune_operator.adapterdeployment.route import ROUTE, look_after, route_actions
from finetune_operator.adapterdeployment.status import compose, compose_unplanned, transition_events
from finetune_operator.adapterdeployment.step import RolloutStep
from finetune_operator.adapterdeployment.target import Target, find_target, recorded_target
from finetune_operator.adapterdeployment.turns import is_queued
from finetune_operator.adapterdeployment.verification import Verification, find_verification, verify_request
from finetune_operator.blockers import Blocker, refused
from finetune_operator.framework.actions import Action, Event, Patch, Plan
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, NETWORK_POLICIES, Object
from finetune_operator.framework.reading import Unplanned
from finetune_operator.outcome.job import State
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS
from finetune_operator.resources.deployment import (
    ANNOTATION_ARTIFACT_DIGEST,
    ANNOTATION_ARTIFACT_URI,
    deployment_name,
    server_labels,
)
from finetune_operator.resources.drift import ensure, ensure_exists
from finetune_operator.resources.service import port_of
from finetune_operator.resources.stage_job import input_config_map, stage_job


def plan(observed: ObservedDeployment | UnplannedDeployment, now: datetime) -> Plan[AdapterDeploymentStatus]:
    """Actions, the new status, events and the time of the next pass."""
    if isinstance(observed, Unplanned):
        status = compose_unplanned(observed, now)
        return Plan(status, events=transition_events(observed.status, status))
    seeing = look(observed, now)
    observed = seeing.observed
    target = find_target(observed)
    stable, previous = serving_revision(observed, target, now), kept(observed)
    seen = watched(observed, stable, previous, now) if stable else Sighting()
    if previous is not None and is_over(observed, previous, seen, now):
        previous = None
    if stable is not None and previous is not None and seen.problem is not None and not is_blocked(observed):
        step = roll_back(observed, target, stable, previous, seen.problem, now)
    elif isinstance(target, Target) and (blocker := refused(observed)):
        # The candidate stays what it is, and the refused object is tried again: the rollout does not begin anew.
        step = RolloutStep(stable, _refused(observed, target, stable, now), blocked=True)
        target = blocker
    elif isinstance(target, Blocker):
        step = _hold(observed, target, stable, now)
    elif stable is not None and stable.revision == target.revision:
        replicas = stable_replicas(observed, stable, None, now)
        # Without its source, what serves is the target. What failed in place is remembered for when the source is back.
        failed = failed_in_place(observed) if target.source_blocker else None
        brought = deliver(observed, target.record, target.adapters, recorded(stable, target))
        actions = (*serve(observed, target, replicas), *brought.actions)
        step = RolloutStep(brought.stable, failed, actions, brought.events, brought.due_after)
    elif stable is not None and previous is not None and _can_go_back(observed, target, previous):
        step = go_back(observed, target, stable, previous, now)
    else:
        step = _roll_out(observed, target, stable, now)
        step = replace(step, events=(*proves_again(observed, target, previous, step), *step.events))
    endpoint = endpoint_state(observed, step.stable, now)
    before = step.left or stable
    keep = to_keep(observed, before, previous, step, now)
    rollout = Rollout(observed, target, step.stable, step.candidate, endpoint, now, keep, step.fallen)
    if rollout.lacks_room:
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
        actions=cleanup.first + step.actions + cleanup.last,
        optional={
            BUDGET: budget_actions(observed, serving.revision if serving else ""),
            ROUTE: route_actions(observed, port, step.candidate, now),
            LOOK: seeing.actions,
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
    artifact, record = live["metadata"].get("annotations") or {}, records(observed).get(revision)
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


def _hold(observed: ObservedDeployment, blocker: Blocker, stable: RevisionStatus | None, now: datetime) -> RolloutStep:
    """Without a target, the stable revision keeps serving, and a candidate of an earlier target is deleted. In a gap,
    it has failed if somebody else has a name that it needs: that is known only in the pass that meets it. One that was
    rolled back, or failed in place, is remembered: it must not be tried again when the target is back. It is forgotten
    if it was to be tried again and waits for its turn, or it would hold up those behind it for ever."""
    status, actions = observed.resource.status, _keep(observed, stable, None, now)
    known = status.candidate
    fallen = known if known is not None and was_rolled_back(status.revisions, known) and not is_queued(known) else None
    if known is not None and has_begun(known, now) and (observed.conflicts or observed.pending_deletion):
        # The next pass knows nothing of it, and would begin another gap.
        problem = overdue(observed, ServerProblem(blocker.reason, blocker.message))
        step = fail(stable, known, problem, actions, now)
        return replace(step, requeue_after=RETURN_SECONDS)
    tried = fallen or failed_in_place(observed)
    return RolloutStep(stable, tried, actions, requeue_after=blocker.requeue_after, blocked=not blocker.watched)


def _can_go_back(observed: ObservedDeployment, target: Target, previous: Kept) -> bool:
    """Whether the target is the revision before, its pods could serve at once, and no floor asks for more than they
    were verified by."""
    same = target.revision == previous.target.revision
    return same and answers(observed, previous) and not unproved(observed, previous.revision)


def recorded(stable: RevisionStatus, target: Target) -> RevisionStatus:
    """The revision with everything needed to recreate its pods; one that was found by its Service lacks it."""
    serving = target.serving
    return stable.model_copy(update={"runtime": serving.runtime_name, "storage": serving.storage})


def _keep(
    observed: ObservedDeployment,
    stable: RevisionStatus | None,
    candidate: RevisionStatus | None,
    now: datetime,
    *,
    shared: bool = False,
) -> tuple[Action, ...]:
    """Another revision than the target serves: its pods stay as they were verified, as many as the spec asks for, or
    none in the gap of a rollout in place. ``shared``: the candidate has its share of the traffic.

    Deleted or changed objects are restored, unless the platform's settings have changed since: pods with the new
    settings have not been verified, so then only the number of pods is adjusted.
    """
    if stable is None:
        return ()
    verified, replicas = recorded_target(observed, stable), stable_replicas(observed, stable, candidate, now)
    if verified is not None:
        return serve(observed, verified, replicas, is_shared=shared)
    live = observed.child(DEPLOYMENTS, stable.deployment)
    outnumbered = live is not None and live["spec"].get("replicas") != replicas
    scale = Patch(DEPLOYMENTS, stable.deployment, {"spec": {"replicas": replicas}})
    return (*direct_traffic(observed, stable.revision, is_shared=shared), *((scale,) if outnumbered else ()))


def _refused(
    observed: ObservedDeployment, target: Target, stable: RevisionStatus | None, now: datetime
) -> RevisionStatus | None:
    """The candidate after a refusal. One whose turn has come takes it, or it would hold up those behind it for ever;
    and one for which the others have stopped starts, or a gap in service would have no end."""
    known = known_candidate(observed, target)
    waits = known is not None and known.state in (RevisionState.WAITING, RevisionState.STOPPING)
    return candidacy(observed, target, stable, now).candidate if waits else known


def _roll_out(
    observed: ObservedDeployment, target: Target, stable: RevisionStatus | None, now: datetime
) -> RolloutStep:
    """The target does not serve yet: start it, verify it, move the traffic; or report why that is impossible."""
    candidate, events, due_after = candidacy(observed, target, stable, now)
    keep = _keep(observed, stable, candidate, now)
    if candidate.state in (RevisionState.FAILED, RevisionState.WAITING, RevisionState.STOPPING):
        return RolloutStep(stable, candidate, keep, events, due_after)
    live, pods = observed.child(DEPLOYMENTS, candidate.deployment), observed.server_pods(target.revision, lost=True)
    request = verify_request(observed.owner, target, observed.resource.spec, observed.settings, stable)
    proved = has_proved_itself(candidate)
    verification = None if proved else find_verification(observed, request, now)
    problem = candidate_problem(live, pods, now)
    if problem is not None and problem.outlook is Outlook.FAIL:
        return fail(stable, candidate, problem, keep, now)
    if verification is not None and (failure := verification.failure):
        return fail(stable, verification.recorded(candidate), failure, keep, now)
    seen = canary_sighting(candidate, pods, now)
    if (unfit := seen.problem) is not None:
        return (fail if unfit.outlook is Outlook.FAIL else give_back)(stable, candidate, unfit, keep, now)
    if verification is not None and verification.succeeded:
        candidate = scored(verification.recorded(candidate), verification.verdict)
        if stable is not None and (found := verification.replaced_withdrawn) is not None:
            stable = stable.model_copy(update={"withdrawn": found})
    verified = proved or (verification is not None and verification.succeeded)
    if verified and stable is not None and takes_steps(observed, target, stable, candidate):
        closed = _closed_for(observed, target, candidate, verification, now)
        return _take_step(observed, target, stable, candidate, closed, now)
    # One pod is enough to verify: a bad artifact must not cost a whole fleet of GPUs. Zero pods are not enough.
    replicas = max(1, observed.resource.spec.replicas) if verified else 1
    closed = _closed_for(observed, target, candidate, verification, now) if verified else 0.0
    left = promoting_left(candidate, target, now)
    in_gap, begun = has_begun(candidate, now), verification is not None and verification.has_begun
    may_start = target.serving.start_seconds
    gap_left = seconds_left(candidate, pods, may_start, begun, now)
    enough = _suffices(observed, stable, live, replicas, late=left == 0 or in_gap)
    if verified and enough and not closed:
        said = verification.verdict.message if verification is not None else "It passed every step of its canary."
        return replace(promote(observed, target, candidate, said, now), left=stable)
    rejected = refused_for_long(observed, candidate, STALE_SECONDS if in_gap else may_start, pods, now)
    late = held_too_long(problem) or rejected or (verification.overdue if verification else None)
    if left == 0:
        late = promotion_overdue(problem, replicas, target)
    if in_gap and (gap_left == 0 or late):
        late = overdue(observed, late or problem or (verification.blocker if verification else None))
    if late is not None:
        return (fail if in_gap else give_back)(stable, candidate, late, keep, now)
    shared = stable is not None and is_shared(observed, stable, candidate, now)
    keep = _keep(observed, stable, candidate, now, shared=shared)
    passed = verified or (verification is not None and verification.has_passed)
    # A canary that is verified again may still have clients.
    opened = passed or candidate.canary is not None or _is_being_left(observed, candidate)
    asked = not verified or is_routed(candidate)
    actions = (*keep, *start_candidate(observed, target, replicas, is_open=opened, is_asked=asked))
    if verified or not is_available(live, replicas):
        waiting = _waiting(candidate, verified, problem, now)
        looks = [closed or None, left, gap_left, candidate_due_after(live, pods, now), long_wait_left(waiting, now)]
        looks.append(seen.due_after)
        due_after = min((seconds for seconds in looks if seconds is not None), default=None)
        return RolloutStep(stable, waiting, actions, events, due_after)
    actions += (
        *ensure_exists(CONFIG_MAPS, input_config_map(request), observed.child(CONFIG_MAPS, request.name)),
        *ensure_exists(JOBS, stage_job(request), observed.child(JOBS, request.name)),
    )
    verifying, waits = _verifying(candidate, verification, now), verification is not None and verification.refused
    first_look = verification.due_after if verification else FIRST_LOOK_SECONDS
    looks = [first_look, gap_left, long_wait_left(verifying, now)]
    due_after = min((seconds for seconds in looks if seconds is not None), default=None)
    return RolloutStep(stable, verifying, actions, events, due_after, blocked=waits)


def _take_step(
    observed: ObservedDeployment,
    target: Target,
    stable: RevisionStatus,
    candidate: RevisionStatus,
    closed: float,
    now: datetime,
) -> RolloutStep:
    """A verified candidate gets its share of the traffic, or the next one. ``closed``: seconds until its network can be
    expected to be open."""
    live, pods = observed.child(DEPLOYMENTS, candidate.deployment), observed.server_pods(target.revision, lost=True)
    problem = candidate_problem(live, pods, now)
    progress = step_on(observed, target, stable, candidate, closed, now)
    analysis = progress.analysis
    if analysis is not None and (worse := analysis.problem(candidate)):
        return fail(stable, candidate, worse, _keep(observed, stable, candidate, now), now)
    late, stepping = held_too_long(problem), progress.candidate
    has_share = stepping.canary is not None and stepping.canary.until is not None
    if not has_share:  # of one with its share only the Job of its analysis is missing, without which it lasts
        late = late or refused_for_long(observed, stepping, target.serving.start_seconds, pods, now)
    if progress.overdue and progress.strays.names:
        late = late or ServerProblem(Reason.DEADLINE_EXCEEDED, progress.candidate.message)
    elif progress.overdue:
        late = late or promotion_overdue(problem, progress.replicas, target)
    if late is not None:
        return give_back(stable, candidate, late, _keep(observed, stable, candidate, now), now)
    if problem is not None and not has_share:
        stepping = in_state(stepping, stepping.state, problem.reason, problem.message, now)
    keep = _keep(observed, stable, candidate, now, shared=is_shared(observed, stable, stepping, now))
    actions = (*keep, *start_candidate(observed, target, progress.replicas, is_open=True, is_asked=is_routed(stepping)))
    actions += analysis.actions if analysis else ()
    seen = canary_sighting(stepping, pods, now)
    looks = (progress.due_after, seen.due_after, candidate_due_after(live, pods, now), long_wait_left(stepping, now))
    due_after = min((seconds for seconds in looks if seconds is not None), default=None)
    events = analysis.events(candidate) if analysis else ()
    events += (Event("Normal", Reason.CANARY_STEP, stepping.message),) if progress.begins else ()
    return RolloutStep(stable, stepping, actions, events, due_after)


def _suffices(
    observed: ObservedDeployment, stable: RevisionStatus | None, live: Object | None, replicas: int, *, late: bool
) -> bool:
    """Whether enough pods of a verified candidate are available. With nothing that answers, one is enough: at once in a
    gap, which is not to last until all have started, and otherwise when it is late."""
    if is_available(live, replicas):
        return True
    old = observed.child(DEPLOYMENTS, stable.deployment) if stable else None
    answers = bool(((old or {}).get("status") or {}).get("readyReplicas"))
    return late and not answers and bool(((live or {}).get("status") or {}).get("availableReplicas"))


def _closed_for(
    observed: ObservedDeployment,
    target: Target,
    candidate: RevisionStatus,
    verification: Verification | None,
    now: datetime,
) -> float:
    """Seconds until the network can be expected to let clients reach the verified pods.

    Network plugins follow a policy a moment later: a Service that moved at once would send the first clients to closed
    ports. The verification may have seen the policy in force. Otherwise the time counts from when the policy was
    written, which the status shows, and not from the end of the verification: the operator may have been down since.
    """
    seconds = float(observed.settings.policy_seconds)
    policy = open_policy(observed, target.revision)
    live = observed.child(NETWORK_POLICIES, policy["metadata"]["name"])
    if ensure(NETWORK_POLICIES, policy, live):
        return seconds
    if verification is not None and verification.saw_the_network_open:
        return 0.0
    if candidate.state not in (RevisionState.CANARY, RevisionState.PROMOTING):
        return seconds
    return max(0.0, seconds - (now - parse_timestamp(candidate.since)).total_seconds())


def _is_being_left(observed: ObservedDeployment, candidate: RevisionStatus) -> bool:
    """Whether pods of an earlier try, or of when it served, may still answer clients: a policy that closed now would
    cut them off. It closes when those pods are gone."""
    policy = open_policy(observed, candidate.revision)
    live = observed.child(NETWORK_POLICIES, policy["metadata"]["name"])
    if live is None or ensure(NETWORK_POLICIES, policy, live):
        return False
    labels, since = server_labels(observed.owner, candidate.revision), parse_timestamp(candidate.since)
    return any(
        labels.items() <= pod["metadata"]["labels"].items()
        and parse_timestamp(pod["metadata"]["creationTimestamp"]) < since
        for pod in serving_pods(observed)
    )


def _waiting(candidate: RevisionStatus, verified: bool, problem: ServerProblem | None, now: datetime) -> RevisionStatus:
    """The candidate while its pods start: the first one, or after verification the others."""
    state = RevisionState.PROMOTING if verified else RevisionState.STARTING
    reason = Reason.VERIFIED if verified else Reason.CANDIDATE_STARTING
    message = "The server is loading the model."
    if verified:
        message = "Verified; the remaining pods are starting, and the network is opening."
    if problem is not None:
        reason, message = problem.reason, problem.message
    return in_state(candidate, state, reason, message, now)


def _verifying(candidate: RevisionStatus, verification: Verification | None, now: datetime) -> RevisionStatus:
    """The candidate while its server is verified, or while that waits for something."""
    reason, message = Reason.VERIFYING, "Comparing the server's answers with those of the evaluated artifact."
    if verification is not None and verification.has_passed:
        message = "Every check passed; the network is opening."
    elif verification is not None and (blocker := verification.blocker):
        reason, message = blocker.reason, blocker.message
    elif verification is not None and verification.verdict.state is State.WAITING:
        message = verification.verdict.message
    return in_state(candidate, RevisionState.VERIFYING, reason, message, now)
