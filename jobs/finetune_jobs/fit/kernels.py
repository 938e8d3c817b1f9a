"""Which parts of a step a GPU computes in one kernel each, by the model's family.

Liger Kernel (Hsu et al. 2024, arXiv 2410.10989) knows for each family how its normalisation rounds and what its
feed-forward part is; ``training.kernels`` puts its kernels in place and asks them. A family that is not listed here, a
mixture of experts or a model with images among them, trains without.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from finetune_api.training import Kernels, Training


class Kernel(StrEnum):
    """What is computed in one kernel instead of a row of them."""

    RMS_NORM = "RMSNorm"
    ROPE = "RoPE"
    SWIGLU = "SwiGLU"
    GEGLU = "GeGLU"


_SILU: Final = (Kernel.RMS_NORM, Kernel.ROPE, Kernel.SWIGLU)
_GELU: Final = (Kernel.RMS_NORM, Kernel.ROPE, Kernel.GEGLU)
FAMILIES: Final[Mapping[str, tuple[Kernel, ...]]] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3"), _SILU),
    **dict.fromkeys(("granite", "phi3", "olmo2", "olmo3"), _SILU),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GELU),
}
"""By ``model_type`` of config.json. Each is tested against the plain model in Triton's interpreter."""


def fused_kernels(config: Mapping[str, Any], training: Training) -> tuple[Kernel, ...]:
    """What a training of the model that ``config`` (its config.json) describes tries on a GPU."""
    return () if training.kernels is Kernels.OFF else FAMILIES.get(config.get("model_type", ""), ())


def listed(kernels: tuple[Kernel, ...]) -> str:
    """As a part of a sentence; "none" of none."""
    names = [kernel.value for kernel in kernels]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "none"
