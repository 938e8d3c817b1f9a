"""The way in from outside: what is rendered, what stands in its way, and how a canary gets exact weights by it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.reasons import Reason
from finetune_api.routes import Route
from finetune_api.serving_status import ServingPhase
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.adapterdeployment.route_claims import Address, Holder, Host, address_on, holder, host_at
from finetune_operator.framework.actions import Apply
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError, Selection
from finetune_operator.framework.informer import Informer
from finetune_operator.framework.objects import DEPLOYMENTS, HTTP_ROUTES, INGRESSES, Object, Resource
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.route import Backend, backends_of, http_route, ingress
from finetune_operator.runtimes import serving_plan
from finetune_operator.runtimes.plan import ServedModel
from finetune_operator.settings import Engine, FormerRoutes, HttpRoutes, Ingresses, ServingAccess
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.played_pods import GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, pinned
from tests.unit.test_adapterdeployment_canary import one_pass

pytestmark = pytest.mark.unit

OWNER = Owner(ADAPTERDEPLOYMENTS, "team", "demo", "uid-of-demo")
PARENT = {"name": "public", "namespace": "gateways"}
HTTP = {"httpRoute": {"parentRefs": [PARENT], "hostnames": ["demo.models.example"]}}
INGRESS = {"ingress": {"className": "nginx", "host": "demo.models.example"}}
OFFERED = SETTINGS.model_copy(
    update={
        "serving": ServingAccess(
            http_routes=HttpRoutes(enabled=True),
            ingresses=Ingresses(enabled=True, annotations={"cert-manager.io/cluster-issuer": "public"}),
        )
    }
)


def routed(given: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A spec with a route."""
    return pinned(spec.pop("digest", GOOD), access={"route": given or HTTP}, **spec)


def open_to_the_world(given: dict[str, Any] | None = None, **spec: Any) -> ServingCluster:
    """An endpoint that serves, with a route that nobody has answered yet."""
    cluster = serving(**spec)
    cluster.settings = OFFERED
    cluster.spec = routed(given, **spec)
    cluster.generation += 1
    cluster.settle()
    return cluster


def route(cluster: ServingCluster, resource: Resource = HTTP_ROUTES) -> Object | None:
    return cluster.objects.get(resource, {}).get("demo")


def says(cluster: ServingCluster, accepted: bool = True, reason: str = "Accepted", resolved: bool = True) -> None:
    """The gateway answers to the HTTPRoute as it is now."""
    live = route(cluster)
    assert live is not None
    generation = live["metadata"]["generation"]
    given = (
        ("Accepted", accepted, reason),
        ("ResolvedRefs", resolved, "ResolvedRefs" if resolved else "BackendNotFound"),
    )
    conditions = [
        {"type": kind, "status": str(status), "reason": why, "message": "As it is.", "observedGeneration": generation}
        for kind, status, why in given
    ]
    live["status"] = {"parents": [{"parentRef": PARENT, "controllerName": "played", "conditions": conditions}]}


def told(cluster: ServingCluster) -> str:
    return next(each.message for each in cluster.status.conditions if each.type == "RouteAccepted")


def shares(cluster: ServingCluster) -> list[Backend]:
    live = route(cluster)
    return backends_of(live) if live else []


# What is rendered


def test_an_http_route_names_gateways_hosts_and_services_with_their_weights() -> None:
    asked = Route.model_validate(
        {
            "httpRoute": {
                "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}, {"name": "own"}],
                "hostnames": ["a.example", "b.example"],
                "pathPrefix": "/demo",
            }
        }
    )
    assert asked.http_route is not None
    made = http_route(OWNER, asked.http_route, [Backend("demo", 90), Backend("demo-x-candidate", 10)])
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    service = {"group": "", "kind": "Service", "port": 80}
    assert made["metadata"] == OWNER.metadata("demo")
    assert made["spec"] == {
        "parentRefs": [
            gateway | {"name": "public", "namespace": "gateways", "sectionName": "https"},
            gateway | {"name": "own"},
        ],
        "hostnames": ["a.example", "b.example"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/demo"}}],
                "filters": [
                    {
                        "type": "URLRewrite",
                        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
                    }
                ],
                "backendRefs": [
                    service | {"name": "demo", "weight": 90},
                    service | {"name": "demo-x-candidate", "weight": 10},
                ],
            }
        ],
    }
    assert asked.urls == ["https://a.example/demo", "https://b.example/demo"]


