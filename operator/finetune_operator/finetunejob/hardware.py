"""The admin's profiles as facts for the stages: hardware of the pods with a model, and its price."""

from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_operator.resources.drift import quantity
from finetune_operator.settings import Profile, Settings

_GIB: Final = 1 << 30
_GPUS: Final = "nvidia.com/gpu"


def hardware_facts(name: str, profile: Profile) -> HardwareFacts:
    """Hardware of a profile's pods with a model."""
    limits, gpu = profile.accelerator.limits, profile.gpu
    cpus = float(quantity(limits.get("cpu", "0")) or 0)
    memory = float(quantity(limits.get("memory", "0")) or 0) / _GIB
    if gpu is None:
        return HardwareFacts(profile=name, memory_gib=memory, cpus=cpus, nodes=profile.nodes)
    return HardwareFacts(
        profile=name,
        name=gpu.name,
        count=gpu.count,
        memory_gib=gpu.memory_gib,
        peak_tflops=gpu.peak_tflops,
        usd_per_hour=gpu.usd_per_hour,
        cpus=cpus,
        nodes=profile.nodes,
        pod_memory_gib=memory,
    )


def processes(profile: Profile) -> int:
    """Processes that train in one pod: one per GPU, or one on its CPUs."""
    return profile.gpu.count if profile.gpu else int(quantity(profile.accelerator.limits.get(_GPUS, "1")) or 1)


def other_facts(settings: Settings, name: str) -> list[HardwareFacts]:
    """The same for the platform's other profiles."""
    return [hardware_facts(other, profile) for other, profile in sorted(settings.profiles.items()) if other != name]
