"""What a plan can do without and did not get: what is said of it, and when it is tried again.

What the API server refuses is said at once, and tried again after minutes. An error that passes, such as a server that
restarts, is tried again after a second, then ever more rarely; it is said if it lasts.
"""

import threading
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from finetune_operator.framework.actions import Action
from finetune_operator.framework.api_failures import LASTING
from finetune_operator.framework.ownership import Key

RETRY: Final = timedelta(minutes=5)
"""Until then the same refused actions are not tried again, whatever events arrive. What was said stays the same as
well, so that a webhook with a new word in every answer does not have the status written again and again."""
FIRST_RETRY: Final = timedelta(seconds=1)
"""The same for an error that passes; each time twice as long, up to ``RETRY``."""


class Problem(NamedTuple):
    """Why actions failed."""

    said: str
    """The API server's words."""
    passes: bool = False
    """Whether the error is one that passes."""
    soon: bool = False
    """Whether they are tried again after a second rather than after minutes."""


@dataclass(frozen=True)
class _Failure:
    actions: tuple[Action, ...]
    said: str
    """Empty as long as it may pass."""
    since: datetime
    """When the first of the tries failed that have all failed."""
    tried: datetime
    wait: timedelta

    def left(self, now: datetime) -> float:
        """Seconds until the next try."""
        return max(0.0, (self.tried + self.wait - now).total_seconds())


class Unmet:
    """The optional actions that failed, one list for each word of a resource. Safe for any number of threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[Key, str], _Failure] = {}
        self._lock = threading.Lock()

    def held(self, key: Key, word: str, actions: tuple[Action, ...], now: datetime) -> str | None:
        """What is said of these very actions while they are not tried again; None: they are to be tried."""
        with self._lock:
            known = self._known.get((key, word))
        return known.said if known is not None and known.actions == actions and known.left(now) else None

    def record(self, key: Key, word: str, actions: tuple[Action, ...], problem: Problem, now: datetime) -> str:
        """Record that the actions failed; returns what is to be said."""
        with self._lock:
            known = self._known.get((key, word))
            since = known.since if known is not None else now
            lasts = now - since >= LASTING or (known is not None and known.said != "")
            wait = known.wait * 2 if known is not None else FIRST_RETRY
            told = problem.said if lasts or not problem.passes else ""
            self._known[key, word] = _Failure(actions, told, since, now, min(RETRY, wait) if problem.soon else RETRY)
        return told

    def due_after(self, key: Key, now: datetime) -> float | None:
        """Seconds until something of the resource is tried again; None if nothing is unmet."""
        with self._lock:
            return min((known.left(now) for (owner, _), known in self._known.items() if owner == key), default=None)

    def clear(self, key: Key, word: str) -> None:
        """Record that they succeeded or are not needed."""
        with self._lock:
            self._known.pop((key, word), None)

    def keep(self, key: Key, words: Container[str]) -> None:
        """Forget what is not among the words: the plan does not ask for it any more, and nobody would try it again."""
        with self._lock:
            for known in [each for each in self._known if each[0] == key and each[1] not in words]:
                del self._known[known]

    def forget(self, key: Key) -> None:
        """Record that the resource is gone."""
        with self._lock:
            for known in [each for each in self._known if each[0] == key]:
                del self._known[known]