def test_an_ingress_has_the_admins_annotations_and_the_certificate() -> None:
    asked = Route.model_validate(
        {"ingress": {"className": "nginx", "host": "a.example", "tlsSecretRef": {"name": "t"}}}
    )
    assert asked.ingress is not None
    made = ingress(OWNER, asked.ingress, {"issuer": "public"})
    assert made["metadata"]["annotations"] == {"issuer": "public"}
    backend = {"service": {"name": "demo", "port": {"number": 80}}}
    assert made["spec"] == {
        "ingressClassName": "nginx",
        "tls": [{"hosts": ["a.example"], "secretName": "t"}],
        "rules": [{"host": "a.example", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
    }
    assert asked.urls == ["https://a.example"]
    plain = Route.model_validate(INGRESS)
    assert plain.urls == ["http://demo.models.example"]
    assert plain.ingress is not None
    assert "tls" not in ingress(OWNER, plain.ingress, {})["spec"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        HTTP | INGRESS,
        {"httpRoute": {"parentRefs": [], "hostnames": ["a.example"]}},
        *(
            {"httpRoute": HTTP["httpRoute"] | {"hostnames": [host]}}
            for host in ("*.example", "localhost", "A.example", "")
        ),
        *({"httpRoute": HTTP["httpRoute"] | {"pathPrefix": path}} for path in ("", "a", "/a/", "/a//b", "/..", "/./a")),
    ],
)
def test_routes_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Route.model_validate(given)


# How it comes and goes


@pytest.mark.slow
def test_it_comes_with_what_serves_and_goes_with_the_field() -> None:
    cluster = ServingCluster(spec=routed(), settings=OFFERED)
    cluster.reconcile()
    assert route(cluster) is None
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.ROUTE_PENDING)
    assert cluster.status.url == ""
    cluster.settle()
    assert shares(cluster) == [Backend("demo", 100)]
    assert_says(told(cluster), "HTTPRoute demo", "Gateway gateways/public")
    says(cluster)
    cluster.settle()
    assert condition(cluster.status, "RouteAccepted") == ("True", Reason.ROUTE_ACCEPTED)
    assert cluster.status.url == "https://demo.models.example"
    assert [event.reason for event in cluster.events].count(Reason.ROUTE_ACCEPTED) == 1
    cluster.spec = routed(INGRESS)
    cluster.settle()
    assert route(cluster) is None
    made = route(cluster, INGRESSES)
    assert made is not None
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.ROUTE_PENDING)
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    cluster.settle()
    assert condition(cluster.status, "RouteAccepted") == ("True", Reason.ROUTE_ACCEPTED)
    cluster.spec = pinned(GOOD)
    cluster.settle()
    assert not any(cluster.objects.get(kind) for kind in (HTTP_ROUTES, INGRESSES))
    assert cluster.status.url == ""
    assert not [each for each in cluster.status.conditions if each.type == "RouteAccepted"]


def test_a_change_of_it_is_no_other_revision_and_tries_nothing_again() -> None:
    cluster = open_to_the_world()
    assert cluster.revisions(DEPLOYMENTS) == {cluster.traffic()}
    hashes = {
        spec_hash(AdapterDeploymentSpec.model_validate(each)) for each in (pinned(GOOD), routed(), routed(INGRESS))
    }
    assert len(hashes) == 1
    keys = {"apiKeys": {"secretRef": {"name": "clients"}}}
    asked = [
        spec_hash(AdapterDeploymentSpec.model_validate(pinned(GOOD, access=keys | more)))
        for more in ({}, {"route": HTTP})
    ]
    assert asked[0] == asked[1]
    assert asked[0] not in hashes


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("hostnames", ["demo.models.example", "stolen.example"]),
        ("parentRefs", [{**PARENT, "group": "gateway.networking.k8s.io", "kind": "Gateway"}, {"name": "other"}]),
    ],
)
def test_what_others_add_to_it_is_taken_off(place: str, value: Any) -> None:
    cluster = open_to_the_world()
    live = route(cluster)
    assert live is not None
    before = live["spec"][place]
    live["spec"][place] = value
    cluster.settle()
    live = route(cluster)
    assert live is not None
    assert live["spec"][place] == before


