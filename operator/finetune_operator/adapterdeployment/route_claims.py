"""What a way in from outside asks for: its gateways or class, and names that no two endpoints share. Pure."""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from finetune_api.routes import MAX_HOSTNAMES, Route
from finetune_operator.framework.conditions import ConditionType
from finetune_operator.framework.objects import HTTP_ROUTES, INGRESSES, Object, Resource
from finetune_operator.settings import Settings
from finetune_operator.tenancy.claim import Claim, Subject, secret_claim
from finetune_operator.tenancy.verdict import tenancy_violation

_PLACE: Final = "spec.access.route"
_API: Final = frozenset(
    {"v1", "inference", "invocations", "generate", "generate_stream", "tokenize", "chat_tokenize", "detokenize"}
)
"""How the paths begin to which clients send what they ask, below an endpoint's own path and with any engine."""


class Host(NamedTuple):
    """A host by which clients outside of the cluster may know several endpoints, each by a path of its own."""

    name: str


class Address(NamedTuple):
    """A host and a path by which clients outside of the cluster know an endpoint."""

    host: str
    path_prefix: str

    def __str__(self) -> str:
        return f"{self.host}{self.path_prefix}"

    def meets(self, other: "Address") -> bool:
        """Whether two endpoints cannot have both: they are the same, or one is where clients of the other ask. A
        gateway follows the longest prefix, so that one would get what they ask, and their keys."""
        return self == other or self._cuts_into(other) or other._cuts_into(self)

    def _cuts_into(self, other: "Address") -> bool:
        own, whole = self.path_prefix, f"{other.path_prefix.rstrip('/')}/"
        return self.host == other.host and own.startswith(whole) and own.removeprefix(whole).partition("/")[0] in _API


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


def route_kind(route: Route) -> Resource:
    """The kind of object that a route is."""
    return HTTP_ROUTES if route.http_route is not None else INGRESSES


def route_violation(settings: Settings, namespace: str, route: Route) -> str:
    """What of a route the platform's tenancy does not allow; empty: nothing."""
    return tenancy_violation(settings.tenancy, settings.free_profiles, namespace, route_claims(namespace, route))


def addresses(route: Route) -> list[Address]:
    """The addresses of a route."""
    return [Address(host, route.path_prefix) for host in route.hosts]


def own_part(route: Route, taken: Iterable[Address]) -> Route | None:
    """A route for those of its hosts that nobody else has; None: it has none of its own."""
    others = {each.host for each in taken}
    left = [host for host in route.hosts if host not in others]
    if not left or route.http_route is None:
        return route if left else None
    return route.model_copy(update={"http_route": route.http_route.model_copy(update={"hostnames": left})})


def route_of(resource: Object) -> Route | None:
    """The route in a stored AdapterDeployment; None where it has none, or one that this version cannot read."""
    given: Any = ((resource.get("spec") or {}).get("access") or {}).get("route")
    try:
        return None if given is None else Route.model_validate(given, extra="ignore")
    except ValidationError:
        return None


def host_at(resource: Object, number: int) -> Host | None:
    """A host of a stored AdapterDeployment; None where it has not so many."""
    route = route_of(resource)
    found = route.hosts if route else []
    return Host(found[number]) if number < len(found) else None


HOST_INDEXES: Final = tuple(partial(host_at, number=number) for number in range(MAX_HOSTNAMES))
"""How the cache finds the AdapterDeployments that ask for a host."""


def address_on(resource: Object, host: str) -> Address | None:
    """The address of a stored AdapterDeployment on a host; None where it asks for none there."""
    route = route_of(resource)
    return Address(host, route.path_prefix) if route and host in route.hosts else None


class Holder(NamedTuple):
    """An AdapterDeployment that has an address, or is to have it, before another one that asks for the same."""

    address: Address
    namespace: str
    name: str
    has_it: bool
    """Whether its route is there already; if not, it goes first because it is older."""
    other: Address | None = None
    """What it asks for, where that is not the same address but meets it."""

    def told(self, namespace: str) -> str:
        """Who has the address, in a sentence. Another namespace may belong to another tenant: names in it are not
        disclosed."""
        own = self.namespace == namespace
        if self.has_it:
            who = f"AdapterDeployment {self.name}" if own else "One in another namespace"
            does, too = "already has", ""
        else:
            who = f"AdapterDeployment {self.name}, which is older," if own else "An older one in another namespace"
            does, too = "asks for", " too"
        if self.other is None:
            return f"{who} {does} {self.address}{too}."
        theirs = str(self.other) if own else f"another path of {self.address.host}"
        longer = len(self.address.path_prefix) > len(self.other.path_prefix)
        gets = f"{self.address} would get what its" if longer else f"it would get what {self.address}'s"
        return f"{who} {does} {theirs}: {gets} clients ask."


