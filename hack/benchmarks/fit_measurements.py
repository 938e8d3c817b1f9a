"""The published measurements of fit_measurements.yaml, in seconds of a pass and GiB."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DATA: Final = Path(__file__).with_suffix(".yaml")
GIB: Final = 1 << 30


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)


class Measured(_Data):
    """One figure, or two of the same run."""

    length: int
    """Tokens per example."""
    batch: int = 1
    model: str = ""
    """Another model than the table's."""
    tokens_per_second: float | None = None
    duration: float | None = Field(default=None, alias="seconds")
    """Of so many ``passes`` forward and backward."""
    passes: int = 1
    in_gib: float | None = Field(default=None, alias="gib")
    """Memory of the whole process; of its tensors, where the table says so; or in other units."""
    gb: float | None = None
    in_bytes: int | None = Field(default=None, alias="bytes")
    chosen: bool = False

    @property
    def seconds(self) -> float | None:
        """Of one pass; None where no time was measured."""
        if self.tokens_per_second is not None:
            return self.batch * self.length / self.tokens_per_second
        return None if self.duration is None else self.duration / self.passes

    @property
    def gib(self) -> float | None:
        """None where no memory was measured."""
        if self.in_bytes is not None:
            return self.in_bytes / GIB
        return self.in_gib if self.gb is None else self.gb * 1e9 / GIB


class Table(_Data):
    """Measurements of one source."""

    name: str
    source: str
    card: str
    model: str
    training: dict[str, Any]
    rows: tuple[Measured, ...]
    checkpointing: bool = True
    fused_loss: bool = False
    """Logits are never held: TRL's, Liger's or Unsloth's loss."""
    fused: bool = False
    """Kernels fused by Unsloth, Liger or ``torch.compile``, which are not in the estimate."""
    rounded_keep_inputs: bool = False
    """The product with rounded weights keeps its input, without need: bitsandbytes 0.41, LitGPT's, did."""
    tensors: bool = False
    """Memory is that of tensors: PyTorch's allocated bytes, not the process's."""
    processes: int = 1
    """GPUs that share a model (FSDP)."""


class Card(_Data):
    """A GPU."""

    name: str
    tflops: float
    """Dense bfloat16 peak."""


class Measurements(_Data):
    """Everything in the file."""

    models: dict[str, dict[str, Any]]
    """Configurations by name."""
    cards: dict[str, Card]
    tables: tuple[Table, ...]


@cache
def measurements() -> Measurements:
    """What the file holds."""
    return Measurements.model_validate(yaml.load(DATA.read_text(), yaml.CSafeLoader))
