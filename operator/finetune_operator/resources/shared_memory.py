"""A pod's own /dev/shm, through which processes with one GPU each exchange data (NCCL).

The container runtime's default is 64 MiB, too little where GPUs cannot reach each other's memory. The size is a limit:
only what is written counts towards the container's memory limit.
"""

from typing import Final

from finetune_operator.framework.objects import Object

_VOLUME: Final = "shared-memory"


def shared_memory_volumes(size: str) -> list[Object]:
    """The volume, at most this large; none for an empty size."""
    return [{"name": _VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": size}}] if size else []


def shared_memory_mounts(size: str) -> list[Object]:
    """Where the container mounts it."""
    return [{"name": _VOLUME, "mountPath": "/dev/shm"}] if size else []  # noqa: S108 - a path in the pod
