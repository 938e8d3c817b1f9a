"""How the pods of one training find each other: a headless Service gives each a stable name.

https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
"""

from finetune_api import meta
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner


def peers_service(owner: Owner, job: str, run: str, stage: str) -> Object:
    """Names like ``<job>-0.<job>`` for the pods of a stage's Job, also before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(job, {meta.LABEL_RUN: run, meta.LABEL_STAGE: stage}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {meta.LABEL_JOB: job},
            "ports": [{"name": "training", "port": meta.TRAINING_PORT, "protocol": "TCP"}],
        },
    }
