"""Where keys wait whose last turn found something in the way: a quota, a missing ServiceAccount, an object in the way.

Nobody may tell when the way is clear, so each is looked at again: ever more rarely, and one after the other. Looks that
find the way still blocked are ``PACE`` seconds apart, however many keys wait: 400 jobs behind one quota cost the API
server as little as ten. A look that finds the way clear lets the next one follow at once. Keys that have waited for
fewer looks come first, so a crowd that has waited for long does not hold up who has just come.

A key stays here during its look. Whoever gives it a turn reports how that ended: ``enter`` (still blocked), ``leave``
(clear) or ``failed``. The room starts no thread and reads only the clock that it is given.
"""

import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

WAIT_START: Final = 10.0
WAIT_LIMIT: Final = 600.0
"""Seconds until the second look; they double with each look, up to the limit."""
JITTER: Final = 0.2
"""Waits vary by up to this share, towards longer ones."""
PACE: Final = 1.0
"""Seconds between two looks, after one that found the way still blocked."""
LONGEST_LOOK: Final = 60.0
"""Seconds after which a look counts as over that nobody reported on."""


@dataclass
class _Guest:
    """One key that waits."""

    looks: int
    """How often the way was found blocked."""
    due: float


class WaitingRoom(Generic[K]):
    """Keys that wait, for any number of threads."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._guests: dict[K, _Guest] = {}
        self._looking: K | None = None
        self._open_at = clock()
        """When the next look may begin."""

    def __contains__(self, key: K) -> bool:
        """Whether the key waits here."""
        with self._lock:
            return key in self._guests

    def enter(self, key: K) -> float:
        """A look at the key has found the way blocked. Returns the seconds until it is due again."""
        with self._lock:
            known = self._guests.get(key)
            looks = known.looks if known else 0
            wait = min(WAIT_LIMIT, WAIT_START * 2.0 ** min(looks, 32)) * (1 + JITTER * self._jitter())
            now = self._clock()
            self._guests[key] = _Guest(looks + 1, now + wait)
            if self._looking in (None, key):
                self._pause()
            return wait

    def leave(self, key: K) -> None:
        """Nothing is in the key's way, or the key is gone: the next look may follow at once."""
        with self._lock:
            self._guests.pop(key, None)
            if self._looking == key:
                self._looking, self._open_at = None, self._clock()

    def failed(self, key: K) -> None:
        """The look did not find out. Somebody else tries again soon."""
        with self._lock:
            self._guests.pop(key, None)
            if self._looking == key:
                self._pause()

    def wake(self, chosen: Callable[[K], bool]) -> None:
        """Something has changed for these keys: they are due now, each when it is its turn."""
        with self._lock:
            now = self._clock()
            for key, guest in self._guests.items():
                if guest.due > now and chosen(key):
                    guest.due = now

    def next(self) -> K | None:
        """The key to look at now, if it is time for a look and a key is due."""
        with self._lock:
            now = self._clock()
            if now < self._open_at:
                return None
            due = ((guest.looks, guest.due, key) for key, guest in self._guests.items() if guest.due <= now)
            first = min(due, key=lambda each: each[:2], default=None)
            if first is None:
                return None
            self._looking, self._open_at = first[2], now + LONGEST_LOOK
            return first[2]

    def _pause(self) -> None:
        self._looking, self._open_at = None, self._clock() + PACE
