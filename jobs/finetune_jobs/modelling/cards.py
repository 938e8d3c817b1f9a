"""Whether the GPUs of a pod are those of its profile, and can do the work: what torch reports, in words. Pure.

A card that is larger than promised, a little smaller, or has another name, is used, and the log says so: estimates are
then for another one. A much smaller one is not, because the fit was computed for the promised size, and neither is one
that cannot do the work at all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.cards import OLDEST_BFLOAT16, words_of

SMALLEST: Final = 0.9
"""Of the promised memory. A profile may name what is printed on the card, of which the driver reports less: 22.0 of the
24 of an L4 (0.92), 14.6 of the 16 of a T4 (0.91). If a pass does not fit then, it is halved."""
ALIKE: Final = 0.97
"""Of the promised memory: what drivers of other versions, or with error correction, keep for themselves is less."""
DRIVERS: Final = {12: 525, 13: 580}
"""Oldest driver for a major version of CUDA; any minor version runs on it
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html)."""
_MIG: Final = "mig"


@dataclass(frozen=True)
class Card:
    """A GPU, or a MIG slice of one, as the driver reports it."""

    name: str
    gib: float
    capability: tuple[int, int]

    @property
    def is_slice(self) -> bool:
        """Whether it is a part of a GPU (Multi-Instance GPU)."""
        return _MIG in words_of(self.name)


@dataclass(frozen=True)
class Found:
    """What torch reports in a pod."""

    cards: tuple[Card, ...] = ()
    """Empty if CUDA cannot be used."""
    cuda: str = ""
    """CUDA that torch was built with, e.g. 13.0; empty: a torch for CPUs."""
    driver: str = ""
    """Newest CUDA that the node's driver supports; empty: no driver."""
    kernels: tuple[str, ...] = ()
    """What torch's kernels are compiled for, e.g. sm_90; empty: unknown."""
    why_not: str = ""
    """Torch's own words if CUDA cannot be used."""


def unusable(found: Found, hardware: HardwareFacts | None) -> str:
    """Why the work cannot be done here, with the remedy; empty if it can. ``hardware`` is what the profile has, as far
    as known: without it, only what no model can do without is asked for."""
    promised = hardware if hardware is not None and hardware.has_gpu else None
    if not found.cards:
        return f"{_promise(promised)}, but CUDA cannot be used in this pod: {no_cuda(found)}" if promised else ""
    for card in found.cards:
        if fault := _incapable(card, found):
            return fault
    if promised is None:
        return ""
    if len(found.cards) < promised.count:
        return _too_few(found.cards, promised)
    small = next((card for card in found.cards if card.gib < SMALLEST * promised.memory_gib), None)
    return _too_small(small, promised) if small else ""


def differences(found: Found, hardware: HardwareFacts | None) -> list[str]:
    """What is otherwise than promised and does no harm."""
    if hardware is None or not hardware.has_gpu or not found.cards:
        return []
    said, card = [], found.cards[0]
    if hardware.name and not words_of(hardware.name) <= words_of(card.name):
        said.append(
            f"the driver calls the GPU {card.name}, profile {hardware.profile!r} calls it {hardware.name}: estimates "
            "of time and cost are for the latter"
        )
    if hardware.memory_gib and card.gib < ALIKE * hardware.memory_gib:
        said.append(
            f"the GPU has {card.gib:.1f} GiB, less than the {hardware.memory_gib:g} of profile {hardware.profile!r}, "
            f"for which the fit was computed: set its gpu.memoryGib to {_floor(card.gib)} in the chart's values"
        )
    if hardware.memory_gib and card.gib > hardware.memory_gib / ALIKE:
        said.append(
            f"the GPU has {card.gib:.1f} GiB, more than the {hardware.memory_gib:g} of profile {hardware.profile!r}, "
            "for which the fit was computed"
        )
    if len(found.cards) > hardware.count:
        said.append(f"the pod has {len(found.cards)} GPUs, more than the {hardware.count} of its profile")
    return said


def described(cards: Sequence[Card]) -> str:
    """Cards by number and name."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(card.name for card in cards).items())


def no_cuda(found: Found) -> str:
    """Why CUDA cannot be used, with the remedy where that is known."""
    needed, has = _major(found.cuda), _major(found.driver)
    if needed and has and has < needed:
        version = f"{DRIVERS[needed]} or newer" if needed in DRIVERS else f"one that supports CUDA {needed}"
        return (
            f"torch was made for CUDA {found.cuda}, the node's driver supports CUDA {found.driver} at most. Update the "
            f"driver: {version}."
        )
    return found.why_not or "torch gives no reason."


def _promise(hardware: HardwareFacts) -> str:
    return f"Profile {hardware.profile!r} promises {hardware.count} × {hardware.name or 'GPU'}"


def _incapable(card: Card, found: Found) -> str:
    version = ".".join(map(str, card.capability))
    if found.kernels and not any(_runs(kernel, card.capability) for kernel in found.kernels):
        return (
            f"The image has no kernels for {card.name} (compute capability {version}), only for "
            f"{', '.join(found.kernels)}. Choose a profile with another GPU."
        )
    if card.capability < OLDEST_BFLOAT16:
        return (
            f"Models are computed in bfloat16, which {card.name} (compute capability {version}) lacks. Choose a "
            "profile with a newer generation: Ampere, Ada, Hopper or Blackwell."
        )
    return ""


def _runs(kernel: str, capability: tuple[int, int]) -> bool:
    """Whether a card runs what was compiled for an architecture: machine code (sm) of the same major version that is
    not newer, with the suffix ``a`` of exactly this card; PTX (compute) of any that is not newer.

    https://docs.nvidia.com/cuda/ada-compatibility-guide/#application-compatibility-on-the-nvidia-ada-gpu-architecture
    """
    kind, _, number = kernel.partition("_")
    digits = number.rstrip("af")
    if not digits.isdecimal() or len(digits) < 2:
        return False
    made = (int(digits[:-1]), int(digits[-1]))
    if number.endswith("a"):
        return made == capability
    return made <= capability and (kind == "compute" or made[0] == capability[0])


def _too_few(cards: Sequence[Card], promised: HardwareFacts) -> str:
    """A process finds one slice, however many its pod has
    (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/mig-device-names.html, CUDA Device Enumeration)."""
    remedy = "Set nvidia.com/gpu in accelerator.limits of the profile to the count of its gpu"
    if any(card.is_slice for card in cards):
        remedy = (
            "CUDA uses one MIG slice, however many a pod has: set gpu.count of the profile and the slices in its "
            "accelerator.limits to 1, or its nodeSelector to nodes without MIG"
        )
    return f"{_promise(promised)}, but this pod has {described(cards)}. {remedy}, in the chart's values."


def _too_small(card: Card, promised: HardwareFacts) -> str:
    what = "a MIG slice" if card.is_slice else "a GPU"
    nodes = "nodes without MIG" if card.is_slice else "nodes with the GPU that it names"
    return (
        f"{_promise(promised)} with {promised.memory_gib:g} GiB, for which the fit was computed, but this pod has "
        f"{what} with {card.gib:.1f} GiB ({card.name}). Set gpu.memoryGib of the profile to {_floor(card.gib)} in "
        f"the chart's values, or its nodeSelector to {nodes}."
    )


def _floor(gib: float) -> str:
    return f"{int(gib * 10) / 10:g}"


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else 0
