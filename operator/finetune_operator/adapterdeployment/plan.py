"""AdapterDeployment: what to do next, as a pure function of what was observed.

The story: find the revision that should serve (the target). If another one serves (stable), start the target beside it
as the candidate, verify it, and move the Service to it. Whatever happens to a candidate, the stable revision is not
touched until another one has been verified.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from finetune_api.adapterdeployment import AdapterDeploymentStatus, RevisionState, RevisionStatus
from finetune_api.reasons import Reason
from finetune_operator.adapterdeployment.cleanup import plan_cleanup
from finetune_operator.adapterdeployment.endpoint import endpoint_state
from finetune_operator.adapterdeployment.health import (
    PULL_PATIENCE_SECONDS,
    CandidateProblem,
    candidate_problem,
    is_available,
)
from finetune_operator.adapterdeployment.observe import ObservedDeployment, UnplannedDeployment
from finetune_operator.adapterdeployment.rollout import Rollout
from finetune_operator.adapterdeployment.status import compose, compose_unplanned, transition_events
from finetune_operator.adapterdeployment.target import Target, find_target, recorded_target
from finetune_operator.adapterdeployment.verification import VERIFIED, find_verdict, verify_request
from finetune_operator.blockers import RETRY_SECONDS, Blocker, refused
from finetune_operator.framework.actions import Action, Event, Patch, Plan
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, NETWORK_POLICIES, SERVICES, Object
from finetune_operator.framework.reading import Unplanned
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.resources.deployment import (
    ANNOTATION_ARTIFACT_DIGEST,
    ANNOTATION_ARTIFACT_URI,
    deployment,
    deployment_name,
    fetch_request,
)
from finetune_operator.resources.drift import ensure, ensure_exists
from finetune_operator.resources.network_policy import candidate_policy, serving_policy
from finetune_operator.resources.service import candidate_service, public_service
from finetune_operator.resources.stage_job import input_config_map, stage_job

MESSAGE_LIMIT: Final = 1024
"""The API's limit; a scheduler's message about many nodes is longer."""
SCORE_LIMIT: Final = 16
"""The API's limit; pods are not trusted to respect it."""


@dataclass(frozen=True)
class RolloutStep:
    """Where the rollout stands after this reconciliation."""

    stable: RevisionStatus | None
    candidate: RevisionStatus | None = None
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None


def plan(observed: ObservedDeployment | UnplannedDeployment, now: datetime) -> Plan[AdapterDeploymentStatus]:
    """Actions, the new status, events and the time of the next pass."""
    if isinstance(observed, Unplanned):
        status = compose_unplanned(observed, now)
        return Plan(status, events=transition_events(observed.status, status))
    target = find_target(observed)
    stable = serving_revision(observed, target, now)
    if isinstance(target, Target) and (blocker := refused(observed)):
        # The candidate stays what it is, and the refused object is tried again: the rollout does not start anew.
        step = RolloutStep(stable, _known(observed, target), requeue_after=RETRY_SECONDS)
        target = blocker
    elif isinstance(target, Blocker):
        step = _hold(observed, target, stable)
    elif stable is not None and stable.revision == target.revision:
        step = RolloutStep(recorded(stable, target), actions=_serve(observed, target))
    else:
        step = _roll_out(observed, target, stable, now)
    endpoint = endpoint_state(observed, step.stable, now)
    rollout = Rollout(observed, target, step.stable, step.candidate, endpoint, now)
    cleanup = plan_cleanup(rollout)
    looks = [seconds for seconds in (step.requeue_after, cleanup.due_after, endpoint.due_after) if seconds is not None]
    status = compose(rollout)
    return Plan(
        status=status,
        actions=cleanup.first + step.actions + cleanup.last,
        events=step.events + transition_events(observed.resource.status, status),
        requeue_after=min(looks, default=None),
    )


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
    artifact = live["metadata"].get("annotations") or {}
    return RevisionStatus(
        revision=revision,
        state=RevisionState.SERVING,
        artifact_digest=artifact.get(ANNOTATION_ARTIFACT_DIGEST, ""),
        artifact_uri=artifact.get(ANNOTATION_ARTIFACT_URI, ""),
        deployment=live["metadata"]["name"],
        since=timestamp(now),
        reason=Reason.SERVING,
    )


def _unrecorded_promotion(observed: ObservedDeployment, target: Target | Blocker, revision: str) -> bool:
    """The candidate was promoted but not recorded: the promotion is about to be repeated, with its scores."""
    candidate = observed.resource.status.candidate
    is_target = isinstance(target, Target) and target.revision == revision
    return is_target and candidate is not None and candidate.revision == revision


def _hold(observed: ObservedDeployment, blocker: Blocker, stable: RevisionStatus | None) -> RolloutStep:
    """Without a target, the stable revision keeps serving, and a candidate of an earlier target is deleted."""
    return RolloutStep(stable, actions=_keep(observed, stable), requeue_after=blocker.requeue_after)


