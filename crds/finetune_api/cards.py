"""NVIDIA's GPUs by generation: what decides which kernels and number formats there are.

A card is known by its compute capability, or by a product name as drivers, node labels and people write it:
``NVIDIA A100-SXM4-80GB``, ``nvidia-tesla-t4`` (GKE), ``NVIDIA-RTX-6000-Ada-Generation`` (GPU feature discovery).
Source: https://developer.nvidia.com/cuda-gpus and, for older ones, https://developer.nvidia.com/cuda-legacy-gpus.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Generation(StrEnum):
    """Generations, oldest first."""

    VOLTA = "Volta"
    TURING = "Turing"
    AMPERE = "Ampere"
    ADA = "Ada"
    HOPPER = "Hopper"
    BLACKWELL = "Blackwell"


OLDEST_BFLOAT16: Final = (8, 0)
"""Compute capability from which on GPUs compute in bfloat16: Ampere. Older ones only convert it (CUDA programming
guide, *Arithmetic instructions*: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions)."""
NO_BFLOAT16: Final = frozenset({Generation.VOLTA, Generation.TURING})

_MODELS: Final[Mapping[Generation, str]] = {
    Generation.VOLTA: "v100 v100s gv100",
    Generation.TURING: "t4 t4g t400 t600 t1000 1650 1660",
    Generation.AMPERE: "a2 a10 a10g a10m a16 a30 a40 a100 a800 a2000 a4000 a4500 a5000 a5500 a6000",
    Generation.ADA: "l2 l4 l20 l40 l40s l40g",
    Generation.HOPPER: "h20 h100 h200 h800 gh200",
    Generation.BLACKWELL: "b100 b200 b300 gb10 gb200 gb300",
}
_OF_MODEL: Final = {model: generation for generation, models in _MODELS.items() for model in models.split()}
_OF_SERIES: Final = {
    "20": Generation.TURING,
    "30": Generation.AMPERE,
    "40": Generation.ADA,
    "50": Generation.BLACKWELL,
}
"""GeForce RTX by the first digits of its number."""
_POWER: Final[tuple[tuple[str, int], ...]] = (
    ("t4", 70),
    ("a2", 60),
    ("a10", 150),
    ("a30", 165),
    ("a40", 300),
    ("a100 sxm4", 400),
    ("a100 pcie 40gb", 250),
    ("a100 pcie 80gb", 300),
    ("l4", 72),
    ("l40", 300),
    ("l40s", 350),
    ("h100 hbm3", 700),
    ("h100 sxm5", 700),
    ("h100 pcie", 350),
    ("h100 nvl", 400),
    ("h200 nvl", 600),
    ("h200", 700),
)
"""Highest board power in watts by words of the product name, the first row that fits. Only those of the T4, the A100
and the H100 were checked, on pages of third parties; the others have yet to be held against NVIDIA's data sheets.
Drivers call the H100 SXM5 ``NVIDIA H100 80GB HBM3`` and the H200 SXM ``NVIDIA H200``."""
_WORDS: Final = re.compile(r"[a-z0-9]+")
_GEFORCE: Final = re.compile(r"[2-5]0[5-9]0")


def words_of(name: str) -> frozenset[str]:
    """The words of a card's name, whatever stands between them: two ways to write it have the same."""
    return frozenset(_WORDS.findall(name.lower()))


def generation_of(name: str) -> Generation | None:
    """The generation of a card by its product name; None for a name that says nothing."""
    words = words_of(name)
    if "blackwell" in words or {"rtx", "pro"} <= words:
        return Generation.BLACKWELL
    if "ada" in words:
        return Generation.ADA
    if "rtx" in words and words & {"quadro", "titan"}:
        return Generation.TURING
    if "rtx" in words and (numbers := [word for word in words if _GEFORCE.fullmatch(word)]):
        return _OF_SERIES[numbers[0][:2]]
    found = {_OF_MODEL[word] for word in words if word in _OF_MODEL}
    return found.pop() if len(found) == 1 else None


def power_watts(name: str) -> int | None:
    """The highest board power of a card by its product name, in watts; None where the name does not decide it, e.g. of
    an A100 without its form factor, or of a part of a card (MIG)."""
    words = words_of(name)
    if "mig" in words:
        return None
    return next((watts for wanted, watts in _POWER if set(wanted.split()) <= words), None)
