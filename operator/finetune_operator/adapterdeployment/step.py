"""What one reconciliation does about a rollout."""

from dataclasses import dataclass

from finetune_api.serving_status import RevisionStatus
from finetune_operator.framework.actions import Action, Event


@dataclass(frozen=True)
class RolloutStep:
    """Where the rollout stands after this reconciliation."""

    stable: RevisionStatus | None
    candidate: RevisionStatus | None = None
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    blocked: bool = False
    """As in Plan."""
    takes_back: bool = False
    """Whether clients leave a revision that fails: its actions go before all others then."""
    fallen: RevisionStatus | None = None
    """The revision from which the traffic is taken back, and why."""
    left: RevisionStatus | None = None
    """The one that served until this pass, with what its successor's verification found of it; None: as in the
    status."""
