"""The output of the stage train: an adapter or a whole model, and how its base was quantised. The folder records that
itself (``tuning.json``), so that its readers rebuild exactly what was trained.
"""

import json
from pathlib import Path
from typing import Any, Final

from finetune_api.base import WireModel
from finetune_api.training import Method, Quantization, Training
from finetune_jobs.base.documents import parse_json

TUNING: Final = "tuning.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
"""PEFT's settings of an adapter."""
_ODD: Final = ("use_dora", "modules_to_save")
"""Those that make an adapter more than LoRA."""


class Tuning(WireModel):
    """Content of ``tuning.json``."""

    schema_version: int = 1
    method: Method
    quantization: Quantization | None = None
    """How the base was rounded while the adapter was trained; None: 16 bits."""
    thoughts: bool = False
    """Whether it was trained to think before it answers."""

    @classmethod
    def of(cls, training: Training, *, thoughts: bool = False) -> "Tuning":
        """The output of a training with these settings."""
        return cls(method=training.method, quantization=training.base_quantization, thoughts=thoughts)

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter; otherwise a whole model."""
        return self.method is not Method.FULL


def adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings of an adapter."""
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return config


def beyond_lora(config: dict[str, Any]) -> str:
    """The first of an adapter's settings that no model server loads; empty: there is none."""
    return next((name for name in _ODD if config.get(name)), "")


def write_tuning(folder: Path, tuning: Tuning) -> None:
    """Record what the folder contains."""
    (folder / TUNING).write_text(tuning.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")


def read_tuning(folder: Path, method: Method) -> Tuning:
    """What the folder contains; ``method`` is used for folders of older versions, which do not record it.

    Raises StageError (ArtifactCorrupt) for a file that cannot be read.
    """
    path = folder / TUNING
    if not path.exists():
        return Tuning.of(Training(method=method))
    return parse_json(path.read_bytes(), Tuning, TUNING)
