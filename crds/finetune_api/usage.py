"""What the making of a result has used: hardware, time, money, energy. Lineage only: part of no key and no address."""

from collections.abc import Sequence
from typing import Final

from finetune_api.base import WireModel
from finetune_api.budget import HardwareFacts, dollars
from finetune_api.cards import power_watts

ENERGY_METHOD: Final = (
    "GPU seconds x the card's highest board power, by its maker: an upper bound for the GPUs, without CPUs, memory and "
    "the building's overhead (PUE)"
)


class Usage(WireModel):
    """Of the attempt that made the result. Attempts before it, which were lost, are not counted."""

    hardware: HardwareFacts | None = None
    """The profile's hardware, for the stages with a model; None: not told."""
    seconds: float = 0
    """From the start of its process to the result."""
    cpu_seconds: float = 0
    """CPU time of this process and of those that it started and that have ended; with several pods, of the first."""
    gpu_seconds: float = 0
    """Seconds times the GPUs that it held, busy or not, in all pods."""
    cost_usd: str = ""
    """What its GPUs cost, in US dollars; empty without a price."""
    energy_wh: float | None = None
    """Estimate in watt hours; None: without a GPU, or its power is not known."""
    energy_method: str = ""
    """How that was estimated."""


def usage_of(hardware: HardwareFacts | None, seconds: float, cpu_seconds: float) -> Usage:
    """The usage of an attempt that took ``seconds`` and so much CPU time on a profile's hardware."""
    gpus = hardware.count * hardware.nodes if hardware else 0
    gpu_seconds = seconds * gpus
    price = hardware.usd_per_gpu_second if hardware else 0.0
    watts = power_watts(hardware.name) if hardware and gpus else None
    return Usage(
        hardware=hardware,
        seconds=round(seconds, 1),
        cpu_seconds=round(cpu_seconds, 1),
        gpu_seconds=round(gpu_seconds, 1),
        cost_usd=dollars(gpu_seconds * price) if price else "",
        energy_wh=round(gpu_seconds * watts / 3600, 2) if watts else None,
        energy_method=ENERGY_METHOD if watts else "",
    )


def together(parts: Sequence[Usage]) -> Usage:
    """What several have used, each on its own hardware and at its own price, of which none is named."""
    costs = [float(each.cost_usd) for each in parts if each.cost_usd]
    energies = [each.energy_wh for each in parts if each.energy_wh is not None]
    return Usage(
        seconds=round(sum(each.seconds for each in parts), 1),
        cpu_seconds=round(sum(each.cpu_seconds for each in parts), 1),
        gpu_seconds=round(sum(each.gpu_seconds for each in parts), 1),
        cost_usd=dollars(sum(costs)) if costs else "",
        energy_wh=round(sum(energies), 2) if energies else None,
        energy_method=ENERGY_METHOD if energies else "",
    )
