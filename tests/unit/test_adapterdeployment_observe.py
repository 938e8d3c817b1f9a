"""What is read of an AdapterDeployment: from the cache, and only what is its own. Of others: who has its addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import ObjectMeta
from finetune_api.reasons import Reason
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.route import route_blocker
from finetune_operator.controller import INDEXES
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    HTTP_ROUTES,
    INGRESSES,
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
from finetune_operator.resources.route import Backend, http_route, ingress
from finetune_operator.settings import FormerRoutes, HttpRoutes, Ingresses, ServingAccess, Settings
from tests.support.memory_cluster import MemoryCluster
from tests.support.played_pods import GOOD, server_pod
from tests.support.sentences import assert_says
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


# Who has an address

_OFFERED = SETTINGS.model_copy(
    update={"serving": ServingAccess(http_routes=HttpRoutes(enabled=True), ingresses=Ingresses(enabled=True))}
)
_HOST = "a.example"
_URL = {"url": f"https://{_HOST}"}


def asking(name: str, year: int, status: Object | None = None, *hosts: str, by: str = "httpRoute") -> Object:
    """An AdapterDeployment that asks for a host, since its second generation."""
    http = {"parentRefs": [{"name": "public"}], "hostnames": list(hosts or (_HOST,))}
    given: Object = {"ingress": {"className": "nginx", "host": _HOST}} if by == "ingress" else {"httpRoute": http}
    metadata: Object = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-of-{name}",
        "resourceVersion": "1",
        "generation": 2,
    }
    metadata["creationTimestamp"] = f"{year}-01-01T00:00:00Z"
    spec = pinned(GOOD, access={"route": given})
    return {"kind": meta.ADAPTERDEPLOYMENT, "metadata": metadata, "spec": spec, "status": status or {}}


def told_of_generation(generation: int, status: str = "True") -> Object:
    """A status by which its route was there."""
    condition: Object = {"type": "RouteAccepted", "status": status, "reason": "RouteAccepted", "message": ""}
    condition |= {"lastTransitionTime": timestamp(NOW), "observedGeneration": generation}
    return _URL | {"observedGeneration": 2, "conditions": [condition]}


def live_route(raw: Object, **metadata: Any) -> tuple[Resource, Object]:
    """Its HTTPRoute or Ingress, which names the host."""
    parsed = AdapterDeploymentSpec.model_validate(raw["spec"]).access.route
    owner = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(raw["metadata"]))
    assert parsed is not None
    if parsed.ingress is not None:
        resource, made = INGRESSES, ingress(owner, parsed.ingress, {})
    else:
        assert parsed.http_route is not None
        resource, made = HTTP_ROUTES, http_route(owner, parsed.http_route, [Backend(owner.name, 100)])
    made["metadata"] |= {"uid": f"uid-of-route-{owner.name}", "resourceVersion": "7"} | metadata
    return resource, made


def taken_from(raw: Object, cache: Cache, settings: Settings = _OFFERED) -> str:
    """What the condition says of who has the address; empty: it may have it."""
    seen = adapter_deployment_kind(AskedCluster(now=NOW), cache, settings).observe(raw, NOW)
    assert isinstance(seen, ObservedDeployment)
    found = route_blocker(seen)
    assert found is None or found[0] is Reason.ROUTE_TAKEN
    return found[1] if found else ""


OLD, NEW = 2024, 2025


@pytest.mark.parametrize(
    ("old", "new", "live", "has_it"),
    [
        pytest.param({}, {}, [], "old", id="nobody yet: the older one"),
        pytest.param({}, {}, ["new"], "new", id="the newer one asked first, and has it"),
        pytest.param({}, {}, ["old"], "old", id="the older one has it"),
        pytest.param({}, {}, ["old", "new"], "old", id="both wrote one at once"),
        pytest.param({}, told_of_generation(2), [], "new", id="somebody deleted its route"),
        pytest.param({}, told_of_generation(1), [], "old", id="its route was for another spec"),
        pytest.param({}, _URL | {"observedGeneration": 2}, [], "old", id="its spec could not be planned"),
        pytest.param(told_of_generation(2), {}, ["new"], "old", id="both, one by its status"),
    ],
)
@pytest.mark.parametrize("by", ["httpRoute", "ingress"])
def test_who_has_an_address_keeps_it(old: Object, new: Object, live: list[str], has_it: str, by: str) -> None:
    """Clients of one that serves do not end up elsewhere because somebody edits an older AdapterDeployment."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    both = {"old": asking("old", OLD, old, by=by), "new": asking("new", NEW, new, by=by)}
    for name, raw in both.items():
        cache.record(ADAPTERDEPLOYMENTS, raw)
        if name in live:
            cache.record(*live_route(raw))
    assert [name for name, raw in both.items() if not taken_from(raw, cache)] == [has_it]


