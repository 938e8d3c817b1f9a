"""The running operator: informers fill the cache and the queue, worker threads reconcile, a resync gives turns to all.

Each informer, each worker and the resync has a thread of its own, which survives any error.
"""

import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from finetune_operator.adapterdeployment.followed import SOURCE_INDEXES, FollowedJob
from finetune_operator.adapterdeployment.route_claims import HOST_INDEXES
from finetune_operator.adapterdeployment.turns import Line, contender_of, frees_a_place, line_of, next_in_line
from finetune_operator.finetunejob.output import output_of
from finetune_operator.framework.cache import CHILDREN, Cache, Indexes
from finetune_operator.framework.client import ApiError, Selection, StreamClient
from finetune_operator.framework.informer import ABSENT_SECONDS, Informer
from finetune_operator.framework.metrics import RECONCILE_SECONDS, Degraded, PhaseAndReason, degraded, phase_and_reason
from finetune_operator.framework.objects import SERVICE_ACCOUNTS, Object, Resource
from finetune_operator.framework.ownership import Key, owner_key
from finetune_operator.framework.reconcile import Reconciler
from finetune_operator.framework.waiting_room import WaitingRoom
from finetune_operator.framework.workqueue import WorkQueue
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, CUSTOM_RESOURCES, FINETUNEJOBS, WAKERS, selector
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

INDEXES: Final[Indexes] = {
    FINETUNEJOBS.kind: (output_of, phase_and_reason(FINETUNEJOBS.kind)),
    ADAPTERDEPLOYMENTS.kind: (
        *SOURCE_INDEXES,
        line_of,
        phase_and_reason(ADAPTERDEPLOYMENTS.kind),
        degraded(ADAPTERDEPLOYMENTS.kind),
        *HOST_INDEXES,
    ),
}
"""How custom resources are found: by what they publish and what they serve, in line, by what they say, and by the
hosts that they ask for."""
_KINDS: Final = frozenset(each.kind for each in CUSTOM_RESOURCES)
FIRST_TURNS: Final = "all resources that existed at the start have been reconciled"
"""The log's words for the end of a cold start, or of a take-over."""
FORMER_SECONDS: Final = 600.0
"""After which to look again for a kind that the API server lacks, and of which only what is left would be deleted."""
STOP_SECONDS: Final = 20.0
"""Running reconciliations have so long to finish: less than the pod's terminationGracePeriodSeconds."""
LOOK_SECONDS: Final = 0.5
"""How often to see whether something that waits is due."""
LINE_SECONDS: Final = 60.0
"""How often, at most, to try again to read the line where that fails. It begins with ``LOOK_SECONDS``, and doubles."""
RESYNC_SPREAD: Final = 0.5
"""A resync spreads the turns of all resources over this share of its period."""
_LEAST, _MOST = 0.9, 1.1
"""Between these times the period, so that operators of one cluster do not resync together."""


def connections(settings: Settings) -> int:
    """Most connections to the API server at the same time: one for each worker and stream, and one for others."""
    streams = len((*CUSTOM_RESOURCES, *CHILDREN, *settings.serving.watched_routes, *WAKERS)) * max(
        1, len(settings.namespaces)
    )
    return settings.workers + streams + 1


