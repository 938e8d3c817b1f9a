"""How a training step is computed, beyond what the spec says of it: what is kept, in 16 bits, or divided."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

BF16: Final = 2
FP32: Final = 4
MASK: Final = 1
"""Bytes per number: bfloat16, float32, and what dropout remembers."""


class Head(StrEnum):
    """How the loss is computed from the last hidden state."""

    TILED = "Tiled"
    """In tiles, without ever holding all logits: this project's (``training.tiled_loss``)."""
    LOGITS = "Logits"
    """All logits at once: transformers' own loss, for comparisons with what others have measured."""


@dataclass(frozen=True)
class Step:
    """How a step is computed, beyond what the spec says of it."""

    checkpointing: bool
    """Only the layers' inputs are kept; each layer is computed again before its backward pass."""
    head: Head
    on_gpu: bool
    padded: bool = True
    """Examples of a batch differ in length, so that attention gets a mask; never for batches of one."""
    bfloat16: bool = True
    """Whether the hardware computes in bfloat16; a CPU that would emulate it computes in float32."""
    rounded: bool = False
    """A whole model's weights, gradients and moments are in bfloat16, rounded stochastically
    (``training.rounded_adamw``); no difference to an adapter."""
    divided: bool = False
    """The base model under an adapter is divided among the processes (``training.sharding``), as a whole model always
    is."""
    selective: bool = False
    """Under checkpointing, what is small and took long is kept of each layer (``training.selective``)."""
    rounded_keep_inputs: bool = False
    """Rounded layers keep their inputs, which their gradient does not need: bitsandbytes did in 2023. For comparisons
    with what others have measured."""

    @property
    def keeps_least(self) -> bool:
        """Whether no activations are kept that could be computed again."""
        return self.checkpointing and not self.selective

    def with_least(self) -> "Step":
        """The same, keeping none of them."""
        return replace(self, checkpointing=True, selective=False)


ON_GPU: Final = Step(checkpointing=True, head=Head.TILED, on_gpu=True)
KEPT: Final = Step(checkpointing=False, head=Head.TILED, on_gpu=True)
"""On a GPU with room for all activations: no layer is computed twice."""
SELECTIVE: Final = replace(ON_GPU, selective=True)
"""On a GPU with room for a part of the activations."""
ROUNDED, ROUNDED_SELECTIVE, ROUNDED_KEPT = (replace(step, rounded=True) for step in (ON_GPU, SELECTIVE, KEPT))
"""The same for a whole model that would not fit a GPU in float32."""
DIVIDED, DIVIDED_SELECTIVE, DIVIDED_KEPT = (replace(step, divided=True) for step in (ON_GPU, SELECTIVE, KEPT))
"""The same for an adapter whose base would not fit each of several GPUs."""
ON_CPU: Final = Step(checkpointing=False, head=Head.TILED, on_gpu=False)
ON_OLD_CPU: Final = replace(ON_CPU, bfloat16=False)
