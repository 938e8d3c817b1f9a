"""AdapterDeployment: what to do next, as a pure function of what was observed.

The story: find the revision that should serve (the target). If another one serves (stable), start the target beside it
as the candidate, prove it, and move the Service to it. Whatever happens to a candidate, the stable revision is not
touched until another one has been proved.
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
from finetune_operator.adapterdeployment.verification import PROVED, find_verdict, verify_request
from finetune_operator.blockers import RETRY_SECONDS, Blocker, refused
from finetune_operator.framework.actions import Action, Event, Patch, Plan
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, NETWORK_POLICIES, SERVICES
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
"""What the API takes; a scheduler that speaks of many nodes says more."""
SCORE_LIMIT: Final = 16
"""What the API takes; pods are not trusted to keep to it."""


@dataclass(frozen=True)
class RolloutStep:
    """Where the rollout stands after this reconciliation."""

    stable: RevisionStatus | None
    candidate: RevisionStatus | None = None
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None


def plan(observed: ObservedDeployment | UnplannedDeployment, now: datetime) -> Plan[AdapterDeploymentStatus]:
    """Actions, the new status, events, and when to look again without an event."""
    if isinstance(observed, Unplanned):
        status = compose_unplanned(observed, now)
        return Plan(status, events=transition_events(observed.status, status))
    target = find_target(observed)
    stable = serving_revision(observed, target, now)
    if isinstance(target, Target) and (blocker := refused(observed)):
        # The candidate stays what it is, and what was refused is asked for again: it does not begin anew.
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

    The status knows it. Without one (of a restored resource, or when the operator died before it wrote the first
    promotion down) the public Service does: it never pointed to a revision that was not proved.
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
    """The candidate's promotion was carried out but not written down: it is about to be repeated, scores and all."""
    candidate = observed.resource.status.candidate
    is_target = isinstance(target, Target) and target.revision == revision
    return is_target and candidate is not None and candidate.revision == revision


def _hold(observed: ObservedDeployment, blocker: Blocker, stable: RevisionStatus | None) -> RolloutStep:
    """Without a target: what serves goes on serving, and a candidate of an earlier target goes."""
    return RolloutStep(stable, actions=_keep(observed, stable), requeue_after=blocker.requeue_after)


def recorded(stable: RevisionStatus, target: Target) -> RevisionStatus:
    """The revision with all that it takes to make its pods again; one that was found by its Service lacks it."""
    serving = target.serving
    return stable.model_copy(update={"runtime": serving.runtime_name, "storage": serving.storage})


def _serve(observed: ObservedDeployment, target: Target) -> tuple[Action, ...]:
    """The target serves: its objects are as they should be, with as many pods as the spec asks for."""
    return (
        *_pods(observed, target, observed.resource.spec.replicas),
        *_traffic(observed, target.revision),
    )


def _keep(observed: ObservedDeployment, stable: RevisionStatus | None) -> tuple[Action, ...]:
    """Another revision than the target serves: its pods stay as they were proved, but as many as the spec wants.

    What somebody deleted or changed comes back, unless the platform's settings have changed since: what they would
    make now has not been proved, so that only the number of pods is seen to.
    """
    if stable is None:
        return ()
    proved = recorded_target(observed, stable)
    if proved is not None:
        return _serve(observed, proved)
    live, replicas = observed.child(DEPLOYMENTS, stable.deployment), observed.resource.spec.replicas
    outnumbered = live is not None and live["spec"].get("replicas") != replicas
    scale = Patch(DEPLOYMENTS, stable.deployment, {"spec": {"replicas": replicas}})
    return (*_traffic(observed, stable.revision), *((scale,) if outnumbered else ()))


