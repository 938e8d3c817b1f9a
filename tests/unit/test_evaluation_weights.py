"""Weights that are unpacked, that stay rounded, and where they find room, compute the same."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from finetune_api.training import Method, Quantization
from finetune_jobs.exporting.merge import plain_base
from finetune_jobs.exporting.offload import device_for_16_bits, keep_rounded
from finetune_jobs.modelling.device import precision
from finetune_jobs.modelling.loading import load_base, load_checkpoint, unpacked
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tuning import Tuning
from tests.support.evaluating import ask

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_weights_that_are_unpacked_once_compute_the_same(model_folder: Path) -> None:
    tokens, packed = torch.arange(4, 60)[None], load_base(model_folder / "base", Quantization.NF4)
    with torch.inference_mode():
        expected = packed(input_ids=tokens).logits
        made = unpacked(packed)
        assert torch.equal(made(input_ids=tokens).logits, expected)
    assert not [module for module in made.modules() if isinstance(module, Linear4bit)]
    plain = load_base(model_folder / "base")
    assert unpacked(plain) is plain


def test_packed_weights_are_released_one_by_one(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model does not fit the memory in both forms."""
    model = load_base(model_folder / "base", Quantization.NF4)
    held = WeakSet(module for module in model.modules() if isinstance(module, Linear4bit))
    left = [len(held)]

    def counted(*given: Any) -> Any:
        left.append(len(held))
        return dequantize_4bit(*given)

    monkeypatch.setattr("finetune_jobs.modelling.loading.dequantize_4bit", counted)
    unpacked(model)
    assert left == [left[0], *range(left[0], 0, -1)]
    assert not held


@pytest.mark.parametrize("quantization", Quantization)
def test_the_base_of_a_merge_is_unpacked_layer_by_layer(
    quantization: Quantization, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fits the memory that was found to hold its 16-bit weights; rounded ones beside them would not."""
    rounded: tuple[type[torch.nn.Module], ...] = (Linear4bit, Linear8bitLt)
    expected = load_base(model_folder / "base", quantization, dtype=torch.bfloat16).dequantize().state_dict()
    held, left = WeakSet[torch.nn.Module](), list[int]()

    def loaded(*given: Any, **options: Any) -> Any:
        model = load_base(*given, **options)
        held.update(module for module in model.modules() if isinstance(module, rounded))
        return model

    def counted(*given: Any) -> None:
        if held:  # and it is not being loaded
            left.append(len(held))
        set_submodule(*given)

    set_submodule = torch.nn.Module.set_submodule
    monkeypatch.setattr("finetune_jobs.exporting.merge.load_base", loaded)
    monkeypatch.setattr(torch.nn.Module, "set_submodule", counted)
    tuning = Tuning(method=Method.QLORA, quantization=quantization)
    base = plain_base(model_folder / "base", tuning)
    found = base.state_dict()
    assert left == list(range(len(left), 0, -1))
    assert left
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    frequencies = [each for name, each in base.named_buffers() if name.endswith("inv_freq")]
    assert {each.dtype for each in frequencies} == {torch.float32}, "as in training: calibration asks this model"


def test_weights_that_stay_rounded_compute_the_same(model_folder: Path) -> None:
    """One layer after the other is unpacked, and none for longer than it computes; in every pass."""
    tokens = torch.arange(4, 60)[None]
    unpacked, kept = load_checkpoint(model_folder / "artifact"), load_checkpoint(model_folder / "artifact")
    keep_rounded(kept)
    for _ in range(2):
        assert torch.equal(kept(input_ids=tokens).logits, unpacked(input_ids=tokens).logits)
    for model, dtype in ((kept, torch.int8), (unpacked, precision())):
        found = {p.dtype for name, p in model.named_parameters() if name.endswith("_proj.weight")}
        assert found == {dtype}
    prompts = [example.prompt for example in read_split(model_folder / "dataset", "test")][:4]
    assert ask(kept, model_folder / "base", prompts, 4) == ask(unpacked, model_folder / "base", prompts, 4)


@pytest.mark.parametrize(("gib", "place"), [(1.3, "cpu"), (2.0, None)])
def test_what_a_gpu_does_not_hold_in_16_bits_goes_to_the_pods_own_memory(
    gib: float, place: str | None, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the GPU's size, which is that of CUDA's own things here: the model is tiny."""
    assert device_for_16_bits(model_folder / "base") is None, "without a GPU there is no other place"
    properties = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    assert device_for_16_bits(model_folder / "base") == place


def test_the_artifact_is_computed_in_its_own_quantisation(model_folder: Path) -> None:
    """Loaded exactly: INT8 weights change the logits a little, and never by as much as another model would."""
    tokens = torch.arange(4, 60)[None]
    exact = load_base(model_folder / "base")(input_ids=tokens).logits
    quantised = load_checkpoint(model_folder / "artifact")(input_ids=tokens).logits
    difference = (quantised - exact).abs().mean() / exact.abs().mean()
    assert 0 < difference < 0.2