def refuse(said: str) -> Any:
    return lambda _cluster, action: said if action.resource == HTTP_ROUTES else ""


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"settings": SETTINGS}, Reason.ROUTE_UNAVAILABLE, ["serving.httpRoutes"]),
        ({"lacking": frozenset({HTTP_ROUTES})}, Reason.ROUTE_UNAVAILABLE, ["httproutes.gateway.networking.k8s.io"]),
        (
            {"holders": (Holder(Address("demo.models.example", "/"), "team", "old", has_it=False),)},
            Reason.ROUTE_TAKEN,
            ["old", "demo.models.example/"],
        ),
        (
            {"holders": (Holder(Address("demo.models.example", "/"), "other", "old", has_it=True),)},
            Reason.ROUTE_TAKEN,
            ["another namespace"],
        ),
    ],
)
def test_what_stands_in_its_way_is_said_and_nothing_else_waits(
    changes: dict[str, Any], reason: Reason, said: list[str]
) -> None:
    cluster = open_to_the_world()
    made = plan(replace(cluster.observe(), **changes), cluster.now)
    assert condition(made.status, "RouteAccepted") == ("False", reason)
    assert_says(next(each.message for each in made.status.conditions if each.type == "RouteAccepted"), *said)
    assert (made.status.phase, made.status.url, made.actions) == (ServingPhase.READY, "", ())
    assert condition(made.status, "Ready")[0] == "True"
    deleted = [action.name for action in made.optional["route"] if action.resource == HTTP_ROUTES]  # type: ignore[union-attr]
    assert deleted == ["demo"]


@pytest.mark.parametrize("has_it", [False, True])
def test_of_a_holder_in_another_namespace_no_name_is_said(has_it: bool) -> None:
    said = Holder(Address("a.example", "/"), "other", "its-name", has_it).told("team")
    assert "its-name" not in said
    assert ("already" in said, "older" in said) == (has_it, not has_it)


OTHERS = Holder(Address("a.example", "/"), "team", "old", has_it=True)
TWO_HOSTS = {"httpRoute": HTTP["httpRoute"] | {"hostnames": ["a.example", "b.example"]}}


def test_hosts_that_nobody_else_has_keep_their_route() -> None:
    cluster = open_to_the_world(TWO_HOSTS)
    says(cluster)
    seen = replace(cluster.observe(), holders=(OTHERS,))
    made = plan(seen, cluster.now)
    [apply] = made.optional["route"]
    assert isinstance(apply, Apply)
    assert apply.object["spec"]["hostnames"] == ["b.example"]
    assert (made.status.phase, made.status.url) == (ServingPhase.READY, "https://b.example")
    assert condition(made.status, "RouteAccepted") == ("False", Reason.ROUTE_TAKEN)
    said = next(each.message for each in made.status.conditions if each.type == "RouteAccepted")
    assert_says(
        said, "AdapterDeployment old already has a.example/", "has only b.example", "accepts", "spec.access.route"
    )
    [event] = [each for each in made.events if each.reason is Reason.ROUTE_TAKEN]
    assert event.type == "Warning"
    assert made.requeue_after is not None, "no event tells that the other one gives it up"
    cluster.apply_action(apply)
    again = plan(replace(cluster.observe(), holders=(OTHERS,)), cluster.now)
    assert again.optional["route"] == ()


def test_a_refusal_of_a_route_without_all_of_its_hosts_is_said_as_one() -> None:
    cluster = open_to_the_world(TWO_HOSTS)
    says(cluster, accepted=False, reason="NotAllowedByListeners")
    made = plan(replace(cluster.observe(), holders=(OTHERS,)), cluster.now)
    assert condition(made.status, "RouteAccepted") == ("False", Reason.ROUTE_REFUSED)
    said = next(each.message for each in made.status.conditions if each.type == "RouteAccepted")
    assert_says(said, "AdapterDeployment old already has a.example/", "NotAllowedByListeners")


