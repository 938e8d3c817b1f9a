"""Who may reach the pods of a revision: the verifier alone, until the revision is promoted.

One policy per revision, replaced in place at the promotion, so that no pod is restarted or labelled anew for it.
"""

from finetune_api import meta
from finetune_api.stages import Stage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import deployment_name, server_labels


def candidate_policy(owner: Owner, revision: str) -> Object:
    """Only the verification pods of this very resource."""
    verifier = {"podSelector": {"matchLabels": {**owner.labels, meta.LABEL_STAGE: Stage.VERIFY.value}}}
    return _policy(owner, revision, {"from": [verifier]})


def serving_policy(owner: Owner, revision: str) -> Object:
    """Everybody, on the serving port. Who may be narrowed down further by policies of the namespace's admin is up to
    him: policies add up, so that this one keeps the promise that a published Service answers."""
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
