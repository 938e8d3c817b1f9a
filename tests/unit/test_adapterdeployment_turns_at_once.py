"""Two endpoints whose passes overlap: no more of them are rolled out at once than the platform allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.serving_status import RevisionState
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.turns import Line
from finetune_operator.controller import INDEXES
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import Object, Resource
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import CONTENDING_SECONDS, NextTurn, Reconciler
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.support.played_pods import BETTER
from tests.support.reconciled import Reconciled
from tests.support.serving import ServingCluster
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

RUNTIME = SETTINGS.runtimes["tgi-cpu"].model_copy(update={"image": "images/tgi-cpu:2"})
UPGRADED = SETTINGS.model_copy(
    update={"runtimes": SETTINGS.runtimes | {"tgi-cpu": RUNTIME}, "max_concurrent_rollouts": 1}
)
QUEUED, STARTING = RevisionState.WAITING, RevisionState.STARTING


class Endpoints:
    """Endpoints of one operator, by their namespaces, with one cache; and the client that writes into each."""

    def __init__(self, *namespaces: str) -> None:
        self.members: Mapping[str, Reconciled] = {each: Reconciled(_at_rest(each)) for each in namespaces}
        self.now: datetime = max(each.cluster.now for each in self.members.values())
        self.writing: Callable[[], None] = lambda: None
        """What happens while the next status is being written."""
        self._cache, self._version = Cache(INDEXES), 0
        kind = replace(adapter_deployment_kind(self, self._cache, UPGRADED), observe=self._observe)
        self._reconciler = Reconciler(self, self._cache, {meta.ADAPTERDEPLOYMENT: kind}, clock=lambda: self.now)
        for each in self.members.values():
            each.cluster.settings = UPGRADED
            self._seen(each.cluster)

    def turn(self, namespace: str, seconds: float = 0) -> NextTurn:
        """A pass, so many seconds later."""
        self.now += timedelta(seconds=seconds)
        return self._reconciler.reconcile(Key(meta.ADAPTERDEPLOYMENT, namespace, "demo"))

    def change(self, namespace: str) -> None:
        """A person asks for another artifact, and goes first."""
        cluster = self.members[namespace].cluster
        cluster.spec, cluster.generation = pinned(BETTER), 2
        self._seen(cluster)

    def states(self) -> list[RevisionState | None]:
        found = (each.cluster.status.candidate for each in self.members.values())
        return [each.state if each else None for each in found]

    def _observe(self, raw: Object, now: datetime) -> ObservedDeployment:
        cluster = self.members[raw["metadata"]["namespace"]].cluster
        line = self._cache.indexed(Line.ROLLOUTS)
        cluster.now, cluster.others = now, [each for each in line if each["metadata"]["uid"] != cluster.uid]
        return cluster.observe()

    def _seen(self, cluster: ServingCluster) -> Object:
        """What the API server has, in the cache."""
        self._version += 1
        raw = cluster.raw() | {"kind": meta.ADAPTERDEPLOYMENT}
        raw["metadata"] |= {"resourceVersion": str(self._version)}
        self._cache.record(ADAPTERDEPLOYMENTS, raw)
        return raw

    # The KubeClient.

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self.members[namespace].get(resource, namespace, name)

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        return []

    def create(self, resource: Resource, body: Object) -> Object:
        return self.members[body["metadata"]["namespace"]].create(resource, body)

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        return self.members[body["metadata"]["namespace"]].apply(resource, body, field_manager)

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self.members[namespace].patch(resource, namespace, name, body)

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        meanwhile, self.writing = self.writing, lambda: None
        meanwhile()
        self.members[namespace].patch_status(resource, namespace, name, body)
        return self._seen(self.members[namespace].cluster)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self.members[namespace].delete(resource, namespace, name, uid)


def _at_rest(namespace: str) -> ServingCluster:
    cluster = ServingCluster(namespace=namespace, uid=f"uid-of-{namespace}")
    cluster.settle()
    return cluster


def test_a_start_that_is_being_written_counts_as_one() -> None:
    """On a slow API server, one that goes first looks before the other's start can be seen, and would start too."""
    both, looks = Endpoints("a", "b"), list[NextTurn]()
    both.turn("a")
    assert both.states() == [QUEUED, None]

    def meanwhile() -> None:
        both.change("b")
        both.turn("b")
        assert both.states() == [QUEUED, QUEUED], "its place in line is recorded at once"
        looks.append(both.turn("b", 5))

    both.writing = meanwhile
    both.turn("a", 2)
    assert both.states() == [STARTING, QUEUED]
    assert [each.after for each in looks] == [CONTENDING_SECONDS]
    both.turn("b", CONTENDING_SECONDS)
    assert both.states() == [STARTING, QUEUED], "it sees the start of the other one"


@pytest.mark.parametrize("error", [ApiError(500, "InternalError", "no"), RuntimeError("a defect")])
def test_a_pass_that_fails_holds_up_nobody(error: Exception) -> None:
    both = Endpoints("a", "b")
    for namespace in ("a", "b"):
        both.turn(namespace)

    def fails() -> Any:
        raise error

    both.writing = fails
    with pytest.raises(type(error)):
        both.turn("a", 2)
    for namespace in ("a", "b"):
        assert both.turn(namespace, 2).after != CONTENDING_SECONDS
    assert both.states() == [STARTING, QUEUED]


def test_a_clock_that_is_set_back_holds_up_nobody() -> None:
    """Or another replica's, which takes over, and whose clock is behind."""
    one = Endpoints("a")
    one.turn("a")
    one.turn("a", -3600)
    assert one.states() == [STARTING]
