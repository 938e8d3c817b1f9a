"""The way in from outside: what is rendered, what stands in its way, and how a canary gets exact weights by it."""

from __future__ import annotations

import threading
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.reasons import Reason
from finetune_api.routes import Route
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.adapterdeployment.route import FOLLOWING_SECONDS, UNDIVIDED_SINCE
from finetune_operator.adapterdeployment.route_claims import Address, Elder, address_of, elder
from finetune_operator.framework.actions import Action
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError, Selection
from finetune_operator.framework.informer import Informer
from finetune_operator.framework.objects import DEPLOYMENTS, HTTP_ROUTES, INGRESSES, SERVICES, Object, Resource
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.route import Backend, backends_of, http_route, ingress
from finetune_operator.settings import FormerRoutes, HttpRoutes, Ingresses, ServingAccess, Settings
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, pinned, start_seconds
from tests.unit.test_adapterdeployment_canary import crash_once, has_share, one_pass, until
from tests.unit.test_adapterdeployment_walk import CANARY, wanted

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
        ({"elder": Elder(Address("a.example", "/x"), "team", "old")}, Reason.ROUTE_TAKEN, ["old", "a.example/x"]),
        ({"elder": Elder(Address("a.example", "/"), "other", "old")}, Reason.ROUTE_TAKEN, ["another namespace"]),
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


def test_of_an_elder_in_another_namespace_no_name_is_said() -> None:
    assert "its-name" not in Elder(Address("a.example", "/"), "other", "its-name").named("team")


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
    assert [address_of(me, number) for number in range(3)] == [Address("first.example", "/"), address, None]
    found = elder(me, [older, same, leaving, me], address, OFFERED)
    assert found == Elder(address, "other", "older")
    assert elder(me, [same, me], address, OFFERED) == Elder(address, "team", "a"), "the uid decides"
    assert elder(same, [same, me], address, OFFERED) is None
    only_team = Tenancy(rules=[TenancyRule(namespaces=["team"]), TenancyRule(namespaces=["other"], hostnames=[])])
    assert elder(me, [older, me], address, OFFERED.model_copy(update={"tenancy": only_team})) is None


@pytest.mark.parametrize("route", [None, {"httpRoute": {"parentRefs": 3}}, {"newer": {}}])
def test_a_route_that_cannot_be_read_has_no_address(route: Any) -> None:
    assert address_of({"metadata": {}, "spec": {"access": {"route": route}}}, 0) is None


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


# Weights


def weighted(**spec: Any) -> tuple[ServingCluster, str]:
    """An endpoint whose gateway takes its route, and follows it at once, and that is to serve another artifact."""
    replicas = spec.pop("replicas", 3)
    cluster = open_to_the_world(replicas=replicas)
    says(cluster)
    cluster.settle()
    old = cluster.traffic()
    cluster.watch = lambda each: says(each) if route(each) else None
    given: dict[str, Any] = {"replicas": replicas, "strategy": CANARY} | spec
    cluster.spec = routed(None, digest=BETTER, **given)
    cluster.generation += 1
    return cluster, old


def candidate_service(revision: str) -> str:
    return f"demo-{revision}-candidate"


def test_requests_are_divided_exactly_while_the_service_names_the_old_one() -> None:
    cluster, old = weighted()
    first = until(cluster, has_share(1))
    new = first.revision
    assert first.canary is not None
    assert (first.canary.routed_weight, first.canary.share, first.canary.summary) == (10, 10, "1/2 10%")
    assert_says(first.message, "1 of 4 pods get 10 % of the requests through the HTTPRoute", str(first.canary.until))
    assert shares(cluster) == [Backend("demo", 90), Backend(candidate_service(new), 10)]
    assert not cluster.shared()
    assert cluster.traffic() == old
    assert candidate_service(new) in cluster.objects[SERVICES]
    second = until(cluster, has_share(2))
    assert second.canary is not None
    assert (second.canary.routed_weight, wanted(cluster)) == (50, {old: 3, new: 3})
    assert shares(cluster) == [Backend("demo", 50), Backend(candidate_service(new), 50)]
    assert not cluster.shared()
    left: list[bool] = []

    def gone_too_early(each: ServingCluster) -> None:
        named = {backend.service for backend in shares(each)}
        left.append(named <= set(each.objects[SERVICES]))
        says(each)

    cluster.watch = gone_too_early
    cluster.settle()
    assert cluster.traffic() == new
    assert shares(cluster) == [Backend("demo", 100)]
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert all(left), "the route never names a Service that is gone"


MOST = {"type": "Canary", "canary": {"steps": [{"weight": 90, "pause": "1m"}]}}


