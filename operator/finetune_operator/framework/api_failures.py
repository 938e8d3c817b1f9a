"""Since when the API has failed for a resource: what passes within a moment is not worth a status."""

import threading
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.framework.ownership import Key

LASTING: Final = timedelta(seconds=60)
"""How long every attempt must have failed before it is told: conflicts, and restarts of an API server, pass."""


class ApiFailures:
    """The resources for which no attempt has succeeded since one failed; safe for many threads."""

    def __init__(self) -> None:
        self._since: dict[Key, datetime] = {}
        self._lock = threading.Lock()

    def persists(self, key: Key, now: datetime) -> bool:
        """An attempt has failed: whether that goes on for a while."""
        with self._lock:
            return now - self._since.setdefault(key, now) >= LASTING

    def clear(self, key: Key) -> None:
        """An attempt has succeeded, or there is nothing to attempt any more."""
        with self._lock:
            self._since.pop(key, None)