def test_what_the_rules_do_not_allow_is_refused_and_what_is_there_stays() -> None:
    cluster = open_to_the_world()
    rule = TenancyRule(namespaces=["team"], gateways=["{namespace}/*"], hostnames=["*.{namespace}.example"])
    cluster.settings = OFFERED.model_copy(update={"tenancy": Tenancy(rules=[rule])})
    before = route(cluster)
    cluster.settle()
    assert route(cluster) == before
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.NOT_ALLOWED)
    assert condition(cluster.status, "Stalled") == ("True", Reason.NOT_ALLOWED)
    assert_says(told(cluster), "parentRefs[0] is 'gateways/public'", "team/*", "hostnames[0]", "*.team.example")
    own = {"parentRefs": [{"name": "own"}], "hostnames": ["demo.team.example"]}
    cluster.spec = routed({"httpRoute": own})
    cluster.settle()
    assert cluster.status.url == "https://demo.team.example"


def test_a_refusal_is_said_and_the_endpoint_serves() -> None:
    cluster = serving()
    cluster.settings, cluster.spec = OFFERED, routed()
    cluster.refuse = refuse("denied by a webhook")
    for _ in range(3):
        one_pass(cluster)
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.ROUTE_REFUSED)
    assert_says(told(cluster), "denied by a webhook")
    assert (cluster.status.phase, cluster.status.url) == (ServingPhase.READY, "")
    cluster.refuse = lambda _cluster, _action: ""
    cluster.settle()
    says(cluster, accepted=False, reason="NotAllowedByListeners")
    cluster.settle()
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.ROUTE_REFUSED)
    assert_says(told(cluster), "gateways/public", "NotAllowedByListeners")
    says(cluster, resolved=False)
    cluster.settle()
    assert_says(told(cluster), "ResolvedRefs", "BackendNotFound")
    assert cluster.status.phase is ServingPhase.READY


# Who has an address


def deployment(name: str, created: str, host: str = "a.example", namespace: str = "team", **metadata: Any) -> Object:
    http = HTTP["httpRoute"] | {"hostnames": ["first.example", host]}
    given = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": created} | metadata
    return {"metadata": given, "spec": routed({"httpRoute": http})}


def test_the_oldest_that_may_have_an_address_has_it() -> None:
    me, address = deployment("me", "2026-01-02T00:00:00Z"), Address("a.example", "/")
    older = deployment("older", "2026-01-01T00:00:00Z", namespace="other")
    same = deployment("a", "2026-01-02T00:00:00Z")
    leaving = deployment("leaving", "2025-01-01T00:00:00Z", deletionTimestamp="2026-01-01T00:00:00Z")
    assert [host_at(me, number) for number in range(3)] == [Host("first.example"), Host("a.example"), None]
    assert [address_on(me, host) for host in ("a.example", "b.example")] == [address, None]
    found = holder(me, [older, same, leaving, me], address, OFFERED, lambda _: False)
    assert found == Holder(address, "other", "older", has_it=False)
    by_uid = holder(me, [same, me], address, OFFERED, lambda _: False)
    assert by_uid == Holder(address, "team", "a", has_it=False), "the uid decides"
    assert holder(same, [same, me], address, OFFERED, lambda _: False) is None
    only_team = Tenancy(rules=[TenancyRule(namespaces=["team"]), TenancyRule(namespaces=["other"], hostnames=[])])
    strict = OFFERED.model_copy(update={"tenancy": only_team})
    assert holder(me, [older, me], address, strict, lambda each: each is older) is None


@pytest.mark.parametrize("route", [None, {"httpRoute": {"parentRefs": 3}}, {"newer": {}}])
def test_a_route_that_cannot_be_read_has_no_address(route: Any) -> None:
    stored = {"metadata": {}, "spec": {"access": {"route": route}}}
    assert (host_at(stored, 0), address_on(stored, "a.example")) == (None, None)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("/", "/", True),
        ("/", "/v1", True),
        ("/", "/v1/chat/completions", True),
        ("/payments", "/payments/v1", True),
        ("/payments", "/payments/generate_stream", True),
        ("/", "/payments", False),
        ("/", "/payments/v1", False),
        ("/pay", "/payments/v1", False),
        ("/payments", "/refunds", False),
        ("/payments", "/v1", False),
        ("/", "/v1.2", False),
    ],
)
def test_addresses_of_which_two_endpoints_cannot_have_one_each(one: str, other: str, *, meet: bool) -> None:
    """A gateway follows the longest prefix: who has /v1 of a host gets all that clients of its / ask, with their
    keys. Beside each other, and below, there is room for others."""
    first, second = Address("a.example", one), Address("a.example", other)
    assert (first.meets(second), second.meets(first)) == (meet, meet)
    assert not first.meets(Address("b.example", other))


