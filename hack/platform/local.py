"""The platform on the local cluster: the operator from its chart, the object store, namespaces that may run jobs."""

from __future__ import annotations

from hack.cluster import images
from hack.cluster.layout import REPOSITORY
from hack.platform import object_store
from hack.platform.kubectl import Kubectl

RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
RUNNER = "finetune-runner"
CHART = REPOSITORY / "charts" / "finetune-operator"


def install_platform(kubectl: Kubectl) -> None:
    """Operator and object store, from the images that the cluster holds; idempotent."""
    install_operator(kubectl)
    object_store.install(kubectl, images.reference("seaweedfs"))


def prepare_namespace(kubectl: Kubectl, name: str, key: object_store.Key = object_store.OWNER) -> None:
    """What an admin does for a team: a restricted namespace, the runner ServiceAccount, a Secret for the store."""
    kubectl = kubectl.within(name)
    kubectl.apply(
        object_store.restricted_namespace(name),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": RUNNER}},
        key.secret("s3-credentials"),
    )
