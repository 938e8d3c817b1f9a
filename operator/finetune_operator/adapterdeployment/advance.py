"""The candidate on its way to the traffic: start it, verify it, give it its steps, move the Service to it. Pure.

Meanwhile the stable revision keeps serving. What keeps the candidate from going on is reported.
"""

from dataclasses import replace
from datetime import datetime

from finetune_api.reasons import Reason
from finetune_api.serving_status import CanaryStatus, RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.canary import (
    Silence,
    beside_silence,
    canary_sighting,
    end_of_steps,
    has_proved_itself,
    is_routed,
    is_shared,
    silence,
    step_on,
    takes_steps,
)
from finetune_operator.adapterdeployment.candidate import candidacy, in_state, known_candidate
from finetune_operator.adapterdeployment.context import CanaryContext, RolloutContext
from finetune_operator.adapterdeployment.endings import fail, give_back, has_clients, promote, scored
from finetune_operator.adapterdeployment.gap import (
    STALE_SECONDS,
    has_begun,
    overdue,
    seconds_left,
    serving_pods,
    stable_replicas,
)
from finetune_operator.adapterdeployment.health import candidate_due_after, candidate_problem, is_available
from finetune_operator.adapterdeployment.limits import (
    held_too_long,
    long_wait_left,
    promoting_left,
    promotion_overdue,
    refused_for_long,
)
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import Outlook, ServerProblem
from finetune_operator.adapterdeployment.retries import Try, newest_try
from finetune_operator.adapterdeployment.revision_objects import (
    direct_traffic,
    open_policy,
    serve,
    start_candidate,
)
from finetune_operator.adapterdeployment.side_jobs import stage_objects
from finetune_operator.adapterdeployment.step import RolloutStep
from finetune_operator.adapterdeployment.target import Target, recorded_target
from finetune_operator.adapterdeployment.verification import Verification
from finetune_operator.framework.actions import Action, Event, Patch
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, NETWORK_POLICIES, Object
from finetune_operator.outcome.job import State
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS
from finetune_operator.resources.deployment import server_labels
from finetune_operator.resources.drift import ensure


def keep_serving(
    context: RolloutContext, candidate: RevisionStatus | None, *, shared: bool = False
) -> tuple[Action, ...]:
    """Another revision than the target serves: its pods stay as they were verified, as many as the spec asks for, or
    none in the gap of a rollout in place. ``shared``: the candidate has its share of the traffic.

    Deleted or changed objects are restored, unless the platform's settings have changed since: pods with the new
    settings have not been verified, so then only the number of pods is adjusted.
    """
    observed, stable = context.observed, context.stable
    if stable is None:
        return ()
    verified, replicas = recorded_target(observed, stable), stable_replicas(observed, stable, candidate, context.now)
    if verified is not None:
        return serve(observed, verified, replicas, is_shared=shared)
    live = observed.child(DEPLOYMENTS, stable.deployment)
    outnumbered = live is not None and live["spec"].get("replicas") != replicas
    scale = Patch(DEPLOYMENTS, stable.deployment, {"spec": {"replicas": replicas}})
    return (*direct_traffic(observed, stable.revision, is_shared=shared), *((scale,) if outnumbered else ()))


def after_refusal(context: RolloutContext, target: Target) -> RolloutStep:
    """The rollout after a refusal: the candidate stays what it is. One whose turn has come takes it, or it would hold
    up those behind it for ever; and one for which the others have stopped starts, or a gap in service would have no
    end. A canary that fails has ended all the same, or the next pass would give it clients again."""
    known = known_candidate(context.observed, target)
    if known is not None and has_clients(known):
        step = advance(context, target)
        if step.takes_back:
            return replace(step, actions=(), blocked=True)
    waits = known is not None and known.state in (RevisionState.WAITING, RevisionState.STOPPING)
    candidate = candidacy(context, target).candidate if waits else known
    return RolloutStep(context.stable, candidate, blocked=True)


