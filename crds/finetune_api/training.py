"""How a FineTuneJob trains."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Decimal


class Method(StrEnum):
    """How the model is trained."""

    QLORA = "QLoRA"
    LORA = "LoRA"


class Training(ApiModel):
    """How to train. The defaults suit 500 to 5,000 examples (see docs/concepts)."""

    method: Method = Method.QLORA
    """QLoRA: adapter over a 4-bit (nf4) base; LoRA: adapter over the 16-bit base."""
    epochs: Annotated[int, Field(ge=1, le=50)] = 3
    """Passes over the training examples."""
    max_steps: Annotated[int, Field(ge=0, le=1000000)] = 0
    """Stop after this many optimiser steps; 0 leaves it to `epochs`."""
    learning_rate: Decimal = "2e-4"
    """Peak learning rate; cosine schedule with 3 % warm-up."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Examples per forward pass and device."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=512)] = 2
    """Forward passes per optimiser step."""
    max_length: Annotated[int, Field(ge=16, le=131072)] = 512
    """Longest example in tokens; a longer one fails the job rather than being cut silently."""
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank r of the adapter."""
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32
    """Scale of the adapter; the usual choice is twice the rank."""
    dropout: Decimal = "0.05"
    """Dropout on the adapter's input."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """Seed of initialisation and order."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=100000)] = 25
    """Optimiser steps between checkpoints (and validations)."""
