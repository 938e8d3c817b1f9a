"""Adapters that are wrong in one way each, to be served in the place of the right one."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS: Final = "adapter_model.safetensors"
_LAYER: Final = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class AdapterPlant:
    """How an adapter is wrong."""

    name: str
    strength: float = 1.0
    """How often it counts."""
    lost: tuple[int, int] = (0, 0)
    """From the first of these layers to before the second one, it adds nothing."""
    noise: float = 0.0
    """Standard deviation of the relative error of its values."""

    @property
    def key(self) -> str:
        """The name as part of a file's."""
        return self.name.replace(" ", "-").replace("%", "pct")


PLANTS: Final = (
    AdapterPlant("base under the adapter's name", strength=0),
    AdapterPlant("adapter x 2", strength=2),
    AdapterPlant("adapter x 0.5", strength=0.5),
    AdapterPlant("adapter x 0.8", strength=0.8),
    AdapterPlant("ten layers of the adapter lost", lost=(10, 20)),
    AdapterPlant("values with 25 % noise", noise=0.25),
)


def write_adapter(out: Path, adapter: Path, plant: AdapterPlant) -> Path:
    """A copy in PEFT's form, whose second factors (B) are changed as the plant says: the adapter is their product."""
    shutil.copytree(adapter, out)
    random = torch.Generator().manual_seed(0)
    weights = load_file(out / _WEIGHTS)
    for name, weight in weights.items():
        if ".lora_B." not in name:
            continue
        layer = _LAYER.search(name)
        lost = layer is not None and plant.lost[0] <= int(layer[1]) < plant.lost[1]
        error = 1 + plant.noise * torch.randn(weight.shape, generator=random)
        weights[name] = ((0 if lost else plant.strength) * weight.float() * error).to(weight.dtype).contiguous()
    save_file(weights, out / _WEIGHTS, metadata={"format": "pt"})
    return out
