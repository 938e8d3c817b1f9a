"""Where an AdapterDeployment stands; its status and the cleanup follow from it."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.adapterdeployment import RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.endpoint import EndpointState
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.blockers import Blocker


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

    @property
    def failed(self) -> RevisionStatus | None:
        """The candidate, if it has failed."""
        return self.candidate if self.candidate and self.candidate.state is RevisionState.FAILED else None
