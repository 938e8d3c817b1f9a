"""What runs leave in the cluster: Jobs with their pods, inputs, Services. It goes once nobody looks at it. Pure.

The status is the record: a stage that is booked there, and a run that has ended there, never start again because their
Jobs are gone. So these objects only serve people who read logs, and for a while.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Resource


@dataclass(frozen=True)
class ExpiredObject:
    """An object of a run that is over."""

    resource: Resource
    name: str
    uid: str
    run: str


def has_expired(status: FineTuneJobStatus, run: str, keep: timedelta, now: datetime) -> bool:
    """Whether a run ended as long ago as its objects are kept, or was forgotten by the status among newer ones.

    A run that has begun just now is not in the status yet either: the plan knows it.
    """
    if status.run is None:
        return False
    known = next((each for each in (status.run, *status.runs) if each.id == run), None)
    if known is None:
        return True
    return known.finished_at is not None and parse_timestamp(known.finished_at) + keep <= now
