"""Ways in from outside of the cluster: an HTTPRoute or an Ingress, which send clients to an endpoint's Services."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from finetune_api.routes import HttpRoute, IngressRoute, ParentRef
from finetune_operator.framework.objects import HTTP_ROUTES, INGRESSES, Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.service import PORT

GATEWAY_GROUP = HTTP_ROUTES.api_version.partition("/")[0]


class Backend(NamedTuple):
    """A Service, and its share of the requests: its weight among all weights."""

    service: str
    weight: int


def http_route(owner: Owner, asked: HttpRoute, backends: Sequence[Backend], port: int = PORT) -> Object:
    """The HTTPRoute of an endpoint, which has its name. Paths below a prefix reach the servers without it. ``port``:
    that of its Services."""
    rule: dict[str, Any] = {"matches": [{"path": {"type": "PathPrefix", "value": asked.path_prefix}}]}
    if asked.path_prefix != "/":
        path = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": {"path": path}}]
    rule["backendRefs"] = [
        {"group": "", "kind": "Service", "name": each.service, "port": port, "weight": each.weight} for each in backends
    ]
    return {
        "apiVersion": HTTP_ROUTES.api_version,
        "kind": HTTP_ROUTES.kind,
        "metadata": owner.metadata(owner.name),
        "spec": {
            "parentRefs": [_parent(each) for each in asked.parent_refs],
            "hostnames": list(asked.hostnames),
            "rules": [rule],
        },
    }


def backends_of(route: Object) -> list[Backend]:
    """Where an HTTPRoute sends requests to."""
    rules = route["spec"].get("rules") or []
    found = [backend for rule in rules for backend in rule.get("backendRefs") or []]
    return [Backend(each["name"], each.get("weight", 1)) for each in found]


def ingress(owner: Owner, asked: IngressRoute, annotations: Mapping[str, str], port: int = PORT) -> Object:
    """The Ingress of an endpoint, which has its name; ``port``: that of its Service."""
    backend = {"service": {"name": owner.name, "port": {"number": port}}}
    tls: dict[str, Any] = {}
    if asked.tls_secret_ref is not None:
        tls["tls"] = [{"hosts": [asked.host], "secretName": asked.tls_secret_ref.name}]
    return {
        "apiVersion": INGRESSES.api_version,
        "kind": INGRESSES.kind,
        "metadata": owner.metadata(owner.name) | ({"annotations": dict(annotations)} if annotations else {}),
        "spec": {
            "ingressClassName": asked.class_name,
            **tls,
            "rules": [
                {"host": asked.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
            ],
        },
    }


def _parent(asked: ParentRef) -> Object:
    given = {"namespace": asked.namespace, "sectionName": asked.section_name}
    named = {"group": GATEWAY_GROUP, "kind": "Gateway", "name": asked.name}
    return named | {field: value for field, value in given.items() if value is not None}