@pytest.mark.parametrize("replicas", [1, 3])
def test_most_requests_go_to_a_canary_that_has_as_many_pods_as_the_old_one(replicas: int) -> None:
    cluster, old = weighted(strategy=MOST, replicas=replicas)
    candidate = until(cluster, has_share(1))
    assert candidate.canary is not None
    assert (candidate.canary.routed_weight, candidate.canary.share) == (90, 90)
    assert shares(cluster) == [Backend("demo", 10), Backend(candidate_service(candidate.revision), 90)]
    assert wanted(cluster) == {old: replicas, candidate.revision: replicas}
    cluster.settle()
    assert cluster.traffic() == candidate.revision


def test_without_its_gateway_a_canary_gets_half_at_most() -> None:
    cluster = open_to_the_world(replicas=3)
    cluster.spec = routed(digest=BETTER, replicas=3, strategy=MOST)
    cluster.generation += 1
    candidate = until(cluster, has_share(1))
    assert candidate.canary is not None
    assert (candidate.canary.routed_weight, candidate.canary.share, candidate.canary.pods) == (None, 50, "3 of 6")
    assert_says(candidate.message, "50 % of new connections (weight 90)")


def test_the_next_weight_waits_for_the_pods_of_its_step() -> None:
    cluster, _ = weighted()
    until(cluster, has_share(1))
    cluster.room = cluster.held()
    waiting = until(cluster, lambda each: each.canary and each.canary.step == 2)
    assert waiting.canary is not None
    assert (waiting.canary.weight, waiting.canary.routed_weight) == (50, 10)
    assert shares(cluster)[0] == Backend("demo", 90)


def test_a_step_counts_from_when_the_gateway_has_taken_its_weight() -> None:
    cluster, _ = weighted()
    cluster.watch = lambda _: None
    waiting = until(cluster, lambda each: each.canary and each.canary.routed_weight == 10)
    for _ in range(3):
        one_pass(cluster, 5)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.canary is not None
    assert cluster.status.candidate.canary.reached_at is None
    assert_says(cluster.status.candidate.message, "once its gateway has taken the weights")
    assert waiting.canary is not None
    says(cluster)
    one_pass(cluster, 0)
    assert cluster.status.candidate.canary.reached_at is not None


@pytest.mark.parametrize("step", [1, 2])
def test_a_crash_gives_all_requests_back_before_its_pods_go(step: int) -> None:
    cluster, old = weighted()
    new = until(cluster, has_share(step)).revision
    crash_once(cluster, new)
    one_pass(cluster, 0)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.FAILED
    assert shares(cluster) == [Backend("demo", 100)]
    assert cluster.traffic() == old
    assert new in cluster.revisions(DEPLOYMENTS), "the gateway may be a moment behind"
    cluster.settle()
    assert cluster.revisions(DEPLOYMENTS) == {old}
    assert set(cluster.objects[SERVICES]) == {"demo"}


def lost(cluster: ServingCluster) -> None:
    cluster.watch = lambda _: None
    says(cluster, accepted=False, reason="NoMatchingParent")


def removed(cluster: ServingCluster) -> None:
    cluster.watch = lambda _: None
    del cluster.spec["access"]


@pytest.mark.parametrize("event", [lost, removed])
def test_without_its_gateway_a_canary_goes_on_by_pods_and_stays_with_them(event: Any) -> None:
    cluster, old = weighted()
    until(cluster, has_share(1))
    event(cluster)
    by_pods = until(cluster, lambda each: each.canary and each.canary.routed_weight is None)
    assert by_pods.canary is not None
    assert (by_pods.canary.step, by_pods.canary.share) == (1, 25)
    assert cluster.shared()
    assert len(shares(cluster)) <= 1
    if route(cluster):
        says(cluster)
    one_pass(cluster, 5)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.canary is not None
    assert cluster.status.candidate.canary.routed_weight is None
    cluster.settle()
    assert cluster.traffic() not in ("", old)


def test_a_gateway_that_never_takes_the_weights_ends_no_canary() -> None:
    cluster, _ = weighted()
    cluster.watch = lambda _: None
    until(cluster, lambda each: each.canary and each.canary.routed_weight == 10)
    cluster.now += timedelta(seconds=start_seconds("tgi-cpu"))
    by_pods = until(cluster, has_share(1))
    assert by_pods.canary is not None
    assert by_pods.canary.routed_weight is None
    assert cluster.shared()


@pytest.mark.parametrize("given", [INGRESS, HTTP], ids=["an Ingress", "no answer yet"])
def test_without_a_gateway_that_takes_it_the_share_is_that_of_the_pods(given: dict[str, Any]) -> None:
    cluster = open_to_the_world(given, replicas=3)
    cluster.spec = routed(given, digest=BETTER, replicas=3, strategy=CANARY)
    first = until(cluster, has_share(1))
    assert first.canary is not None
    assert (first.canary.routed_weight, first.canary.share) == (None, 25)
    assert cluster.shared()


def test_a_refused_weight_leaves_the_canary_to_its_pods() -> None:
    cluster, _ = weighted()

    def refused(_: ServingCluster, action: Action) -> str:
        return "denied by a webhook" if action.resource == HTTP_ROUTES else ""

    cluster.refuse = refused
    by_pods = until(cluster, has_share(1))
    assert by_pods.canary is not None
    assert by_pods.canary.routed_weight is None


