"""How clients outside of the cluster reach an endpoint: an HTTPRoute of the Gateway API, or an Ingress.

https://gateway-api.sigs.k8s.io/reference/spec/ and https://kubernetes.io/docs/concepts/services-networking/ingress/
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.references import ObjectName, SecretRef
from finetune_api.rules import exactly_one_of
from finetune_api.spelled import spelled

NAMESPACE: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""A namespace's name, DNS-1123."""
HOSTNAME: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+$"
"""A host's full name, without a wildcard: that would take all names which nobody else has."""
PATH_PREFIX: Final = r"^(/|(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+)$"
"""Whole segments, none of them ``.`` or ``..``, and no slash at the end."""
MAX_PARENTS: Final = 4
"""So many gateways take one route."""
MAX_HOSTNAMES: Final = 4
"""So many names an endpoint has outside of the cluster."""

Hostname = Annotated[
    str,
    spelled(
        HOSTNAME,
        "write a host's full name in lower-case letters, digits, - and ., e.g. models.example.com; no wildcard",
        min_length=3,
        max_length=253,
    ),
]


Namespace = Annotated[
    str,
    spelled(
        NAMESPACE,
        "write lower-case letters, digits and -, starting and ending with a letter or digit",
        min_length=1,
        max_length=63,
    ),
]
PathPrefix = Annotated[
    str,
    spelled(
        PATH_PREFIX,
        "write /, or a path that starts with / and does not end with it, in letters, digits and ._~-, e.g. "
        "/transactions",
        min_length=1,
        max_length=128,
    ),
]


class ParentRef(ApiModel):
    """A Gateway, or one of its listeners."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: Namespace | None = None
    """Its namespace; by default that of this resource. The Gateway's listener must allow routes from here."""
    section_name: ObjectName | None = None
    """Name of one listener; by default all that fit the hostnames."""


class Scheme(StrEnum):
    """How a gateway's listener is spoken to."""

    HTTPS = "https"
    HTTP = "http"


class HttpRoute(ApiModel):
    """An HTTPRoute of the Gateway API."""

    parent_refs: Annotated[list[ParentRef], Field(min_length=1, max_length=MAX_PARENTS)]
    """The Gateways that take the route, as the platform allows (tenancy.rules[].gateways)."""
    hostnames: Annotated[list[Hostname], Field(min_length=1, max_length=MAX_HOSTNAMES)]
    """Names by which clients reach the endpoint, as the platform allows (tenancy.rules[].hostnames)."""
    path_prefix: PathPrefix = "/"
    """Where the endpoint's paths begin, e.g. /transactions: clients ask for /transactions/v1/chat/completions. The
    gateway takes it off (the filter URLRewrite, which not every gateway has)."""
    scheme: Scheme = Scheme.HTTPS
    """What the Gateway's listener speaks. It changes nothing but status.url."""


class IngressRoute(ApiModel):
    """An Ingress."""

    class_name: ObjectName
    """The IngressClass, as the platform allows (tenancy.rules[].ingressClasses)."""
    host: Hostname
    """Name by which clients reach the endpoint, as the platform allows (tenancy.rules[].hostnames)."""
    tls_secret_ref: SecretRef | None = None
    """Secret of the same namespace with the certificate for the host (keys tls.crt and tls.key), which the ingress
    controller reads. Without it, the Ingress says nothing of TLS."""


class Route(ApiModel):
    """A way in from outside of the cluster: exactly one of httpRoute and ingress."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("http_route", "ingress"))

    http_route: HttpRoute | None = None
    """An HTTPRoute, by which a canary also gets an exact share of the requests."""
    ingress: IngressRoute | None = None
    """An Ingress."""

    @model_validator(mode="after")
    def _one(self) -> "Route":
        if (self.http_route is None) == (self.ingress is None):
            raise ValueError("exactly one of httpRoute and ingress must be set")
        return self

    @property
    def hosts(self) -> list[str]:
        """The names by which clients reach the endpoint."""
        return list(self.http_route.hostnames) if self.http_route else [self.ingress.host] if self.ingress else []

    @property
    def path_prefix(self) -> str:
        """Where the endpoint's paths begin."""
        return self.http_route.path_prefix if self.http_route else "/"

    @property
    def urls(self) -> list[str]:
        """Where clients reach the endpoint."""
        scheme = self.http_route.scheme if self.http_route else Scheme.HTTP
        if self.ingress is not None and self.ingress.tls_secret_ref is not None:
            scheme = Scheme.HTTPS
        return [f"{scheme}://{host}{self.path_prefix.rstrip('/')}" for host in self.hosts]
