"""What a way in from outside asks for: its gateways or class, and names that no two endpoints share. Pure."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from finetune_api.routes import MAX_HOSTNAMES, Route
from finetune_operator.framework.objects import Object
from finetune_operator.settings import Settings
from finetune_operator.tenancy.claim import Claim, Subject, secret_claim
from finetune_operator.tenancy.verdict import tenancy_violation

_PLACE: Final = "spec.access.route"


class Address(NamedTuple):
    """A host and a path by which clients outside of the cluster know an endpoint."""

    host: str
    path_prefix: str

    def __str__(self) -> str:
        return f"{self.host}{self.path_prefix}"


def route_claims(namespace: str, route: Route | None) -> Iterator[Claim]:
    """What the platform's tenancy may limit."""
    if route is not None and (http := route.http_route) is not None:
        for number, parent in enumerate(http.parent_refs):
            gateway = f"{parent.namespace or namespace}/{parent.name}"
            yield Claim(Subject.GATEWAY, f"{_PLACE}.httpRoute.parentRefs[{number}]", gateway)
        for number, host in enumerate(http.hostnames):
            yield Claim(Subject.HOSTNAME, f"{_PLACE}.httpRoute.hostnames[{number}]", host)
    if route is not None and (ingress := route.ingress) is not None:
        yield Claim(Subject.INGRESS_CLASS, f"{_PLACE}.ingress.className", ingress.class_name)
        yield Claim(Subject.HOSTNAME, f"{_PLACE}.ingress.host", ingress.host)
        yield from secret_claim(f"{_PLACE}.ingress.tlsSecretRef.name", ingress.tls_secret_ref)


def route_violation(settings: Settings, namespace: str, route: Route) -> str:
    """What of a route the platform's tenancy does not allow; empty: nothing."""
    return tenancy_violation(settings.tenancy, settings.free_profiles, namespace, route_claims(namespace, route))


def addresses(route: Route) -> list[Address]:
    """The addresses of a route."""
    return [Address(host, route.path_prefix) for host in route.hosts]


def route_of(resource: Object) -> Route | None:
    """The route in a stored AdapterDeployment; None where it has none, or one that this version cannot read."""
    given: Any = ((resource.get("spec") or {}).get("access") or {}).get("route")
    try:
        return None if given is None else Route.model_validate(given, extra="ignore")
    except ValidationError:
        return None


def address_of(resource: Object, number: int) -> Address | None:
    """An address of a stored AdapterDeployment; None where it has not so many."""
    route = route_of(resource)
    found = addresses(route) if route else []
    return found[number] if number < len(found) else None


ADDRESS_INDEXES: Final = tuple(partial(address_of, number=number) for number in range(MAX_HOSTNAMES))
"""How the cache finds the AdapterDeployments that ask for an address."""


class Elder(NamedTuple):
    """An AdapterDeployment that is older, and asks for the same address."""

    address: Address
    namespace: str
    name: str

    def named(self, namespace: str) -> str:
        """Which one it is. Another namespace may belong to another tenant: names in it are not disclosed."""
        own = self.namespace == namespace
        return f"AdapterDeployment {self.name}, which is older," if own else "An older one in another namespace"


def elder(resource: Object, others: Iterable[Object], address: Address, settings: Settings) -> Elder | None:
    """The oldest of the others that asks for an address and may have it, if it is older than the resource. By age and
    uid, so that everybody finds the same one."""
    found = [
        each
        for each in others
        if _age(each) < _age(resource) and "deletionTimestamp" not in each["metadata"] and _may(each, settings)
    ]
    if not found:
        return None
    metadata = min(found, key=_age)["metadata"]
    return Elder(address, metadata["namespace"], metadata["name"])


def _may(resource: Object, settings: Settings) -> bool:
    """Whether an AdapterDeployment may have the route that it asks for: nobody keeps a name from others otherwise."""
    route = route_of(resource)
    return route is not None and not route_violation(settings, resource["metadata"]["namespace"], route)


def _age(resource: Object) -> tuple[str, str]:
    """RFC 3339 in UTC sorts as text."""
    return str(resource["metadata"].get("creationTimestamp", "")), resource["metadata"]["uid"]