def test_rules_that_change_meanwhile_take_no_requests_to_a_canary_that_is_given_up() -> None:
    """The route stays as it is, but for the weights, which are the operator's."""
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    rule = TenancyRule(namespaces=["team"], gateways=["{namespace}/*"], hostnames=["*.{namespace}.example"])
    cluster.settings = OFFERED.model_copy(update={"tenancy": Tenancy(rules=[rule])})
    before = route(cluster)
    assert before is not None
    before = deepcopy(before)
    one_pass(cluster, 0)
    assert [each.service for each in shares(cluster)] == ["demo"]
    after = route(cluster)
    assert after is not None
    assert (after["spec"]["hostnames"], after["spec"]["parentRefs"]) == (
        before["spec"]["hostnames"],
        before["spec"]["parentRefs"],
    )
    assert after["spec"]["rules"][0]["matches"] == before["spec"]["rules"][0]["matches"]
    cluster.settle()
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old}), f"nothing is left of {new}"
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.NOT_ALLOWED)


def runtime_gone(cluster: ServingCluster) -> None:
    cluster.spec["runtime"] = "not-offered"


def taken_back(cluster: ServingCluster) -> None:
    cluster.spec = cluster.spec | {"source": pinned(GOOD)["source"]}


@pytest.mark.parametrize("event", [runtime_gone, taken_back])
def test_a_canary_that_is_dropped_keeps_its_service_until_the_gateway_has_followed(event: Any) -> None:
    """Nothing is left in the status that says when it was dropped: the HTTPRoute does."""
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    event(cluster)
    cluster.generation += 1
    one_pass(cluster, 0)
    assert cluster.status.candidate is None
    assert shares(cluster) == [Backend("demo", 100)]
    for _ in range(2):
        assert candidate_service(new) in cluster.objects[SERVICES], "the gateway may be a moment behind"
        assert new in cluster.revisions(DEPLOYMENTS), "and so may be those whom it has sent there"
        one_pass(cluster, 4)
    cluster.settle()
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})


@pytest.mark.parametrize("event", [runtime_gone, taken_back])
def test_a_slow_gateway_keeps_the_service_of_a_dropped_canary_until_it_has_seen_the_route(event: Any) -> None:
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    cluster.watch = lambda _: None
    event(cluster)
    cluster.generation += 1
    for _ in range(3):
        one_pass(cluster, 30)
        assert shares(cluster) == [Backend("demo", 100)]
        assert candidate_service(new) in cluster.objects[SERVICES], "it still divides requests"
        assert new in cluster.revisions(DEPLOYMENTS)
    says(cluster)
    one_pass(cluster, 0)
    assert set(cluster.objects[SERVICES]) == {"demo"}
    cluster.settle()
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})


def test_a_gateway_that_answers_no_more_is_not_waited_for_without_end() -> None:
    cluster, old = weighted()
    until(cluster, has_share(1))
    cluster.watch = lambda _: None
    taken_back(cluster)
    cluster.generation += 1
    one_pass(cluster, 0)
    dropped = cluster.now
    cluster.settle()
    assert cluster.now - dropped >= timedelta(seconds=FOLLOWING_SECONDS)
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})


def test_a_time_that_nobody_can_read_keeps_no_service() -> None:
    cluster, _ = weighted()
    until(cluster, has_share(1))
    runtime_gone(cluster)
    one_pass(cluster, 0)
    live = route(cluster)
    assert live is not None
    live["metadata"]["annotations"][UNDIVIDED_SINCE] = "yesterday"
    cluster.settle()
    assert set(cluster.objects[SERVICES]) == {"demo"}


def turned_off(former: FormerRoutes = FormerRoutes.DELETE) -> Settings:
    return OFFERED.model_copy(update={"serving": ServingAccess(former_routes=former)})


def test_routes_that_are_no_longer_offered_go_and_a_canary_goes_on_by_pods() -> None:
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    cluster.settings = turned_off()
    cluster.watch = lambda _: None
    one_pass(cluster, 0)
    assert route(cluster) is None
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.ROUTE_UNAVAILABLE)
    assert_says(told(cluster), "serving.httpRoutes", "deletes the one that was there")
    assert cluster.status.url == ""
    by_pods = until(cluster, lambda each: each.canary and each.canary.routed_weight is None)
    assert (by_pods.revision, cluster.shared()) == (new, True)
    cluster.settle()
    assert (cluster.traffic(), set(cluster.objects[SERVICES])) == (new, {"demo"})
    assert old != new


def test_routes_stay_where_the_admin_wants_to_delete_them() -> None:
    cluster = open_to_the_world()
    cluster.settings = turned_off(FormerRoutes.KEEP)
    cluster.settle()
    assert route(cluster) is not None
    assert_says(told(cluster), "serving.httpRoutes", "stays as it is", "serving.formerRoutes")


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
