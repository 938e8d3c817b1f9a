"""Which of several replicas works: the one that holds a Lease, in the way of client-go's leader election.

The holder renews the Lease every ``RETRY`` seconds. The others watch it by their own clocks: one that has not changed
for as long as its holder promised is free. A holder that could not renew in time has ``RENEW_DEADLINE`` seconds from
when it last began to, which is less: it has stopped writing before another one starts, and ends its process, because
what its threads still believe may be outdated.

A process that was stopped and goes on (a paused VM, SIGSTOP, a node out of memory) does not know that time has passed.
Therefore ``check``, which the client asks right before each write, reads the clock. What remains is a pause between
that and the network, and a request that was under way: it may arrive late, once. It does no harm, because names follow
from content and status writes are conditional (docs/decisions/0020-one-replica-holds-a-lease.md).
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from finetune_operator.framework.client import ApiError, KubeClient
from finetune_operator.framework.objects import LEASES, Object

logger = logging.getLogger(__name__)

DURATION: Final = 12.0
"""Seconds for which the holder promises to come back; a new one starts that long after the last sign of the old."""
RENEW_DEADLINE: Final = 8.0
"""Seconds after which a holder that cannot renew stops."""
RETRY: Final = 2.0
"""Seconds between attempts to get or renew the Lease, with a fifth of jitter."""
TIMEOUT: Final = (2.0, 3.0)
"""Seconds to connect and to wait for the answer: an attempt that hangs leaves time for another one."""


@dataclass(frozen=True)
class LeaseName:
    """Where the Lease is, and who asks for it."""

    namespace: str
    name: str
    identity: str
    """Unique for each process: one that restarts under its old name is another one."""


class LeaseTerm:
    """What a replica knows of the Lease, and what it may do: no I/O, and times are seconds of one clock."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._seen: Object = {}
        self._seen_at = 0.0
        self._valid_until = float("-inf")
        self._had = False

    def leads(self, now: float) -> bool:
        """Whether this replica may write."""
        return now < self._valid_until

    def lost(self, now: float) -> bool:
        """Whether it was the holder and is no longer: it must not begin again."""
        return self._had and not self.leads(now)

    def free(self, spec: Object, now: float) -> bool:
        """Whether a Lease as it was just read may be taken: nobody holds it, this replica does, or its time is up."""
        if spec != self._seen:
            self._seen, self._seen_at = spec, now
        holder = spec.get("holderIdentity")
        lasts = float(spec.get("leaseDurationSeconds") or DURATION)
        return not holder or holder == self._identity or now >= self._seen_at + lasts

    def taken(self, began: float) -> None:
        """The API server has accepted the attempt that began then."""
        self._had, self._valid_until = True, began + RENEW_DEADLINE

    def given_up(self) -> None:
        """No write from now on."""
        self._valid_until = float("-inf")


def lease_spec(before: Object, identity: str, now: datetime) -> Object:
    """The Lease's spec once this replica holds it; transitions count how often the holder changed."""
    same = before.get("holderIdentity") == identity
    moment = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": int(DURATION),
        "acquireTime": before.get("acquireTime") if same else moment,
        "renewTime": moment,
        "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if same or not before else 1),
    }


class Elector:
    """Gets and keeps the Lease, on a thread of its own. Its client must give up sooner than ``RENEW_DEADLINE``."""

    def __init__(self, client: KubeClient, where: LeaseName, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._where = where
        self._clock = clock
        self._term = LeaseTerm(where.identity)
        self._held: Object = {}
        """The Lease as this replica last wrote it."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, won: Callable[[], None], lost: Callable[[], None]) -> None:
        """Try until ``stop``; ``won`` is called once when this replica may work, ``lost`` when it must end."""
        self._thread = threading.Thread(target=self._run, args=(won, lost), name="lease", daemon=True)
        self._thread.start()

    def leads(self) -> bool:
        """Whether this replica may write at this moment."""
        return self._term.leads(self._clock())

    def check(self) -> None:
        """Raises ApiError unless this replica may write at this moment."""
        if not self.leads():
            raise ApiError(0, "LeaseLost", f"not written: {self._where.identity} does not hold the Lease")

    def stop(self, *, release: bool) -> None:
        """Stop renewing. ``release``: nothing writes any more, so that another replica may start at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(sum(TIMEOUT))
        held = self.leads()
        self._term.given_up()
        if not (held and release and self._held):  # after a renewal that failed, it is not known, and runs out
            return
        spec = self._held["spec"] | {"holderIdentity": None, "leaseDurationSeconds": 1}
        try:
            self._patch(spec)
        except ApiError as error:
            logger.warning(
                "cannot release the Lease %s, which expires in %.0f s: %s", self._where.name, DURATION, error
            )

    def attempt(self) -> None:
        """Get or renew the Lease if possible. A term that ran out is not renewed."""
        began = self._clock()
        if self._term.lost(began):
            return
        # After a conflict, somebody else has written it since it was read: perhaps who holds it by now.
        if self._tried(began) and not self._term.lost(self._clock()):
            self._tried(began)

    def _tried(self, began: float) -> bool:
        """Try once; returns whether the Lease has to be read anew to know who holds it."""
        try:
            if self._renew_or_take():
                self._term.taken(began)
            else:
                self._term.given_up()
        except ApiError as error:
            self._held = {}
            level = logging.WARNING if self._term.leads(began) else logging.INFO
            logger.log(level, "Lease %s: %s", self._where.name, error)
            return error.conflict
        return False

    def _run(self, won: Callable[[], None], lost: Callable[[], None]) -> None:
        try:
            self._hold(won)
        except Exception:  # whatever it is, this process must not stay without knowing whether it leads
            logger.exception("Lease %s", self._where.name)
        if not self._stopping.is_set():
            lost()

    def _hold(self, won: Callable[[], None]) -> None:
        """Until ``stop``, or until the Lease is lost."""
        logger.info(
            "%s is trying to acquire the Lease %s/%s", self._where.identity, self._where.namespace, self._where.name
        )
        leads = False
        while not self._stopping.is_set():
            self.attempt()
            if not leads and self.leads():
                leads = True
                logger.info("%s holds the Lease and starts working", self._where.identity)
                won()
            if self._term.lost(self._clock()):
                logger.critical("%s lost the Lease and exits", self._where.identity)
                return
            self._stopping.wait(RETRY * random.uniform(1.0, 1.2))  # noqa: S311 - jitter

    def _renew_or_take(self) -> bool:
        """Whether this replica holds the Lease now. Raises ApiError."""
        found = self._held or self._client.get(LEASES, self._where.namespace, self._where.name)
        if found is None:
            self._held = self._client.create(LEASES, self._body(self._next_spec({})))
            return True
        spec = found.get("spec") or {}
        if not self._term.free(spec, self._clock()):
            return False
        self._held = found
        self._patch(self._next_spec(spec))
        return True

    def _next_spec(self, before: Object) -> Object:
        return lease_spec(before, self._where.identity, datetime.now(UTC))

    def _patch(self, spec: Object) -> None:
        """Write the Lease if nobody else has since it was read."""
        version = {"resourceVersion": self._held["metadata"]["resourceVersion"]}
        self._held = self._client.patch(
            LEASES, self._where.namespace, self._where.name, {"metadata": version, "spec": spec}
        )

    def _body(self, spec: Object) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self._where.namespace, "name": self._where.name},
            "spec": spec,
        }
