"""Whether what pods serve fits the disk and the memory that their runtime gives them, before one starts. Pure.

Nothing that the admin has written is raised: it may be what the nodes have.
"""

from typing import Final

from finetune_operator.resources.drift import quantity
from finetune_operator.resources.pod import scratch_limit
from finetune_operator.runtimes import ENGINES
from finetune_operator.settings import Runtime

_MEMORY: Final = "memory"


def volume_violation(size: int, name: str, runtime: Runtime) -> str:
    """Why so many bytes do not fit the volume into which pods download them, or the cache; empty if they do, or their
    number is not known."""
    room, where = scratch_limit(runtime.pod), "pods of runtime {!r} have {} ({})"
    setting = "scratchSize" if room == runtime.pod.scratch_size else "pod.limits.ephemeral-storage"
    if cache := runtime.model_cache:
        room, where, setting = cache.size_limit, "the cache of runtime {!r} may hold {} ({})", "modelCache.sizeLimit"
    if not room or size <= (quantity(room) or 0):
        return ""
    return f"The artifact has {_gib(size)}; {where.format(name, room, setting)}."


def memory_violation(size: int, name: str, runtime: Runtime) -> str:
    """Why the server would be killed while it loads so many bytes of weights; empty if that is not known."""
    held, limit = ENGINES[runtime.engine].held_in_memory(runtime, size), runtime.pod.limits.get(_MEMORY, "")
    if not size or held <= (quantity(limit) or held):
        return ""
    return f"{_held(held, size, name)}; its pods have {limit} (pod.limits.memory)."


def memory_warning(size: int, name: str, runtime: Runtime) -> str:
    """That pods may start on a node without memory for so many bytes of weights, and be evicted: they ask for less, or
    for none. Empty if they do not, or that is not known."""
    held, pod = ENGINES[runtime.engine].held_in_memory(runtime, size), runtime.pod
    asked = pod.requests.get(_MEMORY) or pod.limits.get(_MEMORY, "")  # as the API server fills it in
    if not size or held <= (quantity(asked) or 0):
        return ""
    asks = f"ask the scheduler for {asked}" if asked else "ask the scheduler for none"
    return (
        f"{_held(held, size, name)}; its pods {asks} (pod.requests.memory), so they may start on a node that lacks it, "
        "and be evicted."
    )


def _held(held: int, size: int, name: str) -> str:
    return f"For {_gib(size)} of weights, the server of runtime {name!r} needs at least {_gib(held)} of memory"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
