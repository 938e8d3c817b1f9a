"""Planted adapters are wrong in the way that their names say, and in no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.planted_adapters import PLANTS, AdapterPlant, write_adapter

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LAYERS = 30
RIGHT = {
    f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_{factor}.weight": torch.full(shape, 0.5)
    for layer in range(LAYERS)
    for factor, shape in (("A", (2, 4)), ("B", (4, 2)))
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.key)
def test_only_what_it_says_is_changed(plant: AdapterPlant, tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    save_file(RIGHT, tmp_path / "right/adapter_model.safetensors")
    (tmp_path / "right/adapter_config.json").write_text("{}")
    found = load_file(write_adapter(tmp_path / "wrong", tmp_path / "right", plant) / "adapter_model.safetensors")
    assert (tmp_path / "wrong/adapter_config.json").read_text() == "{}"
    assert all(torch.equal(found[name], RIGHT[name]) for name in RIGHT if ".lora_A." in name)
    for layer in range(LAYERS):
        ratio = found[f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_B.weight"] / 0.5
        expected = 0.0 if plant.lost[0] <= layer < plant.lost[1] else plant.strength
        assert ratio.mean().item() == pytest.approx(expected, abs=4 * plant.noise / 8**0.5 + 1e-6)
        assert bool(ratio.std() > 1e-6) == bool(plant.noise)
