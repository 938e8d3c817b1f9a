"""The two Services of an AdapterDeployment: the public one, and a candidate's for the verifier."""

from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.client_proxy import client_port_name, host_of
from finetune_operator.resources.deployment import server_labels

PORT: Final = 80
"""Port of the Services of pods that speak HTTP; the pods' port has the name http."""
TLS_PORT: Final = 443
"""The same of pods that speak TLS; the pods' port has the name https."""


def port_of(*, tls: bool) -> int:
    """Port of the Services for clients."""
    return TLS_PORT if tls else PORT


def public_service(owner: Owner, revision: str, *, is_shared: bool = False, tls: bool = False) -> Object:
    """The Service that clients use. Its selector switches the traffic: it names the one revision that serves.

    ``is_shared``: it names none, so that clients reach the serving pods of all revisions. Its own labels still tell the
    one that serves. Nothing that is not verified may have pods then. ``tls``: its pods speak TLS, and nothing else.
    """
    service = _service(owner, owner.name, revision, tls=tls)
    if is_shared:
        del service["spec"]["selector"][meta.LABEL_REVISION]
    return service


def names_no_revision(service: Object) -> bool:
    """Whether the public Service sends clients to the serving pods of all revisions."""
    return meta.LABEL_REVISION not in service["spec"]["selector"]


def serving_revision_of(service: Object) -> str:
    """The revision that the public Service names as the one that serves."""
    labels = service["metadata"].get("labels") or {}
    return str(service["spec"]["selector"].get(meta.LABEL_REVISION) or labels.get(meta.LABEL_REVISION, ""))


def leads_elsewhere(live: Object, wanted: Object) -> bool:
    """Whether a Service has the port of the other protocol. Server-side apply would leave it there beside the one that
    is wanted: it was made by a create, which counts as another's."""
    names = {client_port_name(tls=True), client_port_name(tls=False)}
    have, want = (
        {each.get("name") for each in service["spec"].get("ports") or []} & names for service in (live, wanted)
    )
    return have != want


def candidate_service(owner: Owner, revision: str, *, tls: bool = False) -> Object:
    """The Service through which a candidate is verified before the public one points to it. It has the port of the
    self-check too, which the network opens to the verifier together with clients' port (``network_policy.py``)."""
    service = _service(owner, candidate_service_name(owner, revision), revision, tls=tls)
    port = meta.SELF_CHECK_PORT
    service["spec"]["ports"].append({"name": "self-check", "port": port, "targetPort": port, "protocol": "TCP"})
    return service


def candidate_service_name(owner: Owner, revision: str) -> str:
    """At most 59 characters; a label of a host name may have 63."""
    return f"{owner.name}-{revision}-candidate"


def service_url(owner: Owner, name: str, port: int = 0, *, tls: bool = False) -> str:
    """Where pods in the cluster reach a Service; ``port``: another one than clients use."""
    return f"{client_port_name(tls=tls)}://{host_of(owner, name)}:{port or port_of(tls=tls)}"


def _service(owner: Owner, name: str, revision: str, *, tls: bool) -> Object:
    labels, port = server_labels(owner, revision), client_port_name(tls=tls)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(name, labels),
        "spec": {
            "type": "ClusterIP",
            "selector": dict(labels),
            "ports": [{"name": port, "port": port_of(tls=tls), "targetPort": port, "protocol": "TCP"}],
        },
    }
