"""For how long API calls have failed for a resource: short failures are not reported in its status."""

import threading
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.framework.ownership import Key

LASTING: Final = timedelta(seconds=60)
"""How long every attempt must have failed before it is reported: conflicts and API server restarts pass."""


class ApiFailures:
    """The resources for which no attempt has succeeded since one failed. Safe for any number of threads."""

    def __init__(self) -> None:
        self._since: dict[Key, datetime] = {}
        self._lock = threading.Lock()

    def persists(self, key: Key, now: datetime) -> bool:
        """Record that an attempt failed; True if attempts have failed for a while."""
        with self._lock:
            return now - self._since.setdefault(key, now) >= LASTING

    def clear(self, key: Key) -> None:
        """Record that an attempt succeeded, or that the resource is gone."""
        with self._lock:
            self._since.pop(key, None)
