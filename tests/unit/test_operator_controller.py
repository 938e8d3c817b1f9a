"""Which events give which custom resource a turn, and what the threads survive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from finetune_api import meta
from finetune_api.artifact_source import MAX_ADAPTERS
from finetune_api.reasons import Reason
from finetune_operator.controller import FIRST_TURNS, INDEXES, Controller
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import PAGE, ApiError, Page, Selection
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.metrics import PhaseAndReason
from finetune_operator.framework.objects import (
    DEPLOYMENTS,
    PODS,
    RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS,
    Object,
    Resource,
)
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reading import MISSING_SECONDS, ServiceAccounts
from finetune_operator.framework.reconcile import NextTurn
from finetune_operator.framework.waiting_room import PACE, WaitingRoom
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS, WAKERS, selector
from finetune_operator.settings import Images, Settings
from tests.support.memory_cluster import MemoryCluster
from tests.support.streams import StreamServer

pytestmark = pytest.mark.unit

UNUSED = cast(Any, None)
SETTINGS = Settings(images=Images(data="d", prepare="p", jobs="j", quantize="q", proxy="x"), profiles={})
READY = [{"type": "Stalled", "reason": "Other"}, {"type": "Ready", "reason": "Unschedulable"}]
FOLLOWER = Key("AdapterDeployment", "team", "endpoint")


def found(name: str, version: int, spec: Object) -> Object:
    return {"metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version)}, "spec": spec}


def job(version: int) -> Object:
    return found("source", version, {"output": {"uri": "s3://bucket/out", "name": "n"}})


def turns(controller: Controller) -> set[Key]:
    """Everything that is due; taken out of the queue."""
    keys = set()
    while (key := controller.queue.poll()) is not None:
        keys.add(key)
        controller.queue.done(key)
    return keys


ADAPTERS = [{"name": f"a{number}", "fineTuneJob": {"name": f"job-{number}"}} for number in range(MAX_ADAPTERS)]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param({"fineTuneJob": {"name": "source"}}, id="its only one"),
        *(
            pytest.param(
                {"adapters": [*ADAPTERS[:number], {"name": "it", "fineTuneJob": {"name": "source"}}]},
                id=f"that of its adapter {number}",
            )
            for number in (0, 1, MAX_ADAPTERS - 1)
        ),
    ],
)
@pytest.mark.parametrize("written_by_us", [False, True])
def test_followers_hear_of_their_source_even_from_our_own_status_write(written_by_us: bool, source: Object) -> None:
    """The operator records what it has written itself: the event of it is no news then, but the followers need it."""
    cache = Cache(INDEXES)
    controller = Controller(UNUSED, cache, UNUSED, SETTINGS)
    controller.leading.set()
    controller.seen(ADAPTERDEPLOYMENTS, gone=False, found=found("endpoint", 1, {"source": source}))
    controller.seen(FINETUNEJOBS, gone=False, found=job(2))
    turns(controller)
    if written_by_us:
        cache.record(FINETUNEJOBS, job(3))
    controller.seen(FINETUNEJOBS, gone=False, found=job(3))
    assert FOLLOWER in turns(controller)


def endpoint(name: str, version: int, state: str, seconds: int, reason: str = "") -> Object:
    """An AdapterDeployment that serves, with a candidate in this state since so many seconds; "": with none."""
    since = timestamp(datetime.now(UTC) - timedelta(seconds=seconds))
    reason = reason or (Reason.ROLLOUT_QUEUED if state == "Waiting" else Reason.CANDIDATE_STARTING)
    candidate = {"state": state, "since": since, "reason": reason}
    status = {"stable": {"revision": "old"}} | ({"candidate": candidate} if state else {})
    return found(name, version, {}) | {"status": status}


@pytest.mark.parametrize(
    ("limit", "state", "reason", "gone", "woken"),
    [
        pytest.param(1, "", "", False, {"oldest"}, id="promoted"),
        pytest.param(1, "Failed", "", False, {"oldest"}, id="failed"),
        pytest.param(1, "Waiting", "Unschedulable", False, {"oldest"}, id="its hardware given back"),
        pytest.param(1, "Verifying", "", True, {"oldest"}, id="deleted"),
        pytest.param(1, "Verifying", "", False, set(), id="still under way"),
        pytest.param(2, "", "", False, {"oldest", "newer"}, id="two places are free"),
        pytest.param(0, "", "", False, set(), id="no limit, no line"),
    ],
)
@pytest.mark.parametrize("written_by_us", [False, True])
def test_when_a_rollout_ends_the_next_in_line_looks_at_once(
    limit: int, state: str, reason: str, gone: bool, woken: set[str], written_by_us: bool
) -> None:
    """Only those for whom there is a place: the line may be long."""
    cache = Cache(INDEXES)
    controller = Controller(UNUSED, cache, UNUSED, SETTINGS.model_copy(update={"max_concurrent_rollouts": limit}))
    controller.leading.set()
    before = [("running", "Starting", 60), ("newest", "Waiting", 7), ("oldest", "Waiting", 9), ("newer", "Waiting", 8)]
    for version, (name, at, seconds) in enumerate(before, 1):
        controller.seen(ADAPTERDEPLOYMENTS, gone=False, found=endpoint(name, version, at, seconds))
    turns(controller)
    now = endpoint("running", 9, state, 0, reason)
    if written_by_us and not gone:
        cache.record(ADAPTERDEPLOYMENTS, now)
    controller.seen(ADAPTERDEPLOYMENTS, gone=gone, found=now)
    assert {key.name for key in turns(controller)} - {"running"} == woken


def pod(labels: dict[str, str]) -> Object:
    metadata = {"name": "pod", "namespace": "team", "uid": "pod", "resourceVersion": "1", "labels": labels}
    return {"metadata": metadata, "status": {}}


@pytest.mark.parametrize(
    ("owner", "turn"),
    [
        ("FineTuneJob", {Key("FineTuneJob", "team", "mine")}),
        ("AdapterDeployment", {Key("AdapterDeployment", "team", "mine")}),
        ("Nonsense", set()),
        ("", set()),
    ],
)
def test_only_kinds_of_ours_become_keys(owner: str, turn: set[Key]) -> None:
    """A tenant may label a pod as it likes. A key of another kind would fail for ever."""
    controller = Controller(UNUSED, Cache(INDEXES), UNUSED, SETTINGS)
    controller.leading.set()
    found = pod({meta.LABEL_MANAGED_BY: meta.MANAGED_BY, meta.LABEL_OWNER_KIND: owner, meta.LABEL_OWNER_NAME: "mine"})
    for gone in (False, True):
        controller.seen(PODS, gone, found)
        assert turns(controller) == turn


def test_an_event_of_a_job_looks_at_no_other_adapterdeployment() -> None:
    """Those that follow it are found by an index."""
    controller = Controller(UNUSED, Cache(INDEXES), UNUSED, SETTINGS)
    controller.leading.set()
    for number, source in enumerate(("source", "other", "source")):
        spec = {"source": {"fineTuneJob": {"name": source}}}
        controller.seen(ADAPTERDEPLOYMENTS, gone=False, found=found(f"endpoint-{number}", number + 1, spec))
    pinned = {"source": {"artifact": {"uri": "s3://a/b"}}}
    controller.seen(ADAPTERDEPLOYMENTS, gone=False, found=found("pinned", 9, pinned))
    turns(controller)
    controller.seen(FINETUNEJOBS, gone=False, found=job(10))
    followers = {Key("AdapterDeployment", "team", f"endpoint-{number}") for number in (0, 2)}
    assert turns(controller) == {Key("FineTuneJob", "team", "source"), *followers}


def test_children_are_selected_by_a_label_of_our_own() -> None:
    """Others write app.kubernetes.io/managed-by: an object that lost it would be invisible for ever."""
    for instance in ("", "blue"):
        assert selector(PODS, instance) == "finetune.dev/owner-kind in (FineTuneJob,AdapterDeployment)"
        assert selector(DEPLOYMENTS, instance) == "finetune.dev/owner-kind in (AdapterDeployment)"


@pytest.mark.parametrize("resource", [FINETUNEJOBS, ADAPTERDEPLOYMENTS])
def test_an_operator_watches_the_custom_resources_of_its_instance(resource: Resource) -> None:
    assert selector(resource, "") == "!finetune.dev/instance"
    assert selector(resource, "blue") == "finetune.dev/instance=blue"


class BrokenCache(Cache):
    """Fails while it is told to."""

    broken = False

    def names(self, resource: Resource) -> list[Key]:
        if self.broken:
            raise RuntimeError("a defect")
        return super().names(resource)


def test_the_resync_survives_any_error_and_tells_how_late_it_is() -> None:
    cache = BrokenCache(INDEXES)
    cache.record(FINETUNEJOBS, job(1))
    settings = SETTINGS.model_copy(update={"resync_seconds": 0.05, "workers": 1})
    controller = Controller(cast(Any, StreamServer()), cache, cast(Any, Calm()), settings)
    controller.start()
    controller.lead()
    cache.broken = True
    try:
        time.sleep(0.5)
        assert controller.resync_delay() > 0.2
        cache.broken = False
        deadline = time.monotonic() + 60
        while controller.resync_delay() > 0.2:
            assert time.monotonic() < deadline, "the resync does not come back"
            time.sleep(0.02)
    finally:
        controller.stop()


class Calm:
    """Reconciles nothing."""

    def hold_contenders(self) -> None:
        pass

    def admit_contenders(self) -> None:
        pass

    def reconcile(self, key: Key) -> NextTurn:
        return NextTurn()


def test_a_replica_that_stands_by_knows_everything_and_does_nothing() -> None:
    """Its cache is up to date, so that it can start at once; its queue is empty, so that its metrics mean something."""
    controller = Controller(UNUSED, Cache(INDEXES), UNUSED, SETTINGS)
    controller.seen(FINETUNEJOBS, gone=False, found=job(1) | {"status": {"phase": "Running", "conditions": READY}})
    controller.seen(FINETUNEJOBS, gone=False, found=job(2) | {"status": {"phase": "Running", "conditions": READY}})
    assert turns(controller) == set()
    assert controller.by_phase() == {PhaseAndReason("FineTuneJob", "Running", "Unschedulable"): 1}


class OneJob(StreamServer):
    """Holds a FineTuneJob and nothing else."""

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        yield from super().pages(selection, limit) if selection.resource == FINETUNEJOBS else [Page([], self.version)]


def test_the_log_says_how_long_reading_and_looking_took(caplog: pytest.LogCaptureFixture) -> None:
    """On a replica that has stood by for days too: that time is in neither."""
    caplog.set_level("INFO")
    server, stands_by = OneJob(), 2.0
    server.put(job(1))
    settings = SETTINGS.model_copy(update={"workers": 1})
    controller = Controller(cast(Any, server), Cache(INDEXES), cast(Any, Calm()), settings)
    controller.start()
    time.sleep(stands_by)
    controller.lead()
    try:
        deadline = time.monotonic() + 60
        while not any(FIRST_TURNS in each for each in caplog.messages):
            assert time.monotonic() < deadline, caplog.messages
            time.sleep(0.02)
    finally:
        controller.stop()
    said = [each.rpartition(" in ") for each in caplog.messages if each.endswith(" s")]
    assert [words for words, _, _ in said] == ["read 1 resources and their children", f"{FIRST_TURNS}: 1 resources"]
    assert all(float(seconds.removesuffix(" s")) < stands_by for _, _, seconds in said)


ACCOUNT: Object = {"metadata": {"name": "runner", "namespace": "team", "uid": "u", "resourceVersion": "7"}}


def waits_in(controller: Controller, *namespaces: str) -> None:
    """A FineTuneJob waits in each, since just now."""
    now = [0.0]
    controller.waiting = WaitingRoom(lambda: now[0])
    for namespace in namespaces:
        controller.waiting.enter(Key(FINETUNEJOBS.kind, namespace, "job"))
    now[0] += PACE


@pytest.mark.parametrize(
    ("resource", "gone", "wakes"),
    [
        (SERVICE_ACCOUNTS, False, True),
        (SERVICE_ACCOUNTS, True, False),
        (RESOURCE_QUOTAS, False, True),
        (RESOURCE_QUOTAS, True, True),
    ],
)
def test_what_may_clear_the_way_wakes_its_namespace_only(resource: Resource, gone: bool, wakes: bool) -> None:
    cache = Cache(INDEXES)
    if gone:
        cache.record(resource, ACCOUNT)
    controller = Controller(UNUSED, cache, UNUSED, SETTINGS)
    waits_in(controller, "team", "other")
    controller.woken(resource, gone=gone, found=ACCOUNT)
    assert turns(controller) == ({Key(FINETUNEJOBS.kind, "team", "job")} if wakes else set())


@dataclass
class Asked(MemoryCluster):
    """Counts what it is asked for."""

    gets: int = 0

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.gets += 1
        return super().get(resource, namespace, name)


@dataclass
class Refusing(StreamServer):
    """Refuses lists of some kinds."""

    refuses: tuple[Resource, ...] = ()

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        if selection.resource in self.refuses:
            raise ApiError(403, "Forbidden", "not allowed")
        return super().pages(selection, limit)


class Hour(threading.Event):
    """One in which the waits take no time. It is set when they add up to an hour."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0.0)
        if sum(self.waited) >= 3600:
            self.set()
        return self.is_set()