def advance(context: RolloutContext, target: Target) -> RolloutStep:
    """The target does not serve yet: start it, verify it, move the traffic; or report why that is impossible."""
    observed, now = context.observed, context.now
    candidate, events, due_after = candidacy(context, target)
    keep = keep_serving(context, candidate)
    if candidate.state in (RevisionState.FAILED, RevisionState.WAITING, RevisionState.STOPPING):
        return RolloutStep(context.stable, candidate, keep, events, due_after)
    live, pods = observed.child(DEPLOYMENTS, candidate.deployment), observed.server_pods(target.revision, lost=True)
    proved = has_proved_itself(candidate)
    tried = newest_try(context, target, candidate)
    candidate, verification = tried.candidate, None if proved else tried.verification
    problem = candidate_problem(live, pods, now)
    if problem is not None and problem.outlook is Outlook.FAIL:
        return fail(context, candidate, problem, keep)
    if verification is not None and (failure := verification.failure):
        return fail(context, verification.recorded(candidate), failure, keep)
    in_gap = has_begun(candidate, now)
    if not proved and (given_up := tried.given_up) is not None:
        if in_gap:
            return fail(context, candidate, overdue(observed, given_up), keep)
        return give_back(context, candidate, given_up, keep)
    seen = canary_sighting(candidate, live, pods, now)
    if (unfit := seen.problem) is not None:
        if unfit.outlook is Outlook.FAIL:
            return fail(context, candidate, unfit, keep)
        return give_back(context, candidate, unfit, keep)
    if verification is not None and verification.succeeded:
        candidate = scored(verification.recorded(candidate), verification.verdict)
        if context.stable is not None and (found := verification.replaced_withdrawn) is not None:
            context = replace(context, stable=context.stable.model_copy(update={"withdrawn": found}))
    verified = proved or (verification is not None and verification.succeeded)
    stable = context.stable
    if verified and stable is not None and takes_steps(context, target, candidate):
        closed = _closed_for(context, target, candidate, verification)
        return _take_step(CanaryContext(observed, stable, now, target, closed), candidate)
    # One pod is enough to verify: a bad artifact must not cost a whole fleet of GPUs. Zero pods are not enough.
    replicas = max(1, observed.resource.spec.replicas) if verified else 1
    closed = _closed_for(context, target, candidate, verification) if verified else 0.0
    left = promoting_left(candidate, target, now)
    begun = candidate.verification_retries > 0 or (verification is not None and verification.has_begun)
    may_start = target.serving.start_seconds
    gap_left = seconds_left(candidate, pods, may_start, begun, now)
    enough = _suffices(observed, stable, live, replicas, late=left == 0 or in_gap)
    if verified and enough and not closed:
        said = verification.verdict.message if verification is not None else end_of_steps(candidate, now)
        return replace(promote(context, target, candidate, said), left=stable)
    rejected = refused_for_long(observed, candidate, STALE_SECONDS if in_gap else may_start, pods, now)
    late = held_too_long(problem) or rejected or (verification.overdue if verification else None)
    if left == 0:
        late = promotion_overdue(problem, replicas, target)
    if in_gap and (gap_left == 0 or late):
        late = overdue(observed, late or problem or (verification.blocker if verification else None))
    if late is not None:
        if in_gap:
            return fail(context, candidate, late, keep)
        return give_back(context, candidate, late, keep)
    keep = keep_serving(context, candidate, shared=is_shared(context, candidate))
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
    request = tried.request
    actions += stage_objects(observed, request)
    verifying, waits = _verifying(candidate, tried, now), verification is not None and verification.refused
    first_look = verification.due_after if verification else FIRST_LOOK_SECONDS
    looks = [first_look, tried.due_after, gap_left, long_wait_left(verifying, now)]
    due_after = min((seconds for seconds in looks if seconds is not None), default=None)
    return RolloutStep(stable, verifying, actions, events, due_after, blocked=waits)


