"""What the decisions about a rollout are made from. Where it stands afterwards: ``rollout.py``."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.serving_status import RevisionStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.target import Target


@dataclass(frozen=True)
class RolloutContext:
    """One reconciliation of a rollout."""

    observed: ObservedDeployment
    stable: RevisionStatus | None
    """The revision that serves; None: no revision serves yet."""
    now: datetime


@dataclass(frozen=True)
class CanaryContext(RolloutContext):
    """The same with a verified candidate that gets its share beside what serves."""

    stable: RevisionStatus
    target: Target
    """What makes the candidate's pods."""
    closed: float
    """Seconds until the network can be expected to be open to them."""
