"""AdapterDeployment: the status that people and programs read, composed anew in every reconciliation."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.adapterdeployment import AdapterDeploymentStatus, RevisionState, RevisionStatus, ServingPhase
from finetune_api.base import Condition
from finetune_api.meta import ADAPTERDEPLOYMENT
from finetune_api.reasons import Reason, remedy
from finetune_operator.adapterdeployment.endpoint import EndpointState
from finetune_operator.adapterdeployment.observe import ObservedDeployment, Unplanned
from finetune_operator.adapterdeployment.target import Blocked, Target
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, Finding, merge_conditions
from finetune_operator.framework.events import advice_events
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.resources.deployment import server_labels
from finetune_operator.resources.service import service_url


@dataclass(frozen=True)
class _Scene:
    """What the conditions and the phase are about."""

    target: Target | Blocked
    stable: RevisionStatus | None
    candidate: RevisionStatus | None
    endpoint: EndpointState
    wanted: int
    existing: int
    ready: int

    @property
    def lack(self) -> Blocked | None:
        """Why there is no target, or only the one from before."""
        return self.target if isinstance(self.target, Blocked) else self.target.source_blocker

    @property
    def failure(self) -> tuple[Reason, str] | None:
        """What somebody has to act on."""
        # What blocks ends a candidate, unless the API server refused an object: then that is what is to be told.
        blocks = isinstance(self.target, Blocked) or not self.candidate
        if self.lack and not self.lack.waiting and blocks:
            return self.lack.reason, self.lack.message
        if self.candidate and self.candidate.state is RevisionState.FAILED:
            message = f"Revision {self.candidate.revision} is not served: {self.candidate.message}"
            return Reason(self.candidate.reason), message
        return None

    @property
    def progress(self) -> tuple[Reason, str] | None:
        """What passes by itself."""
        if self.failure:
            return None
        if self.candidate:
            return Reason(self.candidate.reason), f"Revision {self.candidate.revision}: {self.candidate.message}"
        if self.lack:
            return self.lack.reason, self.lack.message
        if self.stable and self.ready < self.wanted:
            return Reason.SERVER_UNAVAILABLE, f"{self.ready} of {self.wanted} pods answer."
        if self.stable and self.wanted and not self.endpoint.settled:
            return Reason.WAITING, _spreading(self.stable)
        return None


def compose(
    observed: ObservedDeployment,
    target: Target | Blocked,
    stable: RevisionStatus | None,
    candidate: RevisionStatus | None,
    endpoint: EndpointState,
    now: datetime,
) -> AdapterDeploymentStatus:
    """The whole status."""
    before, generation = observed.resource.status, observed.resource.metadata.generation
    deployment = observed.child(DEPLOYMENTS, stable.deployment) if stable else None
    pods = (deployment or {}).get("status") or {}
    scene = _Scene(
        target=target,
        stable=stable,
        candidate=candidate,
        endpoint=endpoint,
        wanted=observed.resource.spec.replicas,
        existing=pods.get("replicas", 0),
        ready=pods.get("readyReplicas", 0),
    )
    findings = (_ready(scene), _reconciling(scene), _stalled(scene), *_advice(target))
    return AdapterDeploymentStatus(
        observed_generation=generation,
        phase=_phase(scene),
        conditions=merge_conditions(before.conditions, findings, ADAPTERDEPLOYMENT, generation, now),
        endpoint=service_url(observed.owner, observed.owner.name) if stable else "",
        stable=stable,
        candidate=candidate,
        last_good_revision=stable.revision if stable else before.last_good_revision,
        replicas=scene.existing,
        ready_replicas=scene.ready,
        selector=_selector(server_labels(observed.owner, stable.revision)) if stable else "",
    )


def unplanned(observed: Unplanned, now: datetime) -> AdapterDeploymentStatus:
    """The status of a resource that is left alone with what serves, of which no news is told."""
    before, generation = observed.status, observed.metadata.generation
    known = {condition.type: condition for condition in before.conditions}
    ready = known.get(ConditionType.READY)
    what = "The spec is not valid" if observed.reason is Reason.SPEC_INVALID else "The Kubernetes API fails"
    serves = "what served before goes on serving" if before.stable else "nothing serves yet"
    findings = (
        Finding(
            ConditionType.READY,
            ready is not None and ready.status == "True",
            observed.reason,
            f"{what}; {serves}.",
        ),
        Finding(ConditionType.RECONCILING, False, observed.reason, f"{what}."),
        Finding(ConditionType.STALLED, True, observed.reason, f"{what}: {observed.problem}."),
    )
    return before.model_copy(
        update={
            "observed_generation": generation,
            "phase": ServingPhase.DEGRADED if before.stable else ServingPhase.FAILED,
            "conditions": merge_conditions(before.conditions, findings, ADAPTERDEPLOYMENT, generation, now),
        }
    )


def edges(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> tuple[Event, ...]:
    """Events for what a person can act on, when it appears. What happens to a candidate tells the rollout itself."""
    advice = tuple(advice_events(before.conditions, after.conditions))
    now, then = _trouble(after), _trouble(before)
    if now is None or (then is not None and then.reason == now.reason):
        return advice
    waits = now.reason == Reason.SOURCE_NOT_READY and now.type != ConditionType.STALLED
    return (Event("Normal" if waits else "Warning", Reason(now.reason), now.message), *advice)


def _trouble(status: AdapterDeploymentStatus) -> Condition | None:
    """The condition that says what stands in the way, or what a candidate waits for; None if nothing does.

    That some pods of the stable revision do not answer is no trouble yet: they may be new.
    """
    candidate, shown = status.candidate, {condition.type: condition for condition in status.conditions}
    told = candidate.reason if candidate and candidate.state is RevisionState.FAILED else ""
    speaking = [(ConditionType.STALLED, "True"), (ConditionType.READY, "False")]
    speaking += [(ConditionType.RECONCILING, "True")] if candidate else []
    found = [condition for kind, value in speaking if (condition := shown.get(kind)) and condition.status == value]
    news = [each for each in found if each.reason != told and remedy(Reason(each.reason), ADAPTERDEPLOYMENT)]
    return news[0] if news else None


def _ready(scene: _Scene) -> Finding:
    """Whether clients get answers; that a new revision failed does not change it."""
    if scene.stable is None:
        reason, message = scene.failure or scene.progress or (Reason.WAITING, "Nothing serves yet.")
        return Finding(ConditionType.READY, False, reason, message)
    if scene.ready == 0 and scene.wanted > 0:
        message = f"None of the {scene.wanted} pods of revision {scene.stable.revision} answers."
        return Finding(ConditionType.READY, False, Reason.SERVER_UNAVAILABLE, message)
    if scene.wanted and not scene.endpoint.answers:
        return Finding(ConditionType.READY, False, Reason.WAITING, _spreading(scene.stable))
    return Finding(ConditionType.READY, True, Reason.SERVING, _serving(scene, scene.stable))


def _serving(scene: _Scene, stable: RevisionStatus) -> str:
    if scene.wanted and not scene.endpoint.settled:
        return f"Until every node knows revision {stable.revision}, some clients get answers of the revision before."
    serves = f"Revision {stable.revision} serves artifact {stable.artifact_digest[:12]}"
    return f"{serves}; {f'{scene.ready} of {scene.wanted} pods answer' if scene.wanted else 'it is scaled to zero'}."


def _spreading(stable: RevisionStatus) -> str:
    return f"Revision {stable.revision} is deployed: waiting for the Service's endpoints to reach every node."


def _reconciling(scene: _Scene) -> Finding:
    reason, message = scene.progress or (Reason.SERVING, "Nothing is under way.")
    return Finding(ConditionType.RECONCILING, scene.progress is not None, reason, message)


def _stalled(scene: _Scene) -> Finding:
    reason, message = scene.failure or (Reason.SERVING, "Nothing is in the way.")
    return Finding(ConditionType.STALLED, scene.failure is not None, reason, message)


def _advice(target: Target | Blocked) -> list[Finding]:
    """What can be served, and may go wrong; no condition where there is nothing to say."""
    warning = target.warning if isinstance(target, Target) else ""
    return [Finding(ConditionType.DISCOURAGED, True, Reason.SETTINGS_DISCOURAGED, warning)] if warning else []


def _phase(scene: _Scene) -> ServingPhase:
    waiting = scene.lack is not None and scene.lack.waiting and scene.candidate is None
    if scene.stable is None:
        if scene.failure:
            return ServingPhase.FAILED
        return ServingPhase.PENDING if waiting else ServingPhase.PROGRESSING
    if scene.failure or (scene.ready == 0 and scene.wanted > 0):
        return ServingPhase.DEGRADED
    if scene.candidate or waiting:
        return ServingPhase.PROGRESSING
    if scene.ready < scene.wanted:
        return ServingPhase.DEGRADED
    return ServingPhase.READY if scene.endpoint.settled or not scene.wanted else ServingPhase.PROGRESSING


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
