"""The admin's runtimes as facts for the table of what serves what (``finetune_api.compatibility``)."""

from typing import Final

from finetune_api.suitability import ServingFacts
from finetune_operator.runtimes import ENGINES
from finetune_operator.runtimes.plan import has_gpu
from finetune_operator.settings import Runtime, Settings

_PRODUCT_LABELS: Final = (
    "nvidia.com/gpu.product",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "eks.amazonaws.com/instance-gpu-name",
)
"""Node labels with a GPU's product name: of GPU feature discovery, GKE, Karpenter and EKS Auto Mode."""


def serving_facts(name: str, runtime: Runtime) -> ServingFacts:
    """A runtime: its engine, and the GPU of its pods as far as their node selector names it."""
    nodes = runtime.pod.node_selector
    return ServingFacts(
        name=name,
        engine=runtime.engine.value,
        gpu=has_gpu(runtime),
        card=next((nodes[label] for label in _PRODUCT_LABELS if nodes.get(label)), ""),
        dtype=ENGINES[runtime.engine].dtype(runtime),
    )


def offered_facts(settings: Settings) -> list[ServingFacts]:
    """The same for every runtime that the platform offers."""
    return [serving_facts(name, runtime) for name, runtime in sorted(settings.runtimes.items())]
