"""A pod's own /dev/shm, through which processes with a GPU each hand over what they compute (NCCL).

The container runtime's has 64 MiB, too little where GPUs do not reach each other's memory. A size is a limit: what is
written counts for the container's memory limit, and nothing else does.
"""

from typing import Final

from finetune_operator.framework.objects import Object

_VOLUME: Final = "shared-memory"


def shared_memory_volumes(size: str) -> list[Object]:
    """At most so much; none for an empty size."""
    return [{"name": _VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": size}}] if size else []


def shared_memory_mounts(size: str) -> list[Object]:
    """Where the container finds it."""
    return [{"name": _VOLUME, "mountPath": "/dev/shm"}] if size else []  # noqa: S108 - a path in the pod
