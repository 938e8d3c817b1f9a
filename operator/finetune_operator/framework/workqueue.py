"""A work queue of keys in the manner of client-go: each key waits at most once and is worked on at most once.

A key that is added while it is worked on gets another turn afterwards. Failures return with exponential backoff and
jitter. A key may ask for low priority: its next turn comes when no other key has had one for a moment, so
that in a burst what is urgent for each comes before what can wait. The queue starts no thread and reads only the clock
that it is given.
"""

import heapq
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF_START: Final = 0.2
BACKOFF_LIMIT: Final = 120.0
"""Seconds before the first retry; they double with each failure, up to the limit."""
JITTER: Final = 0.2
"""Delays vary by up to this share, so that keys that failed together do not return together."""
QUIET: Final = 0.25
"""Seconds without a turn of any other key after which keys of low priority have theirs."""
PATIENCE: Final = 5.0
"""Seconds that a key of low priority waits at most, however busy the queue is."""


class QueueState(NamedTuple):
    """The queue at one moment. Times are in seconds."""

    waiting: int = 0
    """Keys that are due and wait for a worker."""
    working: int = 0
    """Keys in work."""
    longest_wait: float = 0.0
    """For how long the key that waits longest has been due."""
    longest_unreconciled: float = 0.0
    """How long ago the turn became due that has not succeeded for longest, whether it waits, is in work or fails."""
    standstill: float = 0.0
    """For how long no turn has ended although one was due or in work: a long queue that moves stands at 0."""


@dataclass
class _Entry:
    """What the queue knows of one key."""

    due: float | None = None
    """When its next turn is; None: no turn is planned."""
    low_priority: bool = False
    """Whether all others go before its next turn."""
    owed: float | None = None
    """When the turn became due that was taken and has not succeeded yet; None: the last one has succeeded."""
    working: bool = False
    began: float = 0.0
    """When the work on it began."""
    failures: int = 0


class WorkQueue(Generic[K]):
    """A keyed, delaying, rate limiting queue for any number of threads."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._entries: dict[K, _Entry] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._low_priority: list[tuple[float, int, K]] = []
        self._busy = -QUIET
        """When a key of normal priority last had a turn."""
        self._last_end = clock()
        """When a turn last ended, well or not."""
        self._sequence = 0
        self._changed = threading.Condition()
        self._closed = False

    def add(self, key: K, delay: float = 0.0) -> None:
        """Give the key a turn after ``delay`` seconds; a turn that is planned earlier stays."""
        with self._changed:
            entry = self._entries.setdefault(key, _Entry())
            due = self._clock() + delay
            if entry.due is not None and entry.due <= due:
                return
            entry.due = due
            if not entry.working:
                self._push(due, key)

    def take(self) -> K | None:
        """The next key that is due, to be given back by ``done`` or ``failed``; blocks. None: the queue is closed."""
        with self._changed:
            while not self._closed:
                key, wait = self._next()
                if key is not None:
                    return key
                self._changed.wait(wait)
            return None

    def poll(self) -> K | None:
        """As ``take``, but returns None at once if no key is due."""
        with self._changed:
            return self._next()[0]

    def done(self, key: K, again_after: float | None = None, low_priority: bool = False) -> None:
        """The work on the key succeeded. ``again_after`` plans its next turn, with jitter towards later.

        ``low_priority``: all others go before that turn, whatever else asks for one meanwhile.
        """
        with self._changed:
            entry = self._release(key, low_priority)
            entry.failures, entry.owed = 0, None
            if again_after is not None:
                self._plan(key, entry, again_after * (1 + JITTER * self._jitter()))
            self._forget_idle(key, entry)

    def failed(self, key: K, not_before: float = 0.0) -> float:
        """The work failed: retry with backoff, in ``not_before`` seconds at the earliest. Returns the delay."""
        with self._changed:
            entry = self._release(key)
            backoff = min(BACKOFF_LIMIT, BACKOFF_START * 2.0 ** min(entry.failures, 32))
            entry.failures += 1
            delay = max(not_before, backoff) * (1 + JITTER * self._jitter())
            entry.due = None
            self._plan(key, entry, delay)
            return delay

    def state(self) -> QueueState:
        """What waits, since when, and whether the queue moves."""
        with self._changed:
            now = self._clock()
            entries = self._entries.values()
            waits = [e.due for e in entries if not e.working and e.due is not None and e.due <= now]
            working = [e.began for e in entries if e.working]
            owed = [e.owed for e in entries if e.owed is not None]
            moved = max(self._last_end, min([now, *waits, *working]))
            return QueueState(
                waiting=len(waits),
                working=len(working),
                longest_wait=now - min([now, *waits]),
                longest_unreconciled=now - min([now, *waits, *owed]),
                standstill=now - moved,
            )

    def close(self) -> None:
        """Wake all threads in ``take`` with None; work in hand may finish."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> tuple[K | None, float | None]:
        """A key that is due, or else the seconds until one is."""
        now = self._clock()
        due = self._first(self._heap)
        if due is not None and due <= now:
            self._busy = now
            return self._begin(self._heap), None
        low = self._first(self._low_priority)
        if low is not None:
            low = max(low, min(self._busy + QUIET, low + PATIENCE))
            if low <= now:
                return self._begin(self._low_priority), None
        return None, min((moment - now for moment in (due, low) if moment is not None), default=None)

    def _first(self, heap: list[tuple[float, int, K]]) -> float | None:
        """When the first key of a heap is due; drops outdated entries."""
        while heap:
            due, _, key = heap[0]
            entry = self._entries.get(key)
            if entry is not None and not entry.working and entry.due == due and heap is self._heap_of(entry):
                return due
            heapq.heappop(heap)
        return None

    def _begin(self, heap: list[tuple[float, int, K]]) -> K:
        key = heapq.heappop(heap)[2]
        entry = self._entries[key]
        if entry.owed is None:
            entry.owed = entry.due
        entry.working, entry.began, entry.due, entry.low_priority = True, self._clock(), None, False
        return key

    def _release(self, key: K, low_priority: bool = False) -> _Entry:
        entry = self._entries[key]
        self._last_end = self._clock()
        entry.working, entry.low_priority = False, low_priority
        if entry.due is not None:
            self._push(entry.due, key)
        return entry

    def _plan(self, key: K, entry: _Entry, delay: float) -> None:
        due = self._clock() + delay
        if entry.due is None or due < entry.due:
            entry.due = due
            self._push(due, key)

    def _forget_idle(self, key: K, entry: _Entry) -> None:
        if entry.due is None:
            del self._entries[key]

    def _push(self, due: float, key: K) -> None:
        self._sequence += 1
        heapq.heappush(self._heap_of(self._entries[key]), (due, self._sequence, key))
        self._changed.notify()

    def _heap_of(self, entry: _Entry) -> list[tuple[float, int, K]]:
        return self._low_priority if entry.low_priority else self._heap