def test_what_clients_of_an_endpoint_ask_goes_to_no_other_one() -> None:
    mine, theirs = deployment("mine", "2026-01-01T00:00:00Z"), deployment("theirs", "2026-01-02T00:00:00Z")
    theirs["metadata"]["namespace"] = "other"
    theirs["spec"]["access"]["route"]["httpRoute"]["pathPrefix"] = "/v1/chat"
    asked, both = Address("a.example", "/v1/chat"), [mine, theirs]
    found = holder(theirs, both, asked, OFFERED, lambda each: each is mine)
    assert found == Holder(asked, "team", "mine", has_it=True, other=Address("a.example", "/"))
    assert_says(found.told("team"), "mine already has a.example/", "a.example/v1/chat would get what its clients ask")
    assert found.told("other").startswith("One in another namespace already has another path of a.example: ")
    assert holder(mine, both, Address("a.example", "/"), OFFERED, lambda each: each is mine) is None
    first = holder(mine, both, Address("a.example", "/"), OFFERED, lambda each: each is theirs)
    assert first == Holder(Address("a.example", "/"), "other", "theirs", has_it=True, other=asked)
    assert_says(first.told("team"), "another path of a.example", "it would get", "a.example/'s clients")
    assert "/v1" not in first.told("team"), "paths may be names"


def test_every_path_to_which_clients_write_is_among_those() -> None:
    root, known = Address("a.example", "/"), SETTINGS.runtimes["tgi"]
    for engine in Engine:
        rendered = serving_plan(known.model_copy(update={"engine": engine}), ServedModel("/models/m", "demo"))
        assert all(root.meets(Address("a.example", path)) for path in rendered.write_paths)


# A kind that the API server lacks


class WithoutCrd:
    """A client of an API server without the kind, until it is installed."""

    installed = False

    def pages(self, selection: Selection, limit: int = 0) -> Any:
        if not self.installed:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return iter(())


def test_a_kind_that_is_missing_is_known_to_be_and_its_objects_are_gone() -> None:
    server, cache, told = WithoutCrd(), Cache(), list[str]()
    selection = Selection(HTTP_ROUTES, None)
    informer = Informer(
        cast(Any, server),
        cache,
        selection,
        changed=lambda _, found: told.append(found["metadata"]["name"]),
        seen=lambda *_: None,
        turn=threading.Lock(),
    )
    metadata = OWNER.metadata("demo") | {"uid": "u", "resourceVersion": "7"}
    cache.record(HTTP_ROUTES, {"metadata": metadata, "spec": {}})
    informer.first_list(3600.0)
    assert cache.lacks(HTTP_ROUTES)
    assert told == ["demo"]
    assert cache.get(HTTP_ROUTES, "team", "demo") is None
    server.installed = True
    informer.first_list(3600.0)
    assert not cache.lacks(HTTP_ROUTES)


@pytest.mark.parametrize(
    ("access", "offered", "watched"),
    [
        (ServingAccess(), (), (HTTP_ROUTES, INGRESSES)),
        (ServingAccess(former_routes=FormerRoutes.KEEP), (), ()),
        (ServingAccess(ingresses=Ingresses(enabled=True)), (INGRESSES,), (HTTP_ROUTES, INGRESSES)),
        (
            ServingAccess(ingresses=Ingresses(enabled=True), former_routes=FormerRoutes.KEEP),
            (INGRESSES,),
            (INGRESSES,),
        ),
    ],
)
def test_which_kinds_are_watched(
    access: ServingAccess, offered: tuple[Resource, ...], watched: tuple[Resource, ...]
) -> None:
    assert (access.routes, access.watched_routes) == (offered, watched)
