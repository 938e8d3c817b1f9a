"""A verification that a cause outside of the revision has ended, such as a store that does not answer. Pure.

It says nothing about the candidate, whose verification is started again after a pause. The candidate holds its hardware
meanwhile. So the pauses grow, and after the last one it is given back, as any that waits for something outside of it.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from finetune_api.serving_status import RevisionStatus
from finetune_operator.adapterdeployment.context import RolloutContext
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.adapterdeployment.verification import Verification, find_verification, verify_request
from finetune_operator.framework.conditions import timestamp
from finetune_operator.resources.stage_request import StageRequest

PAUSES: Final = (30, 60, 120, 240)
"""Seconds between the end of a verification and the start of the next one. With the three attempts that each Job makes,
a store may be down for ten minutes, as long as a wait for hardware is nothing special."""


@dataclass(frozen=True)
class Try:
    """The newest verification of a candidate, and what it is followed by."""

    candidate: RevisionStatus
    """With the number of this verification."""
    request: StageRequest
    verification: Verification | None
    """None as long as it has no Job."""
    setback: ServerProblem | None = None
    """What ended it, if that is outside of the revision."""
    due_after: float | None = None
    """Seconds until the next one; None: there is none."""

    @property
    def given_up(self) -> ServerProblem | None:
        """Why there is no further one."""
        return self.setback if self.due_after is None else None


def newest_try(context: RolloutContext, target: Target, candidate: RevisionStatus) -> Try:
    """The verification that counts now: the next one, once the pause after the one before is over."""
    observed, now, number = context.observed, context.now, candidate.verification_retries
    request = verify_request(observed, target, context.stable, number)
    found = find_verification(observed, request, now)
    if found is None or found.ended_at is None or (setback := found.setback) is None:
        return Try(candidate, request, found)
    if number >= len(PAUSES):
        said = f"Its verification was tried {number + 1} times. {setback.message}"
        return Try(candidate, request, found, ServerProblem(setback.reason, said))
    due = found.ended_at + timedelta(seconds=PAUSES[number])
    if due <= now:
        return newest_try(context, target, candidate.model_copy(update={"verification_retries": number + 1}))
    said = f"Its verification could not be done, and is tried again at {timestamp(due)}. {setback.message}"
    return Try(candidate, request, found, ServerProblem(setback.reason, said), (due - now).total_seconds())
