"""The two Services of an AdapterDeployment: the public one, and a candidate's for the verifier."""

from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import server_labels

PORT: Final = 80
"""Port of the Services; the pods' port has the name http."""


def public_service(owner: Owner, revision: str, *, is_shared: bool = False) -> Object:
    """The Service that clients use. Its selector switches the traffic: it names the one revision that serves.

    ``is_shared``: it names none, so that clients reach the serving pods of all revisions. Its own labels still tell the
    one that serves. Nothing that is not verified may have pods then.
    """
    service = _service(owner, owner.name, revision)
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


def candidate_service(owner: Owner, revision: str) -> Object:
    """The Service through which a candidate is verified before the public one points to it. It has the port of the
    self-check too, which the network opens to the verifier together with clients' port (``network_policy.py``)."""
    service = _service(owner, candidate_service_name(owner, revision), revision)
    port = meta.SELF_CHECK_PORT
    service["spec"]["ports"].append({"name": "self-check", "port": port, "targetPort": port, "protocol": "TCP"})
    return service


def candidate_service_name(owner: Owner, revision: str) -> str:
    """At most 59 characters; a label of a host name may have 63."""
    return f"{owner.name}-{revision}-candidate"


def service_url(owner: Owner, name: str, port: int = PORT) -> str:
    """Where pods in the cluster reach a Service."""
    return f"http://{name}.{owner.namespace}.svc:{port}"


def _service(owner: Owner, name: str, revision: str) -> Object:
    labels = server_labels(owner, revision)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(name, labels),
        "spec": {
            "type": "ClusterIP",
            "selector": dict(labels),
            "ports": [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
