"""The admin's rules, as the chart's values have them."""

from fnmatch import fnmatchcase
from typing import Annotated, Final

from pydantic import Field, model_validator

from finetune_api.base import ApiModel

NAMESPACE_PLACEHOLDER: Final = "{namespace}"
"""Stands for the name of the namespace that asks, in prefixes, gateways and hostnames."""
_PART: Final = r"([A-Za-z0-9!_'()=+@-]|\{namespace\})"
_SEGMENT: Final = rf"\.{{0,2}}{_PART}({_PART}|\.)*"

NameGlob = Annotated[str, Field(pattern=r"^[a-z0-9*]([-a-z0-9*]*[a-z0-9*])?$", max_length=63)]
"""A name, in which ``*`` stands for any characters."""
DottedGlob = Annotated[str, Field(pattern=r"^[a-z0-9*]([-a-z0-9.*]*[a-z0-9*])?$", max_length=253)]
"""The name of a host or Secret, in which ``*`` stands for any characters."""
GatewayGlob = Annotated[
    str,
    Field(pattern=r"^([a-z0-9.*-]|\{namespace\})+/[a-z0-9*]([-a-z0-9.*]*[a-z0-9*])?$", max_length=317),
]
"""Namespace and name of a Gateway, in which ``*`` stands for any characters, and the placeholder for the namespace."""
HostnameGlob = Annotated[str, Field(pattern=r"^([a-z0-9.*-]|\{namespace\})+$", max_length=253)]
"""A host's name, likewise."""
Prefix = Annotated[str, Field(pattern=rf"^(s3|hf)://({_SEGMENT}(/{_SEGMENT})*/?)?$", max_length=512)]
"""Where something may lie: at this URI, or below it. No part of its path is empty, ``.`` or ``..``."""
AWS: Final = "AWS"
"""The store of a storage without an endpoint."""
Endpoint = Annotated[str, Field(pattern=rf"^({AWS}|https?://[A-Za-z0-9.-]+(:[0-9]{{1,5}})?)$", max_length=253)]
"""The URL of a store, as in a custom resource's storage.endpoint, or AWS."""


class TenancyRule(ApiModel):
    """What some namespaces may use. An omitted list limits nothing, except insecureHosts; an empty list allows
    nothing."""

    namespaces: Annotated[list[NameGlob], Field(min_length=1)]
    """Namespaces that the rule is for; * matches any characters, e.g. team-*."""
    profiles: list[NameGlob] | None = None
    """Profiles that FineTuneJobs may name."""
    runtimes: list[NameGlob] | None = None
    """Runtimes that AdapterDeployments may name."""
    outputs: list[Prefix] | None = None
    """Allowed prefixes of spec.output.uri, e.g. s3://models/{namespace}; they match whole path segments."""
    inputs: list[Prefix] | None = None
    """Allowed prefixes of data, base models and served artifacts: s3://bucket/prefix, hf://organisation/name; s3:// or
    hf:// alone allows all. Everything below outputs may be read too."""
    endpoints: list[Endpoint] | None = None
    """Allowed stores: a storage.endpoint, or AWS for a storage without one. Without this list, a bucket name may refer
    to anyone's store, and keys are sent there."""
    hosts: list[DottedGlob] | None = None
    """Allowed hosts of teachers, judges, tracking servers, registries and hubs to push to, on any port, e.g.
    api.openai.com, *.models.svc; prompts, metrics, models and keys are sent there."""
    insecure_hosts: list[DottedGlob] = []
    """Hosts outside of the cluster that may be reached by http://, besides the endpoints that are listed with it. All
    others need https://."""
    secrets: list[DottedGlob] | None = None
    """Allowed names of the Secrets whose keys are sent to a store, a hub, teacher, judge, tracking server or registry,
    sign what is published, are asked of an endpoint's clients, or are the certificate of an Ingress or of an endpoint's
    pods, e.g. finetune-*."""
    gateways: list[GatewayGlob] | None = None
    """Allowed Gateways of HTTPRoutes, each as namespace/name, e.g. gateways/public or {namespace}/*."""
    ingress_classes: list[DottedGlob] | None = None
    """Allowed classes of Ingresses."""
    hostnames: list[HostnameGlob] | None = None
    """Allowed names of endpoints outside of the cluster, e.g. *.{namespace}.models.example. Without this list, a
    namespace may take any name that nobody has yet."""
    max_usd_per_run: Annotated[float, Field(ge=0)] | None = None
    """Maximum spec.budget.maxCost; jobs on a profile with a price must then set it."""

    def is_for(self, namespace: str) -> bool:
        """Whether the rule speaks of a namespace."""
        return any(fnmatchcase(namespace, glob) for glob in self.namespaces)


class Tenancy(ApiModel):
    """Which namespaces may use what."""

    open: bool = False
    """Allow everything to everybody. Only without rules."""
    rules: list[TenancyRule] = []
    """One of them must allow everything that a custom resource asks for. Without rules, profiles with a price are
    closed, and http:// is for the inside of the cluster."""

    @model_validator(mode="after")
    def _open_or_ruled(self) -> "Tenancy":
        if self.open and self.rules:
            raise ValueError("open allows everything, so rules would limit nothing: remove one of them")
        return self
