"""A model's shape from its config.json, against transformers and PEFT."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.training import AdapterKind, Training
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.memory import (
    ON_GPU,
    peak_memory,
    trained_parameters,
)
from finetune_jobs.fit.shapes import FAMILIES, UnknownShapeError, read_shape
from tests.support.fit import L4, LLAMA_8B, MIXTRAL, shape_of, small

pytestmark = pytest.mark.unit


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_shape_is_that_of_the_model_in_transformers(family: str) -> None:
    """Same parameters, and the same linear layers but the output layer, for both ways to write a config.json."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in small(family).items() if name != "model_type"}
    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not model.get_output_embeddings()
    }
    for written in (config.to_dict(), config.to_diff_dict()):
        shape = read_shape(written)
        assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert {matrix.name: (matrix.inputs, matrix.outputs) for matrix in shape.matrices} == linear


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
        ({"model_type": "mixtral"}, "how many experts"),
        ({"model_type": "qwen3_moe", "num_experts": 4, "mlp_only_layers": [1]}, "differ"),
        ({"model_type": "phi", "qk_layernorm": True}, "differ"),
    ],
)
def test_unknown_is_said_and_not_refused(change: dict[str, Any], why: str) -> None:
    """What cannot be told is told so; the run goes on."""
    config = LLAMA_8B | change
    with pytest.raises(UnknownShapeError, match=why):
        read_shape(config)
    admission = admit(config, Training(), L4)
    assert admission.memory is None
    assert admission.forecast is None
    assert why in admission.message


def test_experts_take_memory_all_and_time_only_when_active() -> None:
    """Mixtral 8x7B: 46.7 billion parameters of which a token passes 12.9 (Jiang et al. 2024, arXiv 2401.04088)."""
    shape = shape_of(MIXTRAL)
    assert shape.parameters / 1e9 == pytest.approx(46.7, abs=0.05)
    assert shape.active_parameters / 1e9 == pytest.approx(12.9, abs=0.05)
    nf4 = peak_memory(shape, Training(), ON_GPU).weights
    assert nf4 > 2 * shape.expert_parameters  # transformers 5 holds experts as one tensor, which nf4 leaves alone
