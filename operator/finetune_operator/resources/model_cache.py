"""The volume that keeps base models for the stages that read one.

A claim and no hostPath, which the restricted Pod Security Standard forbids. The stages lock and rename in it, so that
several pods may write at the same time (``finetune_jobs.store.cache``).
"""

from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import Object

_VOLUME: Final = "model-cache"


def model_cache_volumes(claim: str) -> list[Object]:
    """The volume of a claim; none for an empty name."""
    return [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": claim}}] if claim else []


def model_cache_mounts(claim: str) -> list[Object]:
    """Where the container mounts it."""
    return [{"name": _VOLUME, "mountPath": meta.MODEL_CACHE_DIR}] if claim else []


def model_cache_arguments(claim: str) -> list[str]:
    """How the stage is told of it."""
    return ["--model-cache", meta.MODEL_CACHE_DIR] if claim else []