class Controller:
    """Cache, queue and threads. ``start`` once, ``lead`` once, then ``stop``."""

    def __init__(self, client: StreamClient, cache: Cache, reconciler: Reconciler, settings: Settings) -> None:
        self._cache = cache
        self._reconciler = reconciler
        self._settings = settings
        self._client = client
        self._stopping = threading.Event()
        self._resynced = time.monotonic()
        self._workers: list[threading.Thread] = []
        turn = self._listing = threading.Lock()
        self._informers = [
            Informer(
                client,
                cache,
                selection,
                changed=self.changed,
                seen=self.seen,
                turn=turn,
                absent_seconds=ABSENT_SECONDS if resource in settings.serving.routes else FORMER_SECONDS,
            )
            for resource in (*CUSTOM_RESOURCES, *CHILDREN, *settings.serving.watched_routes)
            for selection in self._selections(resource)
        ]
        self._wakers = [
            Informer(client, cache, selection, changed=self.cleared, seen=self.woken, turn=turn)
            for resource in WAKERS
            for selection in self._selections(resource)
        ]
        self._first_turns = _FirstTurns()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.waiting: WaitingRoom[Key] = WaitingRoom()
        self.leading = threading.Event()
        """Set by ``lead``. Before, the cache is kept up to date and the queue stays empty."""

    def start(self) -> None:
        """Read everything once and keep up to date; raises ApiError if a LIST fails. Nothing is written yet.

        A namespace that may not be read at all, because it was deleted and its roles with it, costs the others nothing.
        """
        period, began = self._settings.resync_seconds, time.monotonic()
        _read_all(self._informers, period)
        self._wakers = [informer for informer in self._wakers if _may_list(informer, period)]
        count = sum(len(self._cache.names(resource)) for resource in CUSTOM_RESOURCES)
        logger.info("read %d resources and their children in %.1f s", count, time.monotonic() - began)
        for informer in (*self._informers, *self._wakers):
            threading.Thread(target=informer.run, args=(self._stopping, period), daemon=True).start()

    def lead(self) -> None:
        """Start to work: everything gets a turn. Whoever waits in line for a rollout has it once the line is read: the
        cache may lag behind what another replica has just written."""
        if self._settings.max_concurrent_rollouts is not None:
            self._reconciler.hold_contenders()
            threading.Thread(target=self._read_line, daemon=True).start()
        self.leading.set()
        self._first_turns.expect(key for resource in CUSTOM_RESOURCES for key in self._cache.names(resource))
        self._resynced = time.monotonic()
        self._add_all(within=0)
        targets = [self._work] * self._settings.workers + [self._resync, self._look_again]
        self._workers = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._workers:
            thread.start()

    def stop(self, timeout: float = STOP_SECONDS) -> bool:
        """Let running reconciliations finish, for ``timeout`` seconds at most; returns whether all have.

        Informers write nothing and just end.
        """
        self._stopping.set()
        self.queue.close()
        deadline = time.monotonic() + timeout
        for thread in self._workers:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._workers)

    def seen(self, resource: Resource, gone: bool, found: Object) -> None:
        """Record what a watch stream showed, and give the custom resource a turn if that is news."""
        news = self._cache.forget(resource, found) if gone else self._cache.record(resource, found)
        if news:
            self._add(resource, found)
        # News or not: the cache knows of a status that the operator wrote itself, those who wait for it do not.
        self._wake_others(resource, found, gone)

    def changed(self, resource: Resource, found: Object) -> None:
        """Give the custom resource a turn because of what a LIST has changed in the cache."""
        self._add(resource, found)
        self._wake_others(resource, found)

    def cleared(self, resource: Resource, found: Object, gone: bool = False) -> None:
        """Look again at what waits in the namespace of an object of ``WAKERS``."""
        if gone and resource == SERVICE_ACCOUNTS:
            return
        self.waiting.wake(lambda key: key.namespace == found["metadata"]["namespace"])
        self._look()

    def woken(self, resource: Resource, gone: bool, found: Object) -> None:
        """Record what a stream of ``WAKERS`` showed."""
        if self._cache.forget(resource, found) if gone else self._cache.record(resource, found):
            self.cleared(resource, found, gone)

    def sync_ages(self) -> dict[str, float]:
        """By kind, as plural: seconds since the API server last said something about it."""
        ages: dict[str, float] = {}
        informers = (*self._informers, *self._wakers)
        readable = {informer.selection.resource for informer in informers if not informer.refused}
        for informer in informers:
            resource = informer.selection.resource
            if not informer.refused or resource not in readable:  # refused in some namespaces: no restart helps these
                ages[resource.plural] = max(ages.get(resource.plural, 0.0), informer.age())
        return ages

    def resync_delay(self) -> float:
        """Seconds by which the next resync is late; on a replica that stands by there is none."""
        if not self.leading.is_set():
            return 0.0
        return max(0.0, time.monotonic() - self._resynced - _MOST * self._settings.resync_seconds)

    def by_phase(self) -> dict[PhaseAndReason, int]:
        """How many custom resources are in which phase, and why."""
        return self._cache.sizes(PhaseAndReason)

    def degraded(self) -> int:
        """How many AdapterDeployments have pods that do not answer as evaluated any more."""
        return sum(self._cache.sizes(Degraded).values())

    def _selections(self, resource: Resource) -> list[Selection]:
        namespaces: list[str | None] = [*self._settings.namespaces] or [None]
        return [Selection(resource, each, selector(resource, self._settings.instance)) for each in namespaces]

    def _add(self, resource: Resource, found: Object) -> None:
        key = _key(resource, found)
        if key is not None and self.leading.is_set():  # before, nothing is due: ``lead`` gives everything a turn
            self.queue.add(key)

    def _wake_others(self, resource: Resource, found: Object, gone: bool = False) -> None:
        """Give a turn to the AdapterDeployments that wait for what this custom resource has just reached."""
        if not self.leading.is_set():
            return
        if resource == FINETUNEJOBS:
            self._wake_followers(found)
        elif resource == ADAPTERDEPLOYMENTS and (gone or frees_a_place(found)):
            self._wake_next_in_line()

    def _wake_followers(self, job: Object) -> None:
        """Those whose source is this FineTuneJob."""
        metadata = job["metadata"]
        for follower in self._cache.indexed_names(FollowedJob(metadata["namespace"], metadata["name"])):
            self.queue.add(follower)

    def _wake_next_in_line(self) -> None:
        """Those whose turn it is to be rolled out. Nobody else looks, however long the line is."""
        limit = self._settings.max_concurrent_rollouts
        if limit is None:
            return
        found = map(contender_of, self._cache.indexed(Line.ROLLOUTS))
        for each in next_in_line([contender for contender in found if contender], limit, datetime.now(UTC)):
            self.queue.add(Key(ADAPTERDEPLOYMENTS.kind, each.namespace, each.name))

    def _read_line(self) -> None:
        """Read who is in line, and who is rolled out, as it is since this replica leads: nobody else writes any more.
        It writes nothing itself, and ``stop`` does not wait for it."""
        for selection in self._selections(ADAPTERDEPLOYMENTS):
            informer = Informer(
                self._client, self._cache, selection, changed=self.changed, seen=self.seen, turn=self._listing
            )
            wait = LOOK_SECONDS
            while not self._stopping.is_set() and not self._has_read(informer):
                self._stopping.wait(wait)
                wait = min(LINE_SECONDS, 2 * wait)
        self._reconciler.admit_contenders()

    def _has_read(self, informer: Informer) -> bool:
        """Whether a LIST has been read, or its namespace is gone."""
        try:
            informer.first_list(self._settings.resync_seconds)
        except ApiError as error:
            if not informer.refused:
                remedy = ". The chart's role allows it: restore that with helm upgrade" if error.status == 403 else ""
                logger.warning(
                    "nobody in line is rolled out until AdapterDeployments can be listed: %s%s", error, remedy
                )
            return informer.refused
        except Exception:  # a defect must not end the thread: nobody else lets the line go on
            logger.exception("reading the line failed")
            return False
        return True

    def _work(self) -> None:
        while (key := self.queue.take()) is not None:
            began = time.monotonic()
            result = self._turn(key)
            RECONCILE_SECONDS.labels(key.kind, result).observe(time.monotonic() - began)
            self._first_turns.had(key)
            self._look()

    def _turn(self, key: Key) -> str:
        """Reconcile a key, give it back to the queue, and return the result as the metrics name it."""
        try:
            turn = self._reconciler.reconcile(key)
            self.queue.done(key, turn.after, turn.low_priority)
            if turn.blocked:
                self.waiting.enter(key)
            else:
                self.waiting.leave(key)
        except ApiError as error:
            self.waiting.failed(key)
            delay = self.queue.failed(key, error.retry_after or 0.0)
            logger.warning("%s: %s; retrying in %.1f s", "/".join(key), error, delay)
            return "api_error"
        except Exception:  # a defect must not end the thread: the key is retried, other keys are not affected
            self.waiting.failed(key)
            self.queue.failed(key)
            logger.exception("%s: reconciliation failed", "/".join(key))
            return "defect"
        return "ok"

    def _look_again(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        """Give a turn to a resource that waits, if one is due."""
        key = self.waiting.next()
        if key is not None:
            self.queue.add(key)

    def _resync(self) -> None:
        """Give every resource a turn periodically, for what no event tells. Informers LIST by themselves."""
        period = self._settings.resync_seconds
        while not self._stopping.wait(period * random.uniform(_LEAST, _MOST)):  # noqa: S311 - jitter
            try:
                self._add_all(within=period * RESYNC_SPREAD)
                self.waiting.wake(lambda _: True)
                self._resynced = time.monotonic()
            except Exception:  # a defect must not end the thread; the probe tells how old the last resync is
                logger.exception("resync failed")

    def _add_all(self, within: float) -> None:
        for resource in CUSTOM_RESOURCES:
            for key in self._cache.names(resource):
                if key not in self.waiting:
                    self.queue.add(key, random.uniform(0, within))  # noqa: S311 - jitter


class _FirstTurns:
    """Tells in the log when every resource has had a turn that was there when the operator began to lead."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = 0.0
        self._count = 0
        self._missing: set[Key] = set()

    def expect(self, keys: Iterable[Key]) -> None:
        """What is there now; the time counts from here."""
        self._began = time.monotonic()
        self._missing = set(keys)
        self._count = len(self._missing)

    def had(self, key: Key) -> None:
        """A turn is over, with success or not."""
        if not self._missing:
            return
        with self._lock:
            self._missing.discard(key)
            if not self._missing:
                logger.info("%s: %d resources in %.1f s", FIRST_TURNS, self._count, time.monotonic() - self._began)


def _read_all(informers: Sequence[Informer], period: float) -> None:
    """The first LIST of each. Raises ApiError, but where a namespace refuses all kinds, and another one does not."""
    refusals: defaultdict[str | None, list[ApiError]] = defaultdict(list)
    for informer in informers:
        try:
            informer.first_list(period)
        except ApiError as error:
            if not informer.refused:
                raise
            refusals[informer.selection.namespace].append(error)
    asked = Counter(informer.selection.namespace for informer in informers)
    for namespace, errors in refusals.items():
        if len(errors) < asked[namespace] or len(refusals) == len(asked):
            raise errors[0]
        logger.warning(
            "namespace %s of watchNamespaces cannot be read, so nothing in it is handled until its Role and RoleBinding"
            " are there: %s. If it was deleted, remove it from the chart's values",
            namespace,
            errors[0],
        )


def _may_list(informer: Informer, period: float) -> bool:
    """Whether the roles let the operator list a kind of ``WAKERS``: an earlier chart's may not. Raises ApiError."""
    try:
        informer.first_list(period)
    except ApiError as error:
        if error.status != 403:
            raise
        kind = informer.selection.resource.kind
        logger.warning("%s cannot be watched, so resources that wait for one are checked less often: %s", kind, error)
        return False
    return True


def _key(resource: Resource, found: Object) -> Key | None:
    """The custom resource to reconcile for an object: itself, or its owner. None for what names no kind of ours."""
    if resource in CUSTOM_RESOURCES:
        return Key(resource.kind, found["metadata"]["namespace"], found["metadata"]["name"])
    owner = owner_key(found)
    return owner if owner and owner.kind in _KINDS else None