def _take_step(context: CanaryContext, candidate: RevisionStatus) -> RolloutStep:
    """A verified candidate gets its share of the traffic, or the next one."""
    observed, target, stable, now = context.observed, context.target, context.stable, context.now
    live, pods = observed.child(DEPLOYMENTS, candidate.deployment), observed.server_pods(target.revision, lost=True)
    problem = candidate_problem(live, pods, now)
    progress = step_on(context, candidate)
    analysis = progress.analysis
    if analysis is not None and (worse := analysis.problem(candidate)):
        return fail(context, candidate, worse, keep_serving(context, candidate))
    nobody_else = silence(context, candidate)
    if nobody_else is not None and nobody_else.takes_over:
        return _take_over(context, progress.candidate, nobody_else)
    late, stepping = held_too_long(problem), progress.candidate
    has_share = stepping.canary is not None and stepping.canary.until is not None
    if not has_share:  # of one with its share only the Job of its analysis is missing, without which it lasts
        late = late or refused_for_long(observed, stepping, target.serving.start_seconds, pods, now)
    if progress.overdue and progress.strays.names:
        late = late or ServerProblem(Reason.DEADLINE_EXCEEDED, progress.candidate.message)
    elif progress.overdue:
        late = late or promotion_overdue(problem, progress.replicas, target)
    if late is not None:
        return give_back(context, candidate, late, keep_serving(context, candidate))
    if problem is not None and not has_share:
        stepping = in_state(stepping, stepping.state, problem.reason, problem.message, now)
    if nobody_else is not None and stepping.state is RevisionState.CANARY:
        stepping = beside_silence(stepping, stable, nobody_else)
    keep = keep_serving(context, candidate, shared=is_shared(context, stepping))
    actions = (*keep, *start_candidate(observed, target, progress.replicas, is_open=True, is_asked=is_routed(stepping)))
    actions += analysis.actions if analysis else ()
    seen = canary_sighting(stepping, live, pods, now)
    looks = [progress.due_after, seen.due_after, candidate_due_after(live, pods, now), long_wait_left(stepping, now)]
    looks.append((nobody_else.left or None) if nobody_else else None)
    due_after = min((seconds for seconds in looks if seconds is not None), default=None)
    events = analysis.events(candidate) if analysis else ()
    events += (Event("Normal", Reason.CANARY_STEP, stepping.message),) if progress.begins else ()
    return RolloutStep(stable, stepping, actions, events, due_after)


def _take_over(context: CanaryContext, candidate: RevisionStatus, nobody_else: Silence) -> RolloutStep:
    """Nobody but the canary answers: it serves before its steps are over."""
    canary, cause = candidate.canary or CanaryStatus(), nobody_else.cause
    since = f"No pod of revision {context.stable.revision} had been ready since {nobody_else.since}"
    said = f"{since}: it took over at step {canary.step} of {canary.steps} of its canary."
    step = promote(context, context.target, candidate, said)
    message = f"{since}. {cause.message} Its canary, revision {candidate.revision}, takes over without the other steps."
    return replace(step, left=context.stable, events=(Event("Warning", cause.reason, message), *step.events))


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
    context: RolloutContext, target: Target, candidate: RevisionStatus, verification: Verification | None
) -> float:
    """Seconds until the network can be expected to let clients reach the verified pods.

    Network plugins follow a policy a moment later: a Service that moved at once would send the first clients to closed
    ports. The verification may have seen the policy in force. Otherwise the time counts from when the policy was
    written, which the status shows, and not from the end of the verification: the operator may have been down since.
    """
    observed = context.observed
    seconds = float(observed.settings.policy_seconds)
    policy = open_policy(observed, target.revision)
    live = observed.child(NETWORK_POLICIES, policy["metadata"]["name"])
    if ensure(NETWORK_POLICIES, policy, live):
        return seconds
    if verification is not None and verification.saw_the_network_open:
        return 0.0
    if candidate.state not in (RevisionState.CANARY, RevisionState.PROMOTING):
        return seconds
    return max(0.0, seconds - (context.now - parse_timestamp(candidate.since)).total_seconds())


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


def _verifying(candidate: RevisionStatus, tried: Try, now: datetime) -> RevisionStatus:
    """The candidate while its server is verified, or while that waits for something."""
    reason, message = Reason.VERIFYING, "Comparing the server's answers with those of the evaluated artifact."
    verification = tried.verification
    if tried.setback is not None:
        reason, message = tried.setback.reason, tried.setback.message
    elif verification is not None and verification.has_passed:
        message = "Every check passed; the network is opening."
    elif verification is not None and (blocker := verification.blocker):
        reason, message = blocker.reason, blocker.message
    elif verification is not None and verification.verdict.state is State.WAITING:
        message = verification.verdict.message
    return in_state(candidate, RevisionState.VERIFYING, reason, message, now)