def test_a_route_of_another_host_or_about_to_go_keeps_none() -> None:
    older, cache = asking("old", OLD), Cache(INDEXES, WATCHED_OWNERS)
    others: list[tuple[str, Object]] = [
        ("b.example", {}),
        (_HOST, {"deletionTimestamp": timestamp(NOW)}),
        (_HOST, {"ownerReferences": []}),
    ]
    for number, (host, metadata) in enumerate(others):
        newer = asking(f"new-{number}", NEW)
        cache.record(ADAPTERDEPLOYMENTS, newer)
        cache.record(*live_route(asking(f"new-{number}", NEW, {}, host), **metadata))
    cache.record(ADAPTERDEPLOYMENTS, older)
    assert not taken_from(older, cache)


def test_it_says_who_has_it_and_why() -> None:
    cache = Cache(INDEXES, WATCHED_OWNERS)
    older, newer = asking("old", OLD), asking("new", NEW)
    for raw in (older, newer):
        cache.record(ADAPTERDEPLOYMENTS, raw)
    assert_says(taken_from(newer, cache), "AdapterDeployment old", "older", "a.example/")
    cache.record(*live_route(newer))
    said = taken_from(older, cache)
    assert_says(said, "AdapterDeployment new", "already", "a.example/")
    assert "older" not in said


@pytest.mark.parametrize("is_there", [True, False])
def test_who_has_some_of_its_hosts_takes_none_of_the_others_from_who_has_them(*, is_there: bool) -> None:
    """Its status has a URL then, which tells nothing of the host that another one has."""
    older = asking("old", OLD, told_of_generation(2, status="False"), "b.example", _HOST)
    older["status"]["url"] = "https://b.example"
    newer, cache = asking("new", NEW), Cache(INDEXES, WATCHED_OWNERS)
    for raw in (older, newer):
        cache.record(ADAPTERDEPLOYMENTS, raw)
    cache.record(*live_route(newer))
    if is_there:
        cache.record(*live_route(asking("old", OLD, {}, "b.example")))
    assert not taken_from(newer, cache)
    seen = adapter_deployment_kind(AskedCluster(now=NOW), cache, _OFFERED).observe(older, NOW)
    assert isinstance(seen, ObservedDeployment)
    assert [(each.address.host, each.name) for each in seen.holders] == [(_HOST, "new")]


def test_the_host_of_its_url_stays_with_an_endpoint_whose_route_somebody_deleted() -> None:
    newer = asking("new", NEW, told_of_generation(2, status="False"), "b.example", _HOST)
    older, cache = asking("old", OLD), Cache(INDEXES, WATCHED_OWNERS)
    for raw in (older, newer):
        cache.record(ADAPTERDEPLOYMENTS, raw)
    assert taken_from(older, cache)


_INGRESSES_ONLY = ServingAccess(ingresses=Ingresses(enabled=True))


@pytest.mark.parametrize(
    ("offered", "crd", "is_taken"),
    [
        pytest.param(_OFFERED.serving, True, True, id="the older one can have it"),
        pytest.param(_OFFERED.serving, False, False, id="the cluster lacks its kind"),
        pytest.param(_INGRESSES_ONLY, True, False, id="the platform does not offer its kind"),
        pytest.param(
            _INGRESSES_ONLY.model_copy(update={"former_routes": FormerRoutes.KEEP}), True, True, id="its route may stay"
        ),
    ],
)
def test_a_route_of_a_kind_that_is_not_there_keeps_no_address(
    offered: ServingAccess, *, crd: bool, is_taken: bool
) -> None:
    older, newer = asking("old", OLD), asking("new", NEW, by="ingress")
    cache = Cache(INDEXES, WATCHED_OWNERS)
    cache.record_kind(HTTP_ROUTES, exists=crd)
    for raw in (older, newer):
        cache.record(ADAPTERDEPLOYMENTS, raw)
    assert bool(taken_from(newer, cache, _OFFERED.model_copy(update={"serving": offered}))) is is_taken
