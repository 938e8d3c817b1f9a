"""What a plan can do without and did not get: what was said, and when it is tried again."""

import threading
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.framework.actions import Action
from finetune_operator.framework.ownership import Key

RETRY: Final = timedelta(minutes=5)
"""Until then the same actions are not tried again, whatever events arrive. What was said stays the same as well, so
that a webhook with a new word in every answer does not have the status written again and again."""


class Unmet:
    """The optional actions that failed, one list for each word of a resource. Safe for any number of threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[Key, str], tuple[tuple[Action, ...], str, datetime]] = {}
        self._lock = threading.Lock()

    def said(self, key: Key, word: str, actions: tuple[Action, ...], now: datetime) -> str:
        """What was said of these very actions a short while ago; empty if they are to be tried."""
        with self._lock:
            tried, said, since = self._known.get((key, word), ((), "", now))
        return said if tried == actions and now - since < RETRY else ""

    def record(self, key: Key, word: str, actions: tuple[Action, ...], said: str, now: datetime) -> None:
        """Record that the actions failed."""
        with self._lock:
            self._known[key, word] = (actions, said, now)

    def clear(self, key: Key, word: str) -> None:
        """Record that they succeeded or are not needed."""
        with self._lock:
            self._known.pop((key, word), None)

    def forget(self, key: Key) -> None:
        """Record that the resource is gone."""
        with self._lock:
            for known in [each for each in self._known if each[0] == key]:
                del self._known[known]
