"""Who may reach the pods of a revision: only the verifier, until the revision is promoted.

There is one policy per revision, changed in place at the promotion, so that no pod is restarted or relabelled.
"""

from finetune_api import meta
from finetune_api.stages import Stage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import deployment_name, server_labels


def candidate_policy(owner: Owner, revision: str) -> Object:
    """Only the verification pods of this resource."""
    verifier = {"podSelector": {"matchLabels": {**owner.labels, meta.LABEL_STAGE: Stage.VERIFY.value}}}
    return _policy(owner, revision, {"from": [verifier]})


def serving_policy(owner: Owner, revision: str) -> Object:
    """Everybody, on the serving port. Policies add up: the namespace's admin can allow more, but cannot restrict this
    with another policy, and a published Service answers."""
    return _policy(owner, revision, {})


def _policy(owner: Owner, revision: str, peers: Object) -> Object:
    labels = server_labels(owner, revision)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(deployment_name(owner, revision), labels),
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": meta.SERVING_PORT}], **peers}],
        },
    }
