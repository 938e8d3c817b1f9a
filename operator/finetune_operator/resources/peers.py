"""How the pods of one training find each other: a headless Service, which gives each a stable name.

https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
"""

from finetune_api import meta
from finetune_operator.actions import Object
from finetune_operator.resources.pods import StageRequest


def peers_service(request: StageRequest) -> Object:
    """Names like ``<job>-0.<job>`` for the pods of the stage's Job, also before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": request.owner.metadata(request.name, request.all_labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {meta.LABEL_JOB: request.name},
            "ports": [{"name": "training", "port": meta.TRAINING_PORT, "protocol": "TCP"}],
        },
    }
