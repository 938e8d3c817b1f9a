"""Which layers get an adapter, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from finetune_api.training import Quantization
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.loading import load_base
from finetune_jobs.training.adapter import adapter_config, linear_layers
from tests.support.fit import small
from tests.support.tiny_model import LORA_TARGETS, build_tiny_llama
from tests.support.training import settings

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("adapter") / "base")


@pytest.mark.parametrize("quantization", [None, *Quantization])
def test_every_linear_layer_but_the_head_can_get_an_adapter(quantization: Quantization | None, base: Path) -> None:
    """Rounded layers keep the sides of the matrix that they stand for."""
    layers = linear_layers(load_base(base, quantization))
    assert {name.rpartition(".")[2] for name in layers} == set(LORA_TARGETS)
    assert len(layers) == 2 * len(LORA_TARGETS)
    assert layers["model.layers.0.self_attn.k_proj"] == 32
    assert layers["model.layers.1.mlp.up_proj"] == 64


def test_transposed_layers_count_too() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))
    layers = linear_layers(model)
    assert {name.rpartition(".")[2] for name in layers} == {"c_attn", "c_proj", "c_fc"}
    assert set(layers.values()) == {32}


@pytest.mark.parametrize("family", ["llama4_text", "phimoe"])
def test_what_chooses_experts_gets_no_adapter(family: str) -> None:
    """It is a linear layer by its class, but returns more than one tensor, to which PEFT cannot add."""
    fields = {name: value for name, value in small(family).items() if name != "model_type"}
    sizes = {"head_dim": 24, "num_local_experts": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields, **sizes))
    assert any("router" in name for name, _ in model.named_modules())
    config = adapter_config(model, settings())
    assert config.target_modules == set(linear_layers(model))
    assert not any("router" in name for name in config.target_modules)
    assert not any("lm_head" in name for name in config.target_modules)
    tokens = torch.tensor([[1, 2, 3]])
    assert get_peft_model(model, config)(input_ids=tokens).logits.shape == (1, 3, fields["vocab_size"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"r": 4, "lora_alpha": 8, "use_dora": False, "use_rslora": False}),
        ({"adapter": "DoRA", "scaling": "RootOfRank"}, {"use_dora": True, "use_rslora": True}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": {"q_proj", "v_proj"}}),
        ({"target_modules": ["layers.0.mlp.up_proj"]}, {"target_modules": {"layers.0.mlp.up_proj"}}),
        ({"rank": 64, "alpha": 128}, {"r": 64}),
    ],
)
def test_the_spec_decides_the_kind(changes: dict[str, Any], expected: dict[str, Any], base: Path) -> None:
    config = adapter_config(load_base(base), settings(**changes))
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("target", ["lm_head", "proj"])
def test_the_output_layer_and_parts_of_names_get_no_adapter(target: str, base: Path) -> None:
    with pytest.raises(StageError, match=rf"targetModules .*'{target}', .* linear layer"):
        adapter_config(load_base(base), settings(target_modules=[target]))
