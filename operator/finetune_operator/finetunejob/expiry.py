"""When the objects of ended runs are deleted: Jobs with their pods, inputs, Services. Pure.

The status is the record: a stage that it lists as done, and a run that it lists as ended, never start again because
their Jobs are gone. These objects only serve people who read logs, for a while.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.job_status import FineTuneJobStatus
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Resource


@dataclass(frozen=True)
class ExpiredObject:
    """An object of an ended run that need not be kept any longer."""

    resource: Resource
    name: str
    uid: str
    run: str


def has_expired(status: FineTuneJobStatus, run: str, keep: timedelta, now: datetime) -> bool:
    """Whether a run ended longer ago than ``keep``, or is no longer in the status.

    A run that has just begun is not in the status yet either: the plan knows which one that is.
    """
    if status.run is None:
        return False
    known = next((each for each in (status.run, *status.runs) if each.id == run), None)
    if known is None:
        return True
    return known.finished_at is not None and parse_timestamp(known.finished_at) + keep <= now
