"""The status of an AdapterDeployment, composed anew in every reconciliation, and the events for its transitions."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.adapterdeployment import AdapterDeploymentStatus, RevisionState, RevisionStatus, ServingPhase
from finetune_api.base import Condition
from finetune_api.meta import ADAPTERDEPLOYMENT
from finetune_api.reasons import Reason, remedy
from finetune_operator.adapterdeployment.endpoint import EndpointState
from finetune_operator.adapterdeployment.observe import UnplannedDeployment
from finetune_operator.adapterdeployment.rollout import Rollout
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.blockers import Blocker
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, Finding, merge_conditions
from finetune_operator.framework.events import advice_events
from finetune_operator.framework.objects import DEPLOYMENTS, Object
from finetune_operator.resources.deployment import server_labels
from finetune_operator.resources.service import service_url


@dataclass(frozen=True)
class _Summary:
    """The facts behind conditions and phase."""

    rollout: Rollout

    @property
    def stable(self) -> RevisionStatus | None:
        """The revision that clients are sent to."""
        return self.rollout.stable

    @property
    def candidate(self) -> RevisionStatus | None:
        """The revision that is being started, or has failed."""
        return self.rollout.candidate

    @property
    def endpoint(self) -> EndpointState:
        """Where connections to the public Service end."""
        return self.rollout.endpoint

    @property
    def wanted(self) -> int:
        """Pods that the spec asks for."""
        return self.rollout.observed.resource.spec.replicas

    @property
    def existing(self) -> int:
        """Pods of the stable revision."""
        return int(self._pods.get("replicas", 0))

    @property
    def ready(self) -> int:
        """Pods of the stable revision that are ready."""
        return int(self._pods.get("readyReplicas", 0))

    @property
    def _pods(self) -> Object:
        deployment = self.rollout.observed.child(DEPLOYMENTS, self.stable.deployment) if self.stable else None
        return (deployment or {}).get("status") or {}

    @property
    def blocker(self) -> Blocker | None:
        """Why there is no target, or only an earlier one."""
        target = self.rollout.target
        return target if isinstance(target, Blocker) else target.source_blocker

    @property
    def failure(self) -> tuple[Reason, str] | None:
        """A problem that somebody has to act on."""
        # A blocker ends a candidate, except for a refusal by the API server, which is then what to report.
        blocks = isinstance(self.rollout.target, Blocker) or not self.candidate
        if self.blocker and not self.blocker.waiting and blocks:
            return self.blocker.reason, self.blocker.message
        if failed := self.rollout.failed:
            return Reason(failed.reason), f"Revision {failed.revision} was not promoted: {failed.message}"
        return None

    @property
    def progress(self) -> tuple[Reason, str] | None:
        """What is in progress, and passes by itself."""
        if self.failure:
            return None
        if self.candidate:
            return Reason(self.candidate.reason), f"Revision {self.candidate.revision}: {self.candidate.message}"
        if self.blocker:
            return self.blocker.reason, self.blocker.message
        if self.stable and self.ready < self.wanted:
            return Reason.SERVER_UNAVAILABLE, f"{self.ready} of {self.wanted} pods are ready."
        if self.stable and self.wanted and not self.endpoint.settled:
            return Reason.WAITING, _spreading(self.stable)
        return None


def compose(rollout: Rollout) -> AdapterDeploymentStatus:
    """The whole new status."""
    observed, stable, summary = rollout.observed, rollout.stable, _Summary(rollout)
    before, generation = observed.resource.status, observed.resource.metadata.generation
    findings = (_ready(summary), _reconciling(summary), _stalled(summary), *_advice(rollout.target))
    return AdapterDeploymentStatus(
        observed_generation=generation,
        phase=_phase(summary),
        conditions=merge_conditions(before.conditions, findings, ADAPTERDEPLOYMENT, generation, rollout.now),
        endpoint=service_url(observed.owner, observed.owner.name) if stable else "",
        stable=stable,
        candidate=rollout.candidate,
        last_good_revision=stable.revision if stable else before.last_good_revision,
        replicas=summary.existing,
        ready_replicas=summary.ready,
        selector=_selector(server_labels(observed.owner, stable.revision)) if stable else "",
    )


def compose_unplanned(observed: UnplannedDeployment, now: datetime) -> AdapterDeploymentStatus:
    """The status where nothing can be planned: the stable revision keeps serving, unobserved."""
    before, generation = observed.status, observed.metadata.generation
    known = {condition.type: condition for condition in before.conditions}
    ready = known.get(ConditionType.READY)
    what = "The spec is not valid" if observed.reason is Reason.SPEC_INVALID else "Calls to the Kubernetes API fail"
    serves = "the stable revision keeps serving" if before.stable else "no revision serves yet"
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


def transition_events(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> tuple[Event, ...]:
    """Events for problems that a person can act on, when they appear. The rollout reports on its candidate itself."""
    advice = tuple(advice_events(before.conditions, after.conditions))
    now, then = _problem(after), _problem(before)
    if now is None or (then is not None and then.reason == now.reason):
        return advice
    waits = now.reason == Reason.SOURCE_NOT_READY and now.type != ConditionType.STALLED
    return (Event("Normal" if waits else "Warning", Reason(now.reason), now.message), *advice)


def _problem(status: AdapterDeploymentStatus) -> Condition | None:
    """The condition that says what stands in the way, or what a candidate waits for; None if nothing does.

    Some pods of the stable revision not being ready is no problem yet: they may be new.
    """
    candidate, shown = status.candidate, {condition.type: condition for condition in status.conditions}
    told = candidate.reason if candidate and candidate.state is RevisionState.FAILED else ""
    speaking = [(ConditionType.STALLED, "True"), (ConditionType.READY, "False")]
    speaking += [(ConditionType.RECONCILING, "True")] if candidate else []
    found = [condition for kind, value in speaking if (condition := shown.get(kind)) and condition.status == value]
    news = [each for each in found if each.reason != told and remedy(Reason(each.reason), ADAPTERDEPLOYMENT)]
    return news[0] if news else None


def _ready(summary: _Summary) -> Finding:
    """Whether clients get answers; a candidate that failed does not change that."""
    if summary.stable is None:
        reason, message = summary.failure or summary.progress or (Reason.WAITING, "No revision serves yet.")
        return Finding(ConditionType.READY, False, reason, message)
    if summary.ready == 0 and summary.wanted > 0:
        message = f"None of the {summary.wanted} pods of revision {summary.stable.revision} is ready."
        return Finding(ConditionType.READY, False, Reason.SERVER_UNAVAILABLE, message)
    if summary.wanted and not summary.endpoint.answers:
        return Finding(ConditionType.READY, False, Reason.WAITING, _spreading(summary.stable))
    return Finding(ConditionType.READY, True, Reason.SERVING, _serving(summary, summary.stable))


def _serving(summary: _Summary, stable: RevisionStatus) -> str:
    if summary.wanted and not summary.endpoint.settled:
        return (
            f"Until every node knows revision {stable.revision}, some clients get answers from the previous revision."
        )
    serves = f"Revision {stable.revision} serves artifact {stable.artifact_digest[:12]}"
    return (
        f"{serves}; {f'{summary.ready} of {summary.wanted} pods answer' if summary.wanted else 'it is scaled to zero'}."
    )


def _spreading(stable: RevisionStatus) -> str:
    return f"Revision {stable.revision} is deployed; waiting until every node knows the Service's endpoints."


def _reconciling(summary: _Summary) -> Finding:
    reason, message = summary.progress or (Reason.SERVING, "No change is in progress.")
    return Finding(ConditionType.RECONCILING, summary.progress is not None, reason, message)


def _stalled(summary: _Summary) -> Finding:
    reason, message = summary.failure or (Reason.SERVING, "Nothing needs attention.")
    return Finding(ConditionType.STALLED, summary.failure is not None, reason, message)


def _advice(target: Target | Blocker) -> list[Finding]:
    """A warning about a target that can be served; no condition without one."""
    warning = target.warning if isinstance(target, Target) else ""
    return [Finding(ConditionType.DISCOURAGED, True, Reason.SETTINGS_DISCOURAGED, warning)] if warning else []


def _phase(summary: _Summary) -> ServingPhase:
    waiting = summary.blocker is not None and summary.blocker.waiting and summary.candidate is None
    if summary.stable is None:
        if summary.failure:
            return ServingPhase.FAILED
        return ServingPhase.PENDING if waiting else ServingPhase.PROGRESSING
    if summary.failure or (summary.ready == 0 and summary.wanted > 0):
        return ServingPhase.DEGRADED
    if summary.candidate or waiting:
        return ServingPhase.PROGRESSING
    if summary.ready < summary.wanted:
        return ServingPhase.DEGRADED
    return ServingPhase.READY if summary.endpoint.settled or not summary.wanted else ServingPhase.PROGRESSING


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
