"""Who may reach the pods of a revision: only the verifier, until the revision is verified; then clients, and whoever
compares a canary with what serves.

There is one policy per revision, changed in place at the promotion, so that no pod is restarted or relabelled.
"""

from collections.abc import Sequence

from finetune_api import meta
from finetune_api.stages import Stage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import deployment_name, server_labels


def candidate_policy(owner: Owner, revision: str) -> Object:
    """Only the verification pods of this resource."""
    return _policy(owner, revision, ())


def serving_policy(owner: Owner, revision: str, clients: Sequence[Object]) -> Object:
    """Those whom the platform's admin names, as NetworkPolicy peers, on the serving port.

    Policies add up: those of the namespace can allow more, but cannot restrict this one. So it is the admin's and not
    whoever writes a custom resource who decides.
    """
    return _policy(owner, revision, (_stage(owner, Stage.ANALYSE), *clients))


def _policy(owner: Owner, revision: str, clients: Sequence[Object]) -> Object:
    """The verifier is always among the peers: an empty list of them would mean everybody."""
    verifier = _stage(owner, Stage.VERIFY)
    labels = server_labels(owner, revision)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(deployment_name(owner, revision), labels),
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": meta.SERVING_PORT}], "from": [verifier, *clients]},
            ],
        },
    }


def _stage(owner: Owner, stage: Stage) -> Object:
    """Pods of a stage of this resource."""
    return {"podSelector": {"matchLabels": {**owner.labels, meta.LABEL_STAGE: stage.value}}}