def holder(
    resource: Object,
    asking: Iterable[Object],
    address: Address,
    settings: Settings,
    has: Callable[[Object], bool],
    lacking: Collection[Resource] = (),
) -> Holder | None:
    """Who of those that ask for an address, or for one that meets it, goes before the resource, if anyone does: one
    whose route is there keeps its own, whoever asks later; among others the oldest, by age and uid, so that everybody
    finds the same one.

    Args:
        resource: asks for the address too.
        asking: those that ask for its host. Only those count that may and can have what they ask for.
        address: the address.
        settings: what the platform allows and offers.
        has: whether the route of one of them is there for what it asks (``has_address``).
        lacking: kinds of routes that the API server does not have.
    """
    mine = (not has(resource), _age(resource))
    others = [
        (not has(each), _age(each), each["metadata"], theirs)
        for each in asking
        if each["metadata"]["uid"] != resource["metadata"]["uid"]
        and "deletionTimestamp" not in each["metadata"]
        and (theirs := address_on(each, address.host)) is not None
        and theirs.meets(address)
        and _may(each, settings, lacking)
    ]
    first = min(others, key=lambda each: each[:2], default=None)
    if first is None or first[:2] >= mine:
        return None
    lacks_it, _, metadata, theirs = first
    other = None if theirs == address else theirs
    return Holder(address, metadata["namespace"], metadata["name"], has_it=not lacks_it, other=other)


def has_address(resource: Object, routes: Iterable[Object], address: Address) -> bool:
    """Whether an AdapterDeployment that asks for an address has it already.

    Args:
        resource: the AdapterDeployment.
        routes: its own HTTPRoutes and Ingresses, which may name only some of its hosts. If somebody has deleted them,
            its status still tells of them, if that is from a pass that looked at the route of this spec.
        address: the address.
    """
    live = [each for each in routes if "deletionTimestamp" not in each["metadata"]]
    if live:
        return any(address in _addresses_of(each) for each in live)
    status, generation = resource.get("status") or {}, resource["metadata"].get("generation")
    told = [each for each in status.get("conditions") or [] if each["type"] == ConditionType.ROUTE_ACCEPTED]
    if not status.get("url") or not any(each.get("observedGeneration") == generation for each in told):
        return False
    # Unless it had all of its hosts, only the one in the URL is known to be its own.
    return any(each["status"] == "True" for each in told) or _is_in(status["url"], address)


def _is_in(url: str, address: Address) -> bool:
    host, slash, path = url.partition("://")[2].partition("/")
    return Address(host, slash + path or "/") == address


def _addresses_of(live: Object) -> Iterator[Address]:
    """The addresses that an HTTPRoute or an Ingress names."""
    spec = live.get("spec") or {}
    for rule in spec.get("rules") or []:
        for match in rule.get("matches") or []:
            for host in spec.get("hostnames") or []:
                yield Address(host, (match.get("path") or {}).get("value", ""))
        for path in (rule.get("http") or {}).get("paths") or []:
            yield Address(rule.get("host", ""), path.get("path", ""))


def _may(resource: Object, settings: Settings, lacking: Collection[Resource]) -> bool:
    """Whether an AdapterDeployment may have the route that it asks for, and the platform has such routes: nobody keeps
    a name from others otherwise. Where routes of a former kind stay, unseen, they may be there and have clients."""
    route = route_of(resource)
    if route is None:
        return False
    kind, serving = route_kind(route), settings.serving
    stays = kind not in serving.routes and kind not in serving.watched_routes
    is_offered = stays or (kind in serving.routes and kind not in lacking)
    return is_offered and not route_violation(settings, resource["metadata"]["namespace"], route)


def _age(resource: Object) -> tuple[str, str]:
    """RFC 3339 in UTC sorts as text."""
    return str(resource["metadata"].get("creationTimestamp", "")), resource["metadata"]["uid"]