def recorded(stable: RevisionStatus, target: Target) -> RevisionStatus:
    """The revision with everything needed to recreate its pods; one that was found by its Service lacks it."""
    serving = target.serving
    return stable.model_copy(update={"runtime": serving.runtime_name, "storage": serving.storage})


def _serve(observed: ObservedDeployment, target: Target) -> tuple[Action, ...]:
    """The target serves: restore its objects, with as many pods as the spec asks for."""
    return (
        *_pods(observed, target, observed.resource.spec.replicas),
        *_traffic(observed, target.revision),
    )


def _keep(observed: ObservedDeployment, stable: RevisionStatus | None) -> tuple[Action, ...]:
    """Another revision than the target serves: its pods stay as they were verified, as many as the spec asks for.

    Deleted or changed objects are restored, unless the platform's settings have changed since: pods with the new
    settings have not been verified, so then only the number of pods is adjusted.
    """
    if stable is None:
        return ()
    verified = recorded_target(observed, stable)
    if verified is not None:
        return _serve(observed, verified)
    live, replicas = observed.child(DEPLOYMENTS, stable.deployment), observed.resource.spec.replicas
    outnumbered = live is not None and live["spec"].get("replicas") != replicas
    scale = Patch(DEPLOYMENTS, stable.deployment, {"spec": {"replicas": replicas}})
    return (*_traffic(observed, stable.revision), *((scale,) if outnumbered else ()))


def _roll_out(
    observed: ObservedDeployment, target: Target, stable: RevisionStatus | None, now: datetime
) -> RolloutStep:
    """The target does not serve yet: start it, verify it, move the traffic; or report why that is impossible."""
    candidate, events = _candidate(observed, target, now)
    keep = _keep(observed, stable)
    if candidate.state is RevisionState.FAILED:
        return RolloutStep(stable, candidate, keep)
    live = observed.child(DEPLOYMENTS, candidate.deployment)
    age = (now - parse_timestamp(candidate.since)).total_seconds()
    problem = candidate_problem(live, observed.server_pods(target.revision), age)
    if problem is not None and problem.fatal:
        return _fail(stable, candidate, problem, keep, now)
    verification = verify_request(observed.owner, target, observed.resource.spec, observed.settings)
    verdict = find_verdict(observed, verification.name)
    if verdict is not None and verdict.state is State.FAILED:
        return _fail(stable, candidate, CandidateProblem(verdict.reason, verdict.message), keep, now)
    verified = verdict is not None and verdict.state in VERIFIED
    # One pod is enough to verify: a bad artifact must not cost a whole fleet of GPUs. Zero pods are not enough.
    replicas = max(1, observed.resource.spec.replicas) if verified else 1
    closed = _closed_for(observed, target, candidate, now) if verified else 0.0
    if verdict is not None and verified and is_available(live, replicas) and not closed:
        return _promote(observed, target, candidate, verdict, now)
    actions = (*keep, *_start(observed, target, replicas, is_open=verified))
    if verified or not is_available(live, replicas):
        waiting = _waiting(candidate, verified, problem, now)
        patience = max(0.0, PULL_PATIENCE_SECONDS - age) or None
        return RolloutStep(stable, waiting, actions, events, requeue_after=closed or patience)
    actions += (
        *ensure_exists(CONFIG_MAPS, input_config_map(verification), observed.child(CONFIG_MAPS, verification.name)),
        *ensure_exists(JOBS, stage_job(verification), observed.child(JOBS, verification.name)),
    )
    blocker = verdict.message if verdict is not None and verdict.state is State.WAITING else ""
    message = blocker or "Comparing the server's answers with those of the evaluated artifact."
    verifying = in_state(candidate, RevisionState.VERIFYING, Reason.VERIFYING, message, now)
    return RolloutStep(stable, verifying, actions, events)


def _closed_for(observed: ObservedDeployment, target: Target, candidate: RevisionStatus, now: datetime) -> float:
    """Seconds until the network can be expected to let clients reach the verified pods.

    Network plugins follow a policy a moment later: a Service that moved at once would send the first clients to closed
    ports. The time counts from when the policy was written, which the status shows, and not from the end of the
    verification: the operator may have been down since.
    """
    seconds = float(observed.settings.policy_seconds)
    policy = _open_policy(observed, target.revision)
    live = observed.child(NETWORK_POLICIES, policy["metadata"]["name"])
    if candidate.state is not RevisionState.PROMOTING or ensure(NETWORK_POLICIES, policy, live):
        return seconds
    return max(0.0, seconds - (now - parse_timestamp(candidate.since)).total_seconds())


def _waiting(
    candidate: RevisionStatus, verified: bool, problem: CandidateProblem | None, now: datetime
) -> RevisionStatus:
    """The candidate while its pods start: the first one, or after verification the others."""
    state = RevisionState.PROMOTING if verified else RevisionState.STARTING
    reason = Reason.VERIFIED if verified else Reason.CANDIDATE_STARTING
    message = (
        "Verified; the other pods start, and the network opens." if verified else "The server is loading the model."
    )
    if problem is not None:
        reason, message = problem.reason, problem.message
    return in_state(candidate, state, reason, message, now)


