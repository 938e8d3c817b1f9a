"""Who leads: a Lease in memory, replicas with clocks of their own, and any pause at any place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.framework.client import ApiError
from finetune_operator.framework.lease import DURATION, RENEW_DEADLINE, TIMEOUT, Elector, LeaseName, LeaseTerm
from finetune_operator.framework.objects import Object, Resource
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

T = TypeVar("T")

ME, OTHER = "me", "other"


def held(by: str | None, renewed: int = 0, seconds: int = 12) -> Object:
    return {"holderIdentity": by, "renewTime": str(renewed), "leaseDurationSeconds": seconds}


@pytest.mark.parametrize(
    ("seen", "free"),
    [
        ([(0, held(None))], True),
        ([(0, {})], True),
        ([(0, held(ME))], True),
        ([(0, held(OTHER))], False),
        ([(0, held(OTHER)), (11.9, held(OTHER))], False),
        ([(0, held(OTHER)), (12, held(OTHER))], True),
        ([(0, held(OTHER)), (11, held(OTHER, 1)), (22, held(OTHER, 1))], False),
        ([(0, held(OTHER)), (11, held(OTHER, 1)), (23, held(OTHER, 1))], True),
        ([(0, held(OTHER, seconds=60)), (59, held(OTHER, seconds=60))], False),
        ([(0, held(OTHER)), (2, held(None, 1, 1))], True),
    ],
    ids=[
        "nobody's",
        "empty",
        "ours",
        "just seen",
        "not yet",
        "its time is up",
        "renewed meanwhile",
        "renewed, and then no more",
        "the holder says for how long",
        "released",
    ],
)
def test_when_a_lease_may_be_taken(seen: list[tuple[float, Object]], free: bool) -> None:
    """By this replica's clock since it saw the last change: what the Lease says of the time is another machine's."""
    term = LeaseTerm(ME)
    assert [term.free(spec, 1000 + moment) for moment, spec in seen][-1] is free


def test_a_term_counts_from_before_the_request_and_ends_once() -> None:
    term = LeaseTerm(ME)
    assert (term.leads(0), term.lost(0)) == (False, False)
    term.taken(began=10)
    assert term.leads(10 + RENEW_DEADLINE - 0.1)
    assert not term.leads(10 + RENEW_DEADLINE)
    assert term.lost(10 + RENEW_DEADLINE)


@dataclass
class Clock:
    """The world's time, which a call to the API server lets pass."""

    now: float = 0.0


@dataclass
class Server:
    """The Lease as the API server keeps it. A call takes time before and after it is carried out."""

    clock: Clock
    lease: Object | None = None
    version: int = 0
    delays: list[tuple[float, float]] = field(default_factory=list)
    """Of the next calls; then none."""
    away: bool = False

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._answer(lambda: copy.deepcopy(self.lease))

    def create(self, resource: Resource, body: Object) -> Object:
        return self._answer(lambda: self._store(None, body))

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._answer(lambda: self._store(body["metadata"]["resourceVersion"], body))

    def _answer(self, call: Callable[[], T]) -> T:
        before, after = self.delays.pop() if self.delays else (0.0, 0.0)
        self.clock.now += before
        if self.away:
            raise ApiError(0, "Timeout", "no answer")
        answer = call()
        self.clock.now += after
        return answer

    def _store(self, version: str | None, body: Object) -> Object:
        known = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if known != version:
            raise ApiError(409, "Conflict", "it has changed")
        self.version += 1
        before = self.lease["spec"] if self.lease else {}
        spec = {key: value for key, value in (before | body["spec"]).items() if value is not None}
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": spec}
        return copy.deepcopy(self.lease)


def replica(server: Server, name: str, skew: float = 0.0) -> Elector:
    where: Any = LeaseName("system", "operator", name)
    client: Any = server
    return Elector(client, where, clock=lambda: server.clock.now + skew)


def test_one_that_another_has_replaced_stops_as_soon_as_it_can_know() -> None:
    """In a virtual machine that was paused, no time has passed by its own clock: it would go on for seconds."""
    clock = Clock()
    server = Server(clock)
    paused, other = Clock(), replica(server, "other")
    where: Any = LeaseName("system", "operator", "first")
    first = Elector(cast(Any, server), where, clock=lambda: paused.now)
    first.attempt()
    other.attempt()
    clock.now += DURATION
    other.attempt()
    assert (first.leads(), other.leads()) == (True, True)
    first.attempt()
    assert (first.leads(), other.leads()) == (False, True)


def test_one_whose_lease_somebody_has_annotated_goes_on() -> None:
    server = Server(Clock())
    first = replica(server, "first")
    first.attempt()
    assert server.lease is not None
    server.lease["metadata"]["resourceVersion"] = "by-hand"
    server.clock.now += RENEW_DEADLINE - 1
    first.attempt()
    server.clock.now += 2
    assert first.leads()


def test_one_that_is_stopped_after_a_renewal_that_failed_just_ends() -> None:
    server = Server(Clock())
    first = replica(server, "first")
    first.attempt()
    server.away = True
    first.attempt()
    assert first.leads()
    first.stop(release=True)
    assert not first.leads()


CALL = st.tuples(st.floats(0, sum(TIMEOUT) / 2), st.floats(0, sum(TIMEOUT) / 2))
STEP = st.tuples(st.integers(0, 2), st.floats(0, 15), st.lists(CALL, max_size=2), st.booleans())


@given(st.lists(STEP, max_size=60))
def test_two_never_lead_at_a_time(steps: list[tuple[int, float, list[tuple[float, float]], bool]]) -> None:
    """Whoever is stopped for how long and whichever call takes how long, fails, or loses its answer."""
    clock = Clock()
    server = Server(clock)
    replicas = [replica(server, f"replica {number}", 1e6 * number) for number in range(3)]
    for number, pause, delays, away in steps:
        clock.now += pause
        server.delays, server.away = list(delays), away
        replicas[number].attempt()
        assert sum(each.leads() for each in replicas) <= 1


def test_another_one_takes_over_and_the_old_one_never_comes_back() -> None:
    server = Server(Clock())
    old, new = replica(server, "old"), replica(server, "new")
    for _ in range(5):
        old.attempt()
        new.attempt()
        server.clock.now += 2
    assert (old.leads(), new.leads()) == (True, False)
    frozen = server.clock.now
    while not new.leads():
        server.clock.now += 2
        new.attempt()
    assert server.clock.now - frozen <= DURATION + 2
    with pytest.raises(ApiError) as refused:
        old.check()
    assert_says(str(refused.value), "not written: old does not hold the Lease")
    old.attempt()
    server.clock.now += 1000
    old.attempt()
    assert not old.leads(), "a term ends once"
    assert server.lease is not None
    assert server.lease["spec"]["holderIdentity"] == "new"
    assert server.lease["spec"]["leaseTransitions"] == 1


def test_a_holder_that_finds_another_name_stops_at_once() -> None:
    """Somebody has given the Lease away by hand."""
    server = Server(Clock())
    old = replica(server, "old")
    old.attempt()
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "somebody"
    server.lease["metadata"]["resourceVersion"] = "by hand"
    old.attempt()
    old.attempt()
    assert not old.leads()


@pytest.mark.parametrize("release", [True, False])
def test_a_released_lease_is_free_at_once(release: bool) -> None:
    """Only if nothing writes any more; else it runs out."""
    server = Server(Clock())
    old, new = replica(server, "old"), replica(server, "new")
    old.attempt()
    new.attempt()
    old.stop(release=release)
    assert not old.leads()
    new.attempt()
    assert new.leads() is release
