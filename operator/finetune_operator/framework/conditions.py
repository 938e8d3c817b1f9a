"""Conditions as ``metav1.Condition`` and kstatus define them: a transition time changes only with the status.

https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from finetune_api.base import Condition
from finetune_api.reasons import Reason, with_remedy


class ConditionType(StrEnum):
    """Condition types; their names are part of the API."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"
    FAILED = "Failed"
    FINISHED = "Finished"
    SUSPENDED = "Suspended"
    DISCOURAGED = "Discouraged"
    DEGRADED = "Degraded"
    ROLLED_BACK = "RolledBack"
    SERVICE_GAP = "ServiceGap"
    ROUTE_ACCEPTED = "RouteAccepted"


@dataclass(frozen=True)
class Finding:
    """What a condition is to say."""

    type: ConditionType
    status: bool
    reason: Reason
    message: str = ""
    """What happened and why; the reason's remedy is appended. Empty where the reason is enough."""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds, as the API server writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The reverse; raises ValueError for anything that is not RFC 3339."""
    return datetime.fromisoformat(text)


def merge_conditions(
    current: Sequence[Condition], findings: Iterable[Finding], kind: str, generation: int, now: datetime
) -> list[Condition]:
    """The findings as conditions, with the remedies for the kind appended.

    A condition whose status stays the same keeps its transition time; conditions without a finding are dropped.
    """
    before = {condition.type: condition for condition in current}
    merged = []
    for finding in findings:
        status = str(finding.status)
        known = before.get(finding.type)
        moved = known is None or known.status != status
        merged.append(
            Condition(
                type=finding.type,
                status=status,
                reason=finding.reason,
                message=with_remedy(finding.reason, finding.message, kind) if finding.message else "",
                last_transition_time=timestamp(now) if known is None or moved else known.last_transition_time,
                observed_generation=generation,
            )
        )
    return merged
