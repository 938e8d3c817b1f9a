"""The admin's profiles as facts for the stages: hardware of the pods with a model, and its price. Training gets all of
a profile's GPUs, the stages after it one, or as many as they need.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Final

from finetune_api.budget import FitStatus, HardwareFacts
from finetune_api.evaluation import Generator
from finetune_api.stages import Stage
from finetune_operator.resources.drift import quantity
from finetune_operator.resources.pod import scratch_bytes
from finetune_operator.settings import PodShape, Profile, Settings

_GIB: Final = 1 << 30
_GPUS: Final = "nvidia.com/gpu"


def hardware_facts(name: str, profile: Profile) -> HardwareFacts:
    """Hardware of a profile's pods with a model."""
    limits, gpu = profile.accelerator.limits, profile.gpu
    cpus = float(quantity(limits.get("cpu", "0")) or 0)
    memory = float(quantity(limits.get("memory", "0")) or 0) / _GIB
    scratch = _scratch_gib(profile.accelerator)
    if gpu is None:
        return HardwareFacts(profile=name, memory_gib=memory, cpus=cpus, nodes=profile.nodes, scratch_gib=scratch)
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
        scratch_gib=scratch,
    )


def _scratch_gib(shape: PodShape) -> float:
    """What a pod may write; 0: unknown."""
    return scratch_bytes(shape) / _GIB


def processes(profile: Profile) -> int:
    """Processes that train in one pod: one per GPU, or one on its CPUs."""
    return profile.gpu.count if profile.gpu else int(quantity(profile.accelerator.limits.get(_GPUS, "1")) or 1)


def gpus_alone(stage: Stage, fit: FitStatus | None, generator: Generator = Generator.TRANSFORMERS) -> int:
    """GPUs of a stage that one process runs: one, or as many as evaluation's largest model needs, by preflight. vLLM
    divides a model's heads evenly among them, which a power of two does."""
    needed = (fit.evaluation_gpus if fit and stage is Stage.EVALUATE else None) or 1
    return needed if generator is Generator.TRANSFORMERS else 1 << (needed - 1).bit_length()


def alone(facts: HardwareFacts, gpus: int = 1) -> HardwareFacts:
    """What a stage sees of the hardware that one process runs: so many GPUs, or the CPUs of one pod."""
    count = max(1, facts.count)
    used = min(gpus, count)
    return facts.model_copy(update={"count": min(used, facts.count), "nodes": 1, "cpus": facts.cpus * used / count})


def shape_alone(profile: Profile, gpus: int = 1) -> PodShape:
    """The pod of such a stage: so many of the GPUs, and their part of the CPUs and of all other devices. Memory and
    disk follow from the size of the model, and stay: export may have to hold it in the pod's memory.
    """
    shape, count = profile.accelerator, processes(profile)
    if count <= gpus:
        return shape
    part = Fraction(gpus, count)
    return shape.model_copy(update={"requests": _part(shape.requests, part), "limits": _part(shape.limits, part)})


def _part(amounts: Mapping[str, str], part: Fraction) -> dict[str, str]:
    return {name: _divided(name, amount, part) for name, amount in amounts.items()}


def _divided(name: str, amount: str, part: Fraction) -> str:
    """CPUs in thousandths, devices whole; both rounded up. Only devices have a domain in their name."""
    whole = quantity(amount)
    if whole is None or not (name == "cpu" or "/" in name):
        return amount
    if name != "cpu":
        return str(ceil(Fraction(whole) * part))
    thousandths = ceil(1000 * Fraction(whole) * part)
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def other_facts(settings: Settings, name: str) -> list[HardwareFacts]:
    """The same for the platform's other profiles."""
    return [hardware_facts(other, profile) for other, profile in sorted(settings.profiles.items()) if other != name]