def test_a_line_that_may_not_be_read_is_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """It was a request and a warning twice a second, for as long as the role lacked the right."""
    controller = Controller(
        cast(Any, Refusing(refuses=(ADAPTERDEPLOYMENTS,))), Cache(INDEXES), cast(Any, Calm()), SETTINGS
    )
    controller._stopping = hour = Hour()
    controller._read_line()
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == len(hour.waited) < 70
    assert hour.waited[0] <= 1, "an error that passes at once holds nobody up"
    assert all("AdapterDeployments" in each and "helm upgrade" in each for each in told)


@pytest.mark.parametrize("refused", [(), (RESOURCE_QUOTAS,), WAKERS])
def test_only_what_the_roles_allow_is_watched(refused: tuple[Resource, ...]) -> None:
    """A role without them, as of an earlier chart, costs promptness and nothing else."""
    controller = Controller(cast(Any, Refusing(refuses=refused)), Cache(INDEXES), UNUSED, SETTINGS)
    controller.start()
    controller.stop()
    watched = set(controller.sync_ages())
    assert {each.plural for each in WAKERS if each not in refused} == watched & {each.plural for each in WAKERS}


def test_a_missing_account_is_asked_for_once_in_a_while_and_seen_when_it_appears() -> None:
    now = 0.0
    client, cache = Asked(), Cache(INDEXES)
    accounts = ServiceAccounts(client, cache, lambda: now)
    assert not any(accounts.exists("team", "runner") for _ in range(400))
    assert client.gets == 1
    now += MISSING_SECONDS
    assert not accounts.exists("team", "runner")
    assert client.gets == 2
    Controller(cast(Any, client), cache, UNUSED, SETTINGS).woken(SERVICE_ACCOUNTS, gone=False, found=ACCOUNT)
    assert accounts.exists("team", "runner")
    assert client.gets == 2, "the stream has told"
