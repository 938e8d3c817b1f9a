"""A model's shape from its config.json, against PEFT and model cards; tests/unit/test_families.py has transformers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from finetune_api.training import AdapterKind, Training
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.fields import UnknownShapeError
from finetune_jobs.fit.memory import peak_memory, trained_parameters
from finetune_jobs.fit.shapes import read_shape
from finetune_jobs.fit.steps import ON_GPU
from tests.support.fit import GPT_OSS_20B, L4, LLAMA_8B, MIXTRAL, shape_of, small

pytestmark = pytest.mark.unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "adapted"),
    [
        (Training(rank=4), "all-linear"),
        (Training(rank=4, adapter=AdapterKind.DORA), "all-linear"),
        (Training(rank=8, target_modules=["q_proj", "mlp.down_proj"]), ["q_proj", "down_proj"]),
    ],
    ids=["all", "dora", "two"],
)
def test_adapters_are_those_of_peft(training: Training, adapted: str | list[str]) -> None:
    """The trained parameters are as many as PEFT's adapter has."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in small("llama").items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields))
    dora = training.adapter is AdapterKind.DORA
    adapter = LoraConfig(r=training.rank, use_dora=dora, target_modules=adapted, task_type="CAUSAL_LM")
    with torch.no_grad():
        adapted_model = get_peft_model(model, adapter)
    expected = sum(parameter.numel() for parameter in adapted_model.parameters() if parameter.requires_grad)
    assert trained_parameters(shape_of(small("llama")), training) == expected


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not one of"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096; rm"}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}, "more experts than there are"),
        ({"model_type": "phi", "qk_layernorm": True}, "differ"),
        (
            {"per_layer_config": {"3": {"intermediate_size": 8}}},
            "family's usual models (per_layer_config)",
        ),
        ({"attention_bias": "yes"}, "attention_bias: neither true nor false"),
        ({"model_type": "lama"}, "families that are known here. docs/reference/families.md"),
        ({"model_type": "mistral3", "text_config": {}}, "for images and text; take one for text alone"),
        ({"model_type": "gemma3", "text_config": LLAMA_8B, "vision_config": {"patch_size": -1}}, "vision_config"),
    ],
)
def test_unknown_is_said_and_not_refused(change: dict[str, Any], why: str) -> None:
    """What cannot be told is told so; the run goes on."""
    config = LLAMA_8B | change
    with pytest.raises(UnknownShapeError, match=re.escape(why)):
        read_shape(config)
    admission = admit(config, Training(), L4)
    assert admission.memory is None
    assert admission.forecast is None
    assert why in admission.message


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        # As the hub has them, without what transformers knows itself.
        (
            {
                "model_type": "gemma3",
                "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
                "vision_config": {
                    "hidden_size": 1152,
                    "intermediate_size": 4304,
                    "num_hidden_layers": 27,
                    "vision_use_head": False,
                },
            },
            4.3,  # Gemma 3 4B: https://huggingface.co/google/gemma-3-4b-it
            4.3,
        ),
        (
            GPT_OSS_20B,
            20.9,  # gpt-oss-20b, 3.6 active without one embedding (OpenAI's model card, arXiv 2508.10925)
            3.6 + 0.58,
        ),
        (
            {
                "model_type": "llama4_text",
                "hidden_size": 5120,
                "num_hidden_layers": 48,
                "intermediate_size": 8192,
            },
            107.8,  # Llama 4 Scout: 109 with its part for images, 17 active (Meta's model card)
            17.2,
        ),
    ],
    ids=["gemma3", "gpt-oss", "llama4"],
)
def test_released_models(config: dict[str, Any], billions: float, active: float) -> None:
    """Their sizes are those of their model cards."""
    shape = shape_of(config)
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert shape.active_parameters / 1e9 == pytest.approx(active, abs=0.1)
    assert shape.computed_parameters < shape.parameters


def test_a_part_for_images_is_adapted_too() -> None:
    """Where no layers are named, which is what PEFT takes for all linear ones."""
    shape = shape_of(small("gemma3"))
    assert shape.tower is not None
    text = shape_of(small("gemma3_text"))
    whole, named = (trained_parameters(shape, Training(rank=4, target_modules=names)) for names in ([], ["q_proj"]))
    assert whole - trained_parameters(text, Training(rank=4)) == 4 * shape.tower.sides
    assert named == trained_parameters(text, Training(rank=4, target_modules=["q_proj"]))


def test_experts_take_memory_all_and_time_only_when_active() -> None:
    """Mixtral 8x7B: 46.7 billion parameters of which a token passes 12.9 (Jiang et al. 2024, arXiv 2401.04088)."""
    shape = shape_of(MIXTRAL)
    assert shape.parameters / 1e9 == pytest.approx(46.7, abs=0.05)
    assert shape.active_parameters / 1e9 == pytest.approx(12.9, abs=0.05)
    nf4 = peak_memory(shape, Training(), ON_GPU).weights
    assert nf4 > 2 * shape.expert_parameters  # transformers 5 holds experts as one tensor, which nf4 leaves alone
