"""The volume that keeps models for the stages, and for the servers, that read one.

A claim and no hostPath, which the restricted Pod Security Standard forbids. The stages lock and rename in it, so that
several pods may write at the same time (``finetune_jobs.store.cache``).
"""

from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import Object
from finetune_operator.resources.drift import quantity
from finetune_operator.settings import ModelCache

_VOLUME: Final = "model-cache"


def model_cache_volumes(cache: ModelCache | None) -> list[Object]:
    """The volume of its claim; none without a cache."""
    return [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": cache.claim_name}}] if cache else []


def model_cache_mounts(cache: ModelCache | None, *, read_only: bool = False) -> list[Object]:
    """Where the container mounts it."""
    access: Object = {"readOnly": True} if read_only else {}
    return [{"name": _VOLUME, "mountPath": meta.MODEL_CACHE_DIR, **access}] if cache else []


def model_cache_arguments(cache: ModelCache | None) -> list[str]:
    """How the stage is told of it."""
    if cache is None:
        return []
    limit = ["--model-cache-limit", str(model_cache_limit(cache))] if cache.size_limit else []
    return ["--model-cache", meta.MODEL_CACHE_DIR, *limit]


def model_cache_limit(cache: ModelCache) -> int:
    """The most that it may hold, in bytes; 0: what its volume holds."""
    return int(quantity(cache.size_limit) or 0)
