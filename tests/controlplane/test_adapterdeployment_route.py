"""Ways in from outside on a real API server, with the Gateway API's own CRD. What a gateway says is played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_operator.framework.objects import HTTP_ROUTES, INGRESSES, SERVICES, Object
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.rbac import FORMER_ROUTE_RULES, ROUTE_RULES
from finetune_operator.resources.route import Backend, backends_of
from finetune_operator.settings import HttpRoutes, Ingresses, ServingAccess
from hack.cluster.controlplane import ControlPlane
from hack.cluster.module_files import GATEWAY_API
from tests.controlplane.conftest import OPERATOR, RBAC, RIGHTS, wait
from tests.controlplane.serving import NAME, Serving
from tests.support.played_pods import BETTER, GOOD
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane

PARENT = {"name": "public", "namespace": "gateways"}
HTTP = {"httpRoute": {"parentRefs": [PARENT], "hostnames": ["demo.example"], "pathPrefix": "/v2", "scheme": "http"}}
INGRESS = {"ingress": {"className": "nginx", "host": "demo.example", "tlsSecretRef": {"name": "certificate"}}}
OFFERED = ServingAccess(
    http_routes=HttpRoutes(enabled=True), ingresses=Ingresses(enabled=True, annotations={"a/b": "c"})
)


def http_route_crd() -> str:
    """The file with the CRD of HTTPRoutes."""
    [path] = GATEWAY_API.paths()
    return str(path)


@pytest.fixture
def routes(serving: Serving, plane: ControlPlane) -> Iterator[Serving]:
    """The operator has the rights that the chart gives it where endpoints may have routes. No CRD yet, nor later."""
    metadata = {"name": "routes", "namespace": serving.team.namespace}
    rules = [{"apiGroups": [r.api_group], "resources": [r.name], "verbs": list(r.verbs)} for r in ROUTE_RULES.values()]
    group = RBAC.partition("/")[0]
    binding = {
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "routes"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": OPERATOR}],
    }
    contents: list[Object] = [{"rules": rules}, binding]
    for resource, content in zip(RIGHTS, contents, strict=True):
        body = {"apiVersion": RBAC, "kind": resource.kind, "metadata": metadata} | content
        serving.team.api.create(resource, body)
    yield serving
    plane.kubectl("delete", "--ignore-not-found", "--filename", http_route_crd())


def accepted(status: AdapterDeploymentStatus) -> tuple[str, str]:
    """Status and reason of the condition."""
    return next(((each.status, each.reason) for each in status.conditions if each.type == "RouteAccepted"), ("", ""))


def until(serving: Serving, status: str, reason: Reason) -> AdapterDeploymentStatus:
    def reached() -> AdapterDeploymentStatus | None:
        found = serving.status()
        return found if accepted(found) == (status, reason) else None

    return wait(reached, f"RouteAccepted {status} {reason}", describe=lambda: str(serving.status()))


def answer(serving: Serving) -> list[Backend]:
    """The gateway takes the HTTPRoute as it is now; what that sends requests to."""
    live = serving.get(HTTP_ROUTES, NAME)
    assert live is not None
    generation, parents = live["metadata"]["generation"], (live.get("status") or {}).get("parents") or []
    if not parents or parents[0]["conditions"][0]["observedGeneration"] != generation:
        says: dict[str, Any] = {"status": "True", "message": "", "observedGeneration": generation}
        says |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
        conditions = [{"type": kind, "reason": kind} | says for kind in ("Accepted", "ResolvedRefs")]
        entry = {"parentRef": PARENT, "controllerName": "example.com/played", "conditions": conditions}
        serving.team.api.patch_status(HTTP_ROUTES, serving.team.namespace, NAME, {"status": {"parents": [entry]}})
    return backends_of(live)


def by_steps(*steps: tuple[int, str]) -> dict[str, Any]:
    return {"type": "Canary", "canary": {"steps": [{"weight": weight, "pause": pause} for weight, pause in steps]}}


def test_a_route_that_is_no_longer_offered_goes_in_the_middle_of_a_canary(routes: Serving, plane: ControlPlane) -> None:
    """The next operator may see and delete HTTPRoutes, and no more."""
    serving = routes
    plane.kubectl("apply", "--server-side", "--filename", http_route_crd())
    serving.start(serving=OFFERED)
    serving.create(pinned(GOOD, access={"route": HTTP}))
    serving.until(ServingPhase.READY)
    wait(lambda: serving.get(HTTP_ROUTES, NAME), "the HTTPRoute")
    answer(serving)
    until(serving, "True", Reason.ROUTE_ACCEPTED)
    serving.change(**pinned(BETTER, strategy=by_steps((7, "1h"))))
    wait(lambda: len(answer(serving)) == 2, "requests to be divided", describe=lambda: str(serving.status()))
    serving.team.stop()
    rules = [
        {"apiGroups": [r.api_group], "resources": [r.name], "verbs": list(r.verbs)} for r in FORMER_ROUTE_RULES.values()
    ]
    serving.team.api.patch(RIGHTS[0], serving.team.namespace, "routes", {"rules": rules})
    serving.start()
    wait(lambda: serving.get(HTTP_ROUTES, NAME) is None, "the HTTPRoute to go")
    status = until(serving, "False", Reason.ROUTE_UNAVAILABLE)
    assert status.url == ""

    def by_pods() -> bool:
        found = serving.status().candidate
        return bool(found and found.canary and found.canary.routed_weight is None and found.canary.until)

    wait(by_pods, "the canary to go on by pods", describe=lambda: str(serving.status()))
    assert len(serving.reached()) == 2, "clients inside the cluster have their part in it now"


def test_a_route_comes_with_its_crd_divides_requests_and_becomes_an_ingress(
    routes: Serving, plane: ControlPlane
) -> None:
    serving = routes
    serving.start(serving=OFFERED)
    serving.create(pinned(GOOD, access={"route": HTTP}))
    old = serving.until(ServingPhase.READY).last_good_revision
    status = until(serving, "False", Reason.ROUTE_UNAVAILABLE)
    assert (status.phase, status.url) == (ServingPhase.READY, "")

    plane.kubectl("apply", "--server-side", "--filename", http_route_crd())
    wait(lambda: serving.get(HTTP_ROUTES, NAME), "the HTTPRoute")
    assert answer(serving) == [Backend(NAME, 100)]
    status = until(serving, "True", Reason.ROUTE_ACCEPTED)
    assert status.url == "http://demo.example/v2"

    serving.change(**pinned(BETTER, strategy=by_steps((7, "1h"))))

    def divided() -> AdapterDeploymentStatus | None:
        answer(serving)
        found = serving.status()
        return found if found.candidate and found.candidate.canary and found.candidate.canary.until else None

    status = wait(divided, "the first step", describe=lambda: str(serving.status()))
    assert status.candidate is not None
    new = status.candidate.revision
    named = f"{NAME}-{new}-candidate"
    assert answer(serving) == [Backend(NAME, 93), Backend(named, 7)]
    assert serving.reached() == {old}, "inside the cluster nobody meets the canary"
    assert serving.get(SERVICES, named) is not None
    serving.crash(new)
    wait(lambda: answer(serving) == [Backend(NAME, 100)], "all requests to go back")
    status = serving.until(ServingPhase.DEGRADED)
    assert status.candidate is not None
    assert status.candidate.state is RevisionState.FAILED
    wait(lambda: serving.get(SERVICES, named) is None, "its Service to go")

    serving.change(rerun="again", strategy=by_steps((50, "0s")))
    wait(lambda: answer(serving) and serving.traffic() == new, "the promotion")
    wait(lambda: answer(serving) == [Backend(NAME, 100)], "the route to follow")

    plane.kubectl("delete", "--filename", http_route_crd())
    assert until(serving, "False", Reason.ROUTE_UNAVAILABLE).stable is not None
    serving.change(access={"route": {"httpRoute": None} | INGRESS})
    made: Object = wait(lambda: serving.get(INGRESSES, NAME), "the Ingress")
    assert made["metadata"]["annotations"] == {"a/b": "c"}
    load_balancer = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    serving.team.api.patch_status(INGRESSES, serving.team.namespace, NAME, load_balancer)
    assert until(serving, "True", Reason.ROUTE_ACCEPTED).url == "https://demo.example"

    serving.create(pinned(GOOD, replicas=0, access={"route": INGRESS}), name="younger")

    def younger() -> tuple[str, str]:
        found = serving.get(ADAPTERDEPLOYMENTS, "younger")
        assert found is not None
        return accepted(AdapterDeploymentStatus.model_validate(found.get("status") or {}))

    wait(lambda: younger() == ("False", Reason.ROUTE_TAKEN), "the younger one to say so")
    serving.change(access={"route": None})
    wait(lambda: serving.get(INGRESSES, NAME) is None, "the Ingress to go")
    wait(lambda: younger() != ("False", Reason.ROUTE_TAKEN), "the younger one to have its turn")


def test_an_endpoint_keeps_the_hosts_that_nobody_else_has(routes: Serving, plane: ControlPlane) -> None:
    """It is older, and the other one has one of its hosts: nobody else could have an HTTPRoute at the time."""
    serving = routes
    serving.start(serving=OFFERED)
    two = HTTP["httpRoute"] | {"hostnames": ["demo.example", "own.example"], "pathPrefix": "/"}
    serving.create(pinned(GOOD, access={"route": {"httpRoute": two}}))
    serving.until(ServingPhase.READY)
    until(serving, "False", Reason.ROUTE_UNAVAILABLE)
    younger = serving.create(pinned(GOOD, access={"route": INGRESS}), name="younger")
    wait(lambda: serving.get(INGRESSES, "younger"), "the Ingress of the one that can have the host")

    plane.kubectl("apply", "--server-side", "--filename", http_route_crd())
    status = until(serving, "False", Reason.ROUTE_TAKEN)
    assert status.url == "http://own.example"
    said = next(each.message for each in status.conditions if each.type == "RouteAccepted")
    assert "AdapterDeployment younger already has demo.example/" in said

    def hosts() -> list[str]:
        live = serving.get(HTTP_ROUTES, NAME)
        return live["spec"]["hostnames"] if live else []

    assert hosts() == ["own.example"]
    serving.team.api.delete(ADAPTERDEPLOYMENTS, serving.team.namespace, "younger", younger["metadata"]["uid"])
    wait(lambda: hosts() == ["demo.example", "own.example"], "the host that the other one has given up")
    answer(serving)
    assert until(serving, "True", Reason.ROUTE_ACCEPTED).url == "http://demo.example"
