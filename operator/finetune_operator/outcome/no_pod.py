"""A Job that waits for its pod: why its controller cannot create one, and when to look again."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import EVENTS, Object
from finetune_operator.outcome.job import judge

NO_POD_GRACE: Final = timedelta(seconds=8)
"""Age at which a Job without a pod has its events read for the reason."""
FIRST_LOOK_SECONDS: Final = 10.0
"""When a Job that waits for its pod is first looked at again without an event; intervals then grow."""
LAST_LOOK_SECONDS: Final = 120.0
"""The longest interval."""


def creation_events(client: KubeClient, job: Object, pods: Sequence[Object], now: datetime) -> list[Object]:
    """The events of a Job that should have a pod by now and has none: only they show why. Raises ApiError."""
    metadata = job["metadata"]
    if now - parse_timestamp(metadata["creationTimestamp"]) <= NO_POD_GRACE or not judge(job, pods).needs_events:
        return []
    return client.select(EVENTS, metadata["namespace"], fields=f"involvedObject.uid={metadata['uid']}")


def look_after(age: timedelta) -> float:
    """Seconds after which to look again at a Job of this age that waits for its pod."""
    return min(LAST_LOOK_SECONDS, max(FIRST_LOOK_SECONDS, age.total_seconds() / 2))
