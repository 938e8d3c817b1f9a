"""The running operator: watch events fill the cache and the queue, worker threads reconcile, a resync finds the rest.

Kopf calls ``seen`` from its event loop, which must not block: everything that blocks runs in the threads.
"""

import logging
import random
import threading
import time
from collections.abc import Iterable
from typing import Final

from finetune_api import meta
from finetune_operator.framework.cache import CHILDREN, Cache
from finetune_operator.framework.client import ApiError, KubeClient
from finetune_operator.framework.objects import Object, Resource
from finetune_operator.framework.ownership import Key, owner_key
from finetune_operator.framework.reconcile import Reconciler
from finetune_operator.framework.workqueue import WorkQueue
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, CUSTOM_RESOURCES, FINETUNEJOBS
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

CHILD_SELECTOR: Final = f"{meta.LABEL_MANAGED_BY}={meta.MANAGED_BY}"
RESYNC_SPREAD: Final = 0.5
"""A resync spreads the turns of all resources over this share of its period."""


class Controller:
    """Cache, queue and threads. ``start`` once, then ``seen`` for each event, then ``stop``."""

    def __init__(self, client: KubeClient, cache: Cache, reconciler: Reconciler, settings: Settings) -> None:
        self._client = client
        self._cache = cache
        self._reconciler = reconciler
        self._settings = settings
        self._stopping = threading.Event()
        self._last_event = time.monotonic()
        self._threads: list[threading.Thread] = []
        self.queue: WorkQueue[Key] = WorkQueue()

    def start(self) -> None:
        """Read everything once, then start the threads; raises ApiError if the first LIST fails."""
        self._seed()
        self._add_all(within=0)
        targets = [self._work] * self._settings.workers + [self._resync]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 30) -> None:
        """Let running reconciliations finish, for ``timeout`` seconds at most."""
        self._stopping.set()
        self.queue.close()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def seen(self, resource: Resource, gone: bool, found: Object) -> None:
        """Record what a watch stream showed, and give the custom resource a turn if that is news."""
        self._last_event = time.monotonic()
        news = self._cache.forget(resource, found) if gone else self._cache.record(resource, found)
        key = _key(resource, found)
        if news and key is not None:
            self.queue.add(key)
        # News or not: the cache knows of a status that the operator wrote itself, the followers do not.
        if resource == FINETUNEJOBS:
            self._wake_followers(found["metadata"]["namespace"], found["metadata"]["name"])

    def event_age(self) -> float:
        """Seconds since the last watch event."""
        return time.monotonic() - self._last_event

    def _wake_followers(self, namespace: str, name: str) -> None:
        """Give a turn to the AdapterDeployments whose source is this FineTuneJob."""
        for follower in self._cache.all(ADAPTERDEPLOYMENTS):
            source = follower["spec"].get("source", {}).get("fineTuneJob", {}).get("name")
            if source == name and follower["metadata"]["namespace"] == namespace:
                self.queue.add(Key(ADAPTERDEPLOYMENTS.kind, namespace, follower["metadata"]["name"]))

    def _work(self) -> None:
        while (key := self.queue.take()) is not None:
            try:
                self.queue.done(key, *self._reconciler.reconcile(key))
            except ApiError as error:
                delay = self.queue.failed(key, error.retry_after or 0.0)
                logger.warning("%s: %s; retrying in %.1f s", "/".join(key), error, delay)
            except Exception:  # a defect must not end the thread: the key is retried, other keys are not affected
                self.queue.failed(key)
                logger.exception("%s: reconciliation failed", "/".join(key))

    def _resync(self) -> None:
        """LIST everything periodically: finds what the streams missed, and gives every resource a turn."""
        period = self._settings.resync_seconds
        while not self._stopping.wait(period * random.uniform(0.9, 1.1)):  # noqa: S311 - jitter
            try:
                self._seed()
                self._add_all(within=period * RESYNC_SPREAD)
            except ApiError as error:
                logger.warning("resync failed: %s", error)

    def _seed(self) -> None:
        for resource in CUSTOM_RESOURCES:
            self._list(resource, "")
        for resource in CHILDREN:
            self._list(resource, CHILD_SELECTOR)

    def _list(self, resource: Resource, labels: str) -> None:
        before = self._cache.versions(resource)
        namespaces: Iterable[str | None] = self._settings.namespaces or [None]
        listed = [found for namespace in namespaces for found in self._client.select(resource, namespace, labels)]
        self._cache.replace(resource, before, listed)

    def _add_all(self, within: float) -> None:
        for resource in CUSTOM_RESOURCES:
            for found in self._cache.all(resource):
                key = _key(resource, found)
                if key is not None:
                    self.queue.add(key, random.uniform(0, within))  # noqa: S311 - jitter


def _key(resource: Resource, found: Object) -> Key | None:
    """The custom resource to reconcile for an object: itself, or its owner."""
    if resource in CUSTOM_RESOURCES:
        return Key(resource.kind, found["metadata"]["namespace"], found["metadata"]["name"])
    return owner_key(found)