def _roll_out(
    observed: ObservedDeployment, target: Target, stable: RevisionStatus | None, now: datetime
) -> RolloutStep:
    """The target does not serve yet: start it, prove it, move the traffic; or find out why that cannot be."""
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
    proved = verdict is not None and verdict.state in PROVED
    # One pod is enough for the proof: a bad artifact shall not cost a whole fleet of GPUs. Zero are not.
    replicas = max(1, observed.resource.spec.replicas) if proved else 1
    closed = _closed_for(observed, target, candidate, now) if proved else 0.0
    if verdict is not None and proved and is_available(live, replicas) and not closed:
        return _promote(observed, target, candidate, verdict, now)
    actions = (*keep, *_start(observed, target, replicas, is_open=proved))
    if proved or not is_available(live, replicas):
        waiting = _waiting(candidate, proved, problem, now)
        patience = max(0.0, PULL_PATIENCE_SECONDS - age) or None
        return RolloutStep(stable, waiting, actions, events, requeue_after=closed or patience)
    actions += (
        *ensure_exists(CONFIG_MAPS, input_config_map(verification), observed.child(CONFIG_MAPS, verification.name)),
        *ensure_exists(JOBS, stage_job(verification), observed.child(JOBS, verification.name)),
    )
    blocker = verdict.message if verdict is not None and verdict.state is State.WAITING else ""
    message = blocker or "The server's answers are compared with those of the evaluated artifact."
    verifying = in_state(candidate, RevisionState.VERIFYING, Reason.VERIFYING, message, now)
    return RolloutStep(stable, verifying, actions, events)


def _closed_for(observed: ObservedDeployment, target: Target, candidate: RevisionStatus, now: datetime) -> float:
    """Seconds until the proved pods can be expected to be open to everybody.

    Network plugins follow a policy a moment later. A Service that moved at once would send the first clients to a
    closed door. The clock starts when the policy is written, which the status tells: not when the proof ended, for the
    operator may have been down since then.
    """
    seconds = float(observed.settings.policy_seconds)
    policy = serving_policy(observed.owner, target.revision)
    live = observed.child(NETWORK_POLICIES, policy["metadata"]["name"])
    if candidate.state is not RevisionState.PROMOTING or ensure(NETWORK_POLICIES, policy, live):
        return seconds
    return max(0.0, seconds - (now - parse_timestamp(candidate.since)).total_seconds())


def _waiting(
    candidate: RevisionStatus, proved: bool, problem: CandidateProblem | None, now: datetime
) -> RevisionStatus:
    """The candidate while its pods start: the first one, or after the proof all the others."""
    state = RevisionState.PROMOTING if proved else RevisionState.STARTING
    reason = Reason.VERIFIED if proved else Reason.CANDIDATE_STARTING
    message = (
        "It is proved; the rest of its pods start, and its network opens." if proved else "The server loads the model."
    )
    if problem is not None:
        reason, message = problem.reason, problem.message
    return in_state(candidate, state, reason, message, now)


def _known(observed: ObservedDeployment, target: Target) -> RevisionStatus | None:
    """The target as the candidate that it is already."""
    known = observed.resource.status.candidate
    return known if known is not None and known.revision == target.revision else None


def _candidate(observed: ObservedDeployment, target: Target, now: datetime) -> tuple[RevisionStatus, tuple[Event, ...]]:
    """The target as the candidate that it already is, or as a new one."""
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
    message = f"Revision {target.revision} starts with artifact {target.serving.artifact_digest[:12]}."
    return started, (Event("Normal", Reason.CANDIDATE_STARTING, message),)


def _fail(
    stable: RevisionStatus | None,
    candidate: RevisionStatus,
    problem: CandidateProblem,
    actions: tuple[Action, ...],
    now: datetime,
) -> RolloutStep:
    failed = in_state(candidate, RevisionState.FAILED, problem.reason, problem.message, now)
    serves = f" Revision {stable.revision} goes on serving." if stable else ""
    message = f"Revision {candidate.revision} is not served: {problem.message}{serves}"
    return RolloutStep(stable, failed, actions, (Event("Warning", problem.reason, message),))


def _promote(
    observed: ObservedDeployment, target: Target, candidate: RevisionStatus, verdict: Verdict, now: datetime
) -> RolloutStep:
    """Proved and ready: from now on the public Service points to it."""
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
    """The candidate's objects. The policy comes first: before the proof its pods are open to the verifier only.

    The proof is also the end of the candidate's own Service: a namespace with room for one has it for the public one.
    """
    owner, revision = observed.owner, target.revision
    service = candidate_service(owner, revision)
    policy = serving_policy(owner, revision) if is_open else candidate_policy(owner, revision)
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
    """The pods of the revision are open to clients, and the public Service points to them."""
    policy, service = serving_policy(observed.owner, revision), public_service(observed.owner, revision)
    return (
        *ensure(NETWORK_POLICIES, policy, observed.child(NETWORK_POLICIES, policy["metadata"]["name"])),
        *ensure(SERVICES, service, observed.child(SERVICES, service["metadata"]["name"])),
    )
