"""Who may reach the pods of a revision: only the verifier, until the revision is verified; then clients, and whoever
compares a canary with what serves.

There is one policy per revision, changed in place at the promotion, so that no pod is restarted or relabelled. The same
change opens the port of the self-check to the verifier, which does not need it: it sees by that when the network plugin
has applied the policy.

Where the pods have the proxy, clients reach only that; metrics are behind a port of their own.
"""

from collections.abc import Sequence

from finetune_api import meta
from finetune_api.stages import Stage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import deployment_name, server_labels
from finetune_operator.settings import ServingAccess


def candidate_policy(owner: Owner, revision: str, access: ServingAccess, *, has_proxy: bool = False) -> Object:
    """Only the verification pods of this resource, and who reads metrics."""
    return _policy(owner, revision, (), access.metrics_from if has_proxy else (), has_proxy=has_proxy)


def serving_policy(
    owner: Owner, revision: str, access: ServingAccess, *, has_proxy: bool = False, is_protected: bool = False
) -> Object:
    """Those whom the platform's admin names, as NetworkPolicy peers, on the port for clients; the analysis of a canary,
    where metrics are; and the verifier, where the self-check tells of adapters. Where clients need no keys and speak no
    TLS, so that they are no others than the admin names, they may read metrics on every engine.

    Policies add up: those of the namespace can allow more, but cannot restrict this one. So it is the admin's and not
    whoever writes a custom resource who decides.
    """
    analysis = _stage(owner, Stage.ANALYSE)
    if has_proxy:
        readers = (analysis, *access.metrics_from, *(() if is_protected else access.ingress_from))
        opened = _policy(owner, revision, access.ingress_from, readers, has_proxy=True)
    else:
        opened = _policy(owner, revision, (analysis, *access.ingress_from), (), has_proxy=False)
    opened["spec"]["ingress"].append(_rule(meta.SELF_CHECK_PORT, [_stage(owner, Stage.VERIFY)]))
    return opened


def _policy(
    owner: Owner, revision: str, clients: Sequence[Object], readers: Sequence[Object], *, has_proxy: bool
) -> Object:
    """The verifier is always among the peers: an empty list of them would mean everybody."""
    verifier = _stage(owner, Stage.VERIFY)
    labels = server_labels(owner, revision)
    port = meta.CLIENT_PORT if has_proxy else meta.SERVING_PORT
    metrics = [_rule(meta.INNER_PORT, readers)] if readers else []
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(deployment_name(owner, revision), labels),
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress"],
            "ingress": [_rule(port, (verifier, *clients)), *metrics],
        },
    }


def _rule(port: int, peers: Sequence[Object]) -> Object:
    """Who may reach a port."""
    return {"ports": [{"protocol": "TCP", "port": port}], "from": list(peers)}


def _stage(owner: Owner, stage: Stage) -> Object:
    """Pods of a stage of this resource."""
    return {"podSelector": {"matchLabels": {**owner.labels, meta.LABEL_STAGE: stage.value}}}
