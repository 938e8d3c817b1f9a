"""How many serving pods may go at once when nodes are drained: one, where there are several.

https://kubernetes.io/docs/tasks/run-application/configure-pdb/
"""

from typing import Final

from finetune_operator.framework.objects import DISRUPTION_BUDGETS, Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import server_labels

FEWEST: Final = 2
"""So many pods have a budget. With one, a budget would forbid every drain, or say nothing."""


def disruption_budget(owner: Owner, revision: str) -> Object:
    """The budget of the pods that the public Service sends clients to.

    Pods that are not ready may be evicted whatever it says: nobody loses an answer by it, and a server that crashes
    must not hold up the drain of its node.
    """
    labels = server_labels(owner, revision)
    return {
        "apiVersion": DISRUPTION_BUDGETS.api_version,
        "kind": DISRUPTION_BUDGETS.kind,
        "metadata": owner.metadata(owner.name, labels),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": labels},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
