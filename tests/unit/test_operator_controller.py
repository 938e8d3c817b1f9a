"""Which events give which custom resource a turn, and what the threads survive."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from finetune_api import meta
from finetune_operator.controller import INDEXES, Controller
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.metrics import Headline
from finetune_operator.framework.objects import DEPLOYMENTS, PODS, Object, Resource
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import NextTurn
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS, selector
from finetune_operator.settings import Images, Settings
from tests.support.streams import StreamServer

pytestmark = pytest.mark.unit

UNUSED = cast(Any, None)
SETTINGS = Settings(images=Images(data="d", prepare="p", jobs="j", quantize="q"), profiles={})
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


@pytest.mark.parametrize("written_by_us", [False, True])
def test_followers_hear_of_their_source_even_from_our_own_status_write(written_by_us: bool) -> None:
    """The operator records what it has written itself: the event of it is no news then, but the followers need it."""
    cache = Cache(INDEXES)
    controller = Controller(UNUSED, cache, UNUSED, SETTINGS)
    controller.leading.set()
    follower = found("endpoint", 1, {"source": {"fineTuneJob": {"name": "source"}}})
    controller.seen(ADAPTERDEPLOYMENTS, gone=False, found=follower)
    controller.seen(FINETUNEJOBS, gone=False, found=job(2))
    turns(controller)
    if written_by_us:
        cache.record(FINETUNEJOBS, job(3))
    controller.seen(FINETUNEJOBS, gone=False, found=job(3))
    assert FOLLOWER in turns(controller)


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
        deadline = time.monotonic() + 10
        while controller.resync_delay() > 0.2:
            assert time.monotonic() < deadline, "the resync does not come back"
            time.sleep(0.02)
    finally:
        controller.stop()


class Calm:
    """Reconciles nothing."""

    def reconcile(self, key: Key) -> NextTurn:
        return NextTurn()


def test_a_replica_that_stands_by_knows_everything_and_does_nothing() -> None:
    """Its cache is up to date, so that it can start at once; its queue is empty, so that its metrics mean something."""
    controller = Controller(UNUSED, Cache(INDEXES), UNUSED, SETTINGS)
    controller.seen(FINETUNEJOBS, gone=False, found=job(1) | {"status": {"phase": "Running", "conditions": READY}})
    controller.seen(FINETUNEJOBS, gone=False, found=job(2) | {"status": {"phase": "Running", "conditions": READY}})
    assert turns(controller) == set()
    assert controller.headlines() == {Headline("FineTuneJob", "Running", "Unschedulable"): 1}
