"""What is read of an AdapterDeployment: from the cache, and only what is its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from finetune_api import meta
from finetune_api.base import ObjectMeta
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.controller import INDEXES
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, WATCHED_OWNERS
from finetune_operator.resources.deployment import deployment_name, server_labels
from tests.support.memory_cluster import MemoryCluster
from tests.support.played_pods import GOOD, server_pod
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

METADATA = {"name": "demo", "namespace": "team", "uid": "uid-of-demo", "resourceVersion": "1", "generation": 1}
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OWNER = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(METADATA))
CHILDREN = (DEPLOYMENTS, SERVICES, NETWORK_POLICIES, CONFIG_MAPS)


@dataclass
class AskedCluster(MemoryCluster):
    """Knows what it was asked for."""

    asked: list[Resource] = field(default_factory=list)

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.asked.append(resource)
        return super().get(resource, namespace, name)

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        self.asked.append(resource)
        return super().select(resource, namespace, labels, fields)


def observe(cache: Cache) -> tuple[ObservedDeployment, list[Resource]]:
    """The AdapterDeployment as the operator sees it, and what the API was asked for."""
    cluster, raw = AskedCluster(now=NOW), {"metadata": METADATA, "spec": pinned(GOOD)}
    for name in {runtime.service_account_name for runtime in SETTINGS.runtimes.values()}:
        cluster.create(SERVICE_ACCOUNTS, {"metadata": {"name": name, "namespace": "team"}})
    seen = adapter_deployment_kind(cluster, cache, SETTINGS).observe(raw, cluster.now)
    assert isinstance(seen, ObservedDeployment)
    return seen, cluster.asked


def stored(owner: Owner, name: str) -> Object:
    return {"metadata": owner.metadata(name) | {"uid": f"uid-{name}", "resourceVersion": "5"}}


def test_children_come_from_the_cache() -> None:
    """A pass at rest asks the API for a ServiceAccount, once a minute, and for nothing else."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    for resource in CHILDREN:
        cache.record(resource, stored(OWNER, "demo"))
        earlier = Owner(OWNER.resource, OWNER.namespace, OWNER.name, "uid-of-an-earlier-one")
        cache.record(resource, stored(earlier, "of-an-earlier-one"))
    seen, asked = observe(cache)
    assert {resource: set(seen.children[resource]) for resource in CHILDREN} == {kind: {"demo"} for kind in CHILDREN}
    assert asked == [SERVICE_ACCOUNTS]


@pytest.mark.parametrize(
    ("reference", "counts"),
    [
        ({}, True),
        ({"controller": False}, False),
        ({"kind": "Job"}, False),
        ({"name": "somebody-elses-5d8f"}, False),
    ],
)
def test_a_serving_pod_counts_only_under_a_replica_set_of_our_deployment(reference: Object, counts: bool) -> None:
    """A tenant's pod with our labels makes no candidate fail, and none available."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    labels = server_labels(OWNER, "1234abcd")
    pod = server_pod(deployment_name(OWNER, "1234abcd"), "pod", labels, {"phase": "Running"})
    pod["metadata"] |= {"namespace": "team", "uid": "uid-of-pod", "resourceVersion": "7"}
    pod["metadata"]["ownerReferences"] = [pod["metadata"]["ownerReferences"][0] | reference]
    cache.record(PODS, pod)
    seen, _ = observe(cache)
    assert bool(seen.server_pods("1234abcd")) is counts
    assert pod["metadata"]["labels"][meta.LABEL_OWNER_NAME] == "demo"


@pytest.mark.parametrize(
    ("age", "has_pod", "read"), [(5, False, False), (10, False, True), (10, True, False), (86400, True, False)]
)
def test_events_are_read_of_a_job_that_lacks_its_pod(age: int, has_pod: bool, read: bool) -> None:
    """Only they show why; of any other Job they would cost a call in every pass."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    job = stored(OWNER, "verify") | {"spec": {}, "status": {"active": int(has_pod)}}
    job["metadata"]["creationTimestamp"] = timestamp(NOW - timedelta(seconds=age))
    cache.record(JOBS, job)
    if has_pod:
        pod = stored(OWNER, "verify-x") | {"status": {"phase": "Running"}}
        reference = {"kind": "Job", "name": "verify", "uid": "uid-verify", "controller": True}
        pod["metadata"] |= {"creationTimestamp": timestamp(NOW), "ownerReferences": [reference]}
        cache.record(PODS, pod)
    _, asked = observe(cache)
    assert (EVENTS in asked) is read
