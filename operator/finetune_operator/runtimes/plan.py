"""What an engine's pod is made of. The resource builders read this and never check which engine it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_operator.framework.objects import Object


@dataclass(frozen=True)
class ServingPlan:
    """One server container, apart from its image, resources and security context."""

    env: Mapping[str, str]
    """Settings of the server."""
    startup: Object
    """Probe that delays the others until the model is loaded; its failure restarts the container."""
    readiness: Object
    """Probe that decides whether Services send requests."""
    liveness: Object
    """Probe that restarts a server which hangs."""
    drain_seconds: int
    """Wait between the pod's removal from its Services and SIGTERM, so that every node knows of the removal."""
    grace_seconds: int
    """From the start of the drain to SIGKILL."""
    args: tuple[str, ...] = ()
    """Arguments of the image's entry point."""
    writable: tuple[str, ...] = ()
    """Folders that the server writes to, besides /tmp."""
    shared_memory: str = ""
    """Size of /dev/shm; empty leaves the container runtime's default (64 MiB)."""