def _known(observed: ObservedDeployment, target: Target) -> RevisionStatus | None:
    """The candidate, if it is the target."""
    known = observed.resource.status.candidate
    return known if known is not None and known.revision == target.revision else None


def _candidate(observed: ObservedDeployment, target: Target, now: datetime) -> tuple[RevisionStatus, tuple[Event, ...]]:
    """The target as the current candidate, or as a new one."""
    known = _known(observed, target)
    if known is not None:
        same_spec = known.spec_hash == target.spec_hash
        if same_spec or known.state is not RevisionState.FAILED:
            return known.model_copy(update={"spec_hash": target.spec_hash}), ()
    started = RevisionStatus(
        revision=target.revision,
        state=RevisionState.STARTING,
        artifact_digest=target.serving.artifact_digest,
        artifact_uri=target.serving.artifact_uri,
        deployment=deployment_name(observed.owner, target.revision),
        runtime=target.serving.runtime_name,
        storage=target.serving.storage,
        since=timestamp(now),
        spec_hash=target.spec_hash,
        reason=Reason.CANDIDATE_STARTING,
    )
    message = f"Starting revision {target.revision} with artifact {target.serving.artifact_digest[:12]}."
    return started, (Event("Normal", Reason.CANDIDATE_STARTING, message),)


def _fail(
    stable: RevisionStatus | None,
    candidate: RevisionStatus,
    problem: CandidateProblem,
    actions: tuple[Action, ...],
    now: datetime,
) -> RolloutStep:
    failed = in_state(candidate, RevisionState.FAILED, problem.reason, problem.message, now)
    serves = f" Revision {stable.revision} keeps serving." if stable else ""
    message = f"Revision {candidate.revision} was not promoted: {problem.message}{serves}"
    return RolloutStep(stable, failed, actions, (Event("Warning", problem.reason, message),))


def _promote(
    observed: ObservedDeployment, target: Target, candidate: RevisionStatus, verdict: Verdict, now: datetime
) -> RolloutStep:
    """Verified and ready: the public Service now points to it."""
    scores = verdict.result.scalars if verdict.result else {}
    serving = in_state(candidate, RevisionState.SERVING, Reason.SERVING, verdict.message, now).model_copy(
        update={
            "accuracy": scores.get("accuracy", "")[:SCORE_LIMIT],
            "expected_accuracy": scores.get("expectedAccuracy", "")[:SCORE_LIMIT],
        }
    )
    message = f"Revision {target.revision} serves artifact {candidate.artifact_digest[:12]}. {verdict.message}"
    return RolloutStep(serving, actions=_serve(observed, target), events=(Event("Normal", Reason.PROMOTED, message),))


def in_state(
    revision: RevisionStatus, state: RevisionState, reason: Reason, message: str, now: datetime
) -> RevisionStatus:
    """The revision in a state, since now if it was in another one."""
    since = revision.since if revision.state is state else timestamp(now)
    update = {"state": state, "reason": reason, "message": message[:MESSAGE_LIMIT], "since": since}
    return revision.model_copy(update=update)


def _start(observed: ObservedDeployment, target: Target, replicas: int, *, is_open: bool) -> tuple[Action, ...]:
    """The candidate's objects. The policy comes first: until it is verified, only the verifier reaches its pods.

    Once it is verified, its own Service is not needed: a quota may have room for one Service only, the public one.
    """
    owner, revision = observed.owner, target.revision
    service = candidate_service(owner, revision)
    policy = _open_policy(observed, revision) if is_open else candidate_policy(owner, revision)
    asked = () if is_open else ensure(SERVICES, service, observed.child(SERVICES, service["metadata"]["name"]))
    return (
        *ensure(NETWORK_POLICIES, policy, observed.child(NETWORK_POLICIES, policy["metadata"]["name"])),
        *asked,
        *_pods(observed, target, replicas),
    )


def _pods(observed: ObservedDeployment, target: Target, replicas: int) -> tuple[Action, ...]:
    owner, settings = observed.owner, observed.settings
    fetch = fetch_request(owner, target.serving, settings, target.revision)
    wanted = deployment(owner, target.serving, settings, target.revision, replicas)
    return (
        *ensure_exists(CONFIG_MAPS, input_config_map(fetch), observed.child(CONFIG_MAPS, fetch.name)),
        *ensure(DEPLOYMENTS, wanted, observed.child(DEPLOYMENTS, wanted["metadata"]["name"])),
    )


def _traffic(observed: ObservedDeployment, revision: str) -> tuple[Action, ...]:
    """Clients may reach the pods of the revision, and the public Service points to them."""
    policy, service = _open_policy(observed, revision), public_service(observed.owner, revision)
    return (
        *ensure(NETWORK_POLICIES, policy, observed.child(NETWORK_POLICIES, policy["metadata"]["name"])),
        *ensure(SERVICES, service, observed.child(SERVICES, service["metadata"]["name"])),
    )


def _open_policy(observed: ObservedDeployment, revision: str) -> Object:
    """The policy that lets clients reach a revision."""
    return serving_policy(observed.owner, revision, observed.settings.serving.ingress_from)
