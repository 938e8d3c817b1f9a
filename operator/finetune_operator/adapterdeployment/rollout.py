"""Where an AdapterDeployment stands; its status and the cleanup follow from it."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus, RevisionSummary
from finetune_operator.adapterdeployment.endpoint import EndpointState
from finetune_operator.adapterdeployment.gap import has_begun
from finetune_operator.adapterdeployment.health import (
    LONG_WAIT_SECONDS,
    NEEDS_ROOM,
    NEEDS_SOMEBODY,
    disproved,
    serving_problem,
    withdrawn,
)
from finetune_operator.adapterdeployment.history import Current, history, was_rolled_back
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.adapterdeployment.turns import ACTIVE, is_queued
from finetune_operator.blockers import Blocker
from finetune_operator.framework.conditions import ConditionType, parse_timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, Object


def withdrawal(observed: ObservedDeployment, revision: RevisionStatus) -> str:
    """What is known of the withdrawal of a revision's artifact; empty: nothing. Its pods were told when they fetched
    it, and the verification of the next one has looked again."""
    return revision.withdrawn or withdrawn(observed.server_pods(revision.revision))


@dataclass(frozen=True)
class Rollout:
    """One reconciliation of an AdapterDeployment."""

    observed: ObservedDeployment
    target: Target | Blocker
    """What should serve, or what stands in the way."""
    stable: RevisionStatus | None
    """The revision that clients are sent to, after this reconciliation."""
    candidate: RevisionStatus | None
    """The revision that is being started, or has failed."""
    endpoint: EndpointState
    now: datetime
    previous: RevisionStatus | None = None
    """The revision that served before, and whose pods stay."""
    fallen: RevisionStatus | None = None
    """The revision from which this reconciliation takes the traffic back."""

    @property
    def failed(self) -> RevisionStatus | None:
        """The candidate, if it has failed."""
        return self.candidate if self.candidate and self.candidate.state is RevisionState.FAILED else None

    @property
    def stuck(self) -> RevisionStatus | None:
        """The candidate, if it waits for something that somebody should look after."""
        candidate = self.candidate
        if candidate is None:
            return None
        if candidate.state is RevisionState.WAITING:
            return candidate if candidate.reason != Reason.ROLLOUT_QUEUED else None
        waited = (self.now - parse_timestamp(candidate.since)).total_seconds()
        return candidate if candidate.reason in NEEDS_SOMEBODY and waited >= LONG_WAIT_SECONDS else None

    @property
    def in_gap(self) -> bool:
        """Whether the pods of the stable revision are stopped for the candidate, or about to be, and clients miss
        them."""
        return self.stable is not None and self.wanted > 0 and has_begun(self.candidate, self.now)

    @property
    def gap_lasts(self) -> bool:
        """The same, and afterwards until clients get answers again."""
        before = self.observed.resource.status.conditions
        lasted = any(each.type == ConditionType.SERVICE_GAP and each.status == "True" for each in before)
        missed = self.stable is not None and self.wanted > 0 and not self.endpoint.answers
        return self.in_gap or (lasted and missed)

    @property
    def trouble(self) -> ServerProblem:
        """Why pods of the stable revision are not ready."""
        if self.stable is None:
            return ServerProblem(Reason.SERVER_UNAVAILABLE, "No revision serves yet.")
        deployment = self.observed.child(DEPLOYMENTS, self.stable.deployment)
        return serving_problem(deployment, self.observed.server_pods(self.stable.revision, lost=True))

    @property
    def canary_answers(self) -> bool:
        """Whether clients get answers from a canary, whatever becomes of what serves."""
        canary = self.candidate.canary if self.candidate else None
        return canary is not None and canary.started_at is not None and bool(self.endpoint.elsewhere)

    @property
    def disproved(self) -> list[ServerProblem]:
        """Why pods of the stable revision fail their self-check."""
        return disproved(self.observed.server_pods(self.stable.revision)) if self.stable else []

    @cached_property
    def history(self) -> list[RevisionSummary]:
        """The revisions so far, and what became of them."""
        known = list(self.observed.records.values())
        known += [self.target.record] if isinstance(self.target, Target) else []
        images = {record.revision: record.serving.runtime.image for record in known}
        blocked = self.target.message if isinstance(self.target, Blocker) else ""
        current = Current(self.stable, self.candidate, self.previous, self.fallen, blocked, images)
        return history(self.observed.resource.status.revisions, current, self.now)

    @property
    def rolled_back(self) -> bool:
        """Whether the candidate is one from which the traffic was taken back, and is not about to be tried again."""
        candidate = self.candidate
        return candidate is not None and was_rolled_back(self.history, candidate) and not is_queued(candidate)

    @property
    def lacks_room(self) -> bool:
        """Whether pods of this resource find no room, so that those that only stay have to go."""
        starting = self.candidate is not None and self.candidate.state in ACTIVE
        reasons = [self.candidate.reason] if self.candidate and starting else []
        reasons += [self.target.reason] if isinstance(self.target, Blocker) and self.observed.refusal else []
        reasons += [self.trouble.reason] if self.stable and self.ready < self.wanted else []
        return any(reason in NEEDS_ROOM for reason in reasons)

    @property
    def withdrawn(self) -> str:
        """What is known of the withdrawal of what serves; empty: nothing."""
        return withdrawal(self.observed, self.stable) if self.stable else ""

    @property
    def blocker(self) -> Blocker | None:
        """Why there is no target, or only an earlier one."""
        return self.target if isinstance(self.target, Blocker) else self.target.source_blocker

    @property
    def wanted(self) -> int:
        """Pods that the spec asks for."""
        return self.observed.resource.spec.replicas

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
        deployment = self.observed.child(DEPLOYMENTS, self.stable.deployment) if self.stable else None
        return (deployment or {}).get("status") or {}
