"""Keeps the cache up to date with one kind of object: LIST, then WATCH from there, for ever.

Everything that may be missed is found by the next LIST, which decides alone what exists (``Cache.record``, ``sweep``).
There is one at the start, then from time to time; at once when the API server no longer knows the version from which a
watch is to go on (410), because what was deleted meanwhile is in no event; and when its versions have become lower,
because etcd was restored from a backup.

The LIST is read page by page, and one kind at a time, so that no more than a page is in memory as it comes.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from finetune_operator.framework.cache import ROUTES, Cache
from finetune_operator.framework.client import ApiError, Selection, StreamClient
from finetune_operator.framework.objects import Object, Resource

logger = logging.getLogger(__name__)

PAGE: Final = 250
"""Objects per page: whole pods are large as Python objects."""
WATCH_SECONDS: Final = 300
"""After so long a watch ends, and the next one goes on where it ended."""
SHORT_SECONDS: Final = 1.0
"""Watches begin no more often than this, also if something on the way closes each at once."""
RETRY_SECONDS: Final = (0.2, 30.0)
"""Before the first retry, and at most; doubled with each failure in a row."""

FIRST_LIST_SECONDS: Final = 30.0
"""For so long the first LIST is tried again, if what is in its way passes. CRDs that were installed a moment ago answer
429 "storage is (re)initializing"."""

ABSENT_SECONDS: Final = 10.0
"""After which to look again for a kind that the API server lacks."""

Changed = Callable[[Resource, Object], None]
Seen = Callable[[Resource, bool, Object], None]


class Informer:
    """One stream. ``first_list`` once, then ``run`` in a thread of its own.

    Args:
        client: reads from the API server.
        cache: is kept up to date.
        selection: what is streamed.
        changed: is called for what a LIST has changed in the cache, deletions too.
        seen: is called for each event, with whether the object is gone; it records the event in the cache.
        turn: is held during a LIST; informers share one.
        absent_seconds: after which to look again for a kind that the API server lacks.
    """

    def __init__(  # noqa: PLR0913 - what differs between the streams of one controller
        self,
        client: StreamClient,
        cache: Cache,
        selection: Selection,
        *,
        changed: Changed,
        seen: Seen,
        turn: threading.Lock,
        absent_seconds: float = ABSENT_SECONDS,
    ) -> None:
        self.selection = selection
        self._client = client
        self._cache = cache
        self._changed = changed
        self._seen = seen
        self._turn = turn
        self._absent_seconds = absent_seconds
        self._optional = selection.resource in ROUTES
        self.refused = False
        """Whether the API server has said, since the last LIST, that this may not be read in its namespace: the roles
        there are gone, as they are when the namespace was deleted."""
        self._version = 0
        """From which a watch goes on; 0: from a LIST."""
        self._list_due = 0.0
        self._heard = time.monotonic()

    def age(self) -> float:
        """Seconds since the API server last said something about this kind: an object, or that nothing changed."""
        return time.monotonic() - self._heard

    def first_list(self, again_after: float) -> None:
        """``list``, tried again for a while. Raises ApiError."""
        deadline = time.monotonic() + FIRST_LIST_SECONDS
        while True:
            try:
                return self.list(again_after)
            except ApiError as error:
                if self._is_absent(error):
                    return None
                self.refused = self.refused or self._is_refused(error)
                wait = error.retry_after or 1.0
                if not error.passes or time.monotonic() + wait > deadline:
                    raise
                logger.info("%s: the first list failed, retrying: %s", self._name, error)
                time.sleep(wait)

    def list(self, again_after: float) -> None:
        """Read everything, and plan to do so again after some seconds. Raises ApiError."""
        with self._turn:
            self._list(again_after)

    def _list(self, again_after: float) -> None:
        resource, namespace = self.selection.resource, self.selection.namespace
        self._version = version = 0
        asked = self._cache.moment()
        for page in self._client.pages(self.selection, PAGE):
            self._heard = time.monotonic()
            version = version or page.version
            for found in page.items:
                if self._cache.record(resource, found, asked):
                    self._changed(resource, found)
        for gone in self._cache.sweep(resource, namespace, asked):
            self._changed(resource, gone)
        if self._optional:
            self._cache.record_kind(resource, exists=True)
        self.refused = False
        self._version = version
        self._list_due = time.monotonic() + again_after

    def run(self, stopping: threading.Event, list_seconds: float) -> None:
        """Follow the stream until ``stopping``; LIST again about every ``list_seconds``. Survives any error."""
        failures = 0
        while not stopping.is_set():
            began = time.monotonic()
            try:
                self.step(stopping, list_seconds)
                failures = 0
                stopping.wait(max(0.0, began + SHORT_SECONDS - time.monotonic()))
                continue
            except ApiError as error:
                if self._is_absent(error):
                    stopping.wait(self._absent_seconds)
                    continue
                if error.expired:
                    self._version = 0
                if not self.refused:
                    logger.info("%s: the watch broke, resuming: %s", self._name, error)
                self.refused = self.refused or self._is_refused(error)
            except Exception:  # a defect, or an answer that is not the API's: this thread is the only one that watches
                self._version = 0
                logger.exception("%s: the watch failed, listing everything again", self._name)
            first, most = RETRY_SECONDS
            stopping.wait(min(most, first * 2.0 ** min(failures, 16)) * random.uniform(1, 1.2))  # noqa: S311 - jitter
            failures += 1

    def step(self, stopping: threading.Event, list_seconds: float) -> None:
        """LIST if it is time to, then one watch, until it ends. Raises ApiError."""
        now = time.monotonic()
        if not self._version or now >= self._list_due or self._is_restored():
            self.list(list_seconds * random.uniform(0.9, 1.1))  # noqa: S311 - kinds spread by themselves
        seconds = max(1, round(min(WATCH_SECONDS, self._list_due - time.monotonic())))
        for change in self._client.watch(self.selection, self._version, seconds):
            self._heard = time.monotonic()
            version = int(change.object["metadata"]["resourceVersion"])
            if version < self._version:
                self._version = 0
                return
            if change.type != "BOOKMARK":
                self._seen(self.selection.resource, change.type == "DELETED", change.object)
            self._version = version
            if stopping.is_set():
                return

    def _is_absent(self, error: ApiError) -> bool:
        """Whether the API server lacks an optional kind. Then there is none of it: its objects went with its CRD."""
        if not self._optional or error.status != 404:
            return False
        resource, namespace = self.selection.resource, self.selection.namespace
        if not self._cache.lacks(resource):
            seconds = self._absent_seconds
            logger.warning("%s: the API server lacks this kind; looking for it every %.0f s", self._name, seconds)
        self._cache.record_kind(resource, exists=False)
        self._heard, self._version = time.monotonic(), 0
        for gone in self._cache.sweep(resource, namespace, self._cache.moment()):
            self._changed(resource, gone)
        return True

    def _is_refused(self, error: ApiError) -> bool:
        """Whether the roles of its namespace do not let the operator read this kind. Of all namespaces it is no more
        than an error: then nothing can be read."""
        return error.status == 403 and self.selection.namespace is not None

    def _is_restored(self) -> bool:
        """Whether the API server's versions have become lower: a watch would then wait in silence, perhaps for ever."""
        page = next(iter(self._client.pages(self.selection, 1)))
        self._heard = time.monotonic()
        return page.version < self._version

    @property
    def _name(self) -> str:
        where = f" in {self.selection.namespace}" if self.selection.namespace else ""
        return f"{self.selection.resource.plural}{where}"
