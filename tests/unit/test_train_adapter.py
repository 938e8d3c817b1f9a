"""Which layers get an adapter, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from finetune_api.reasons import Reason
from finetune_api.training import Quantization
from finetune_jobs.errors import StageError
from finetune_jobs.modelling.loading import load_base
from finetune_jobs.training.adapter import adapter_config, linear_layers
from tests.support.tiny_model import LORA_TARGETS, build_tiny_llama
from tests.support.training import settings

pytestmark = pytest.mark.unit


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"r": 4, "lora_alpha": 8, "use_dora": False, "use_rslora": False, "target_modules": "all-linear"}),
        ({"dora": True, "rslora": True}, {"use_dora": True, "use_rslora": True}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": {"q_proj", "v_proj"}}),
        ({"target_modules": ["layers.0.mlp.up_proj"]}, {"target_modules": {"layers.0.mlp.up_proj"}}),
        ({"rank": 64, "alpha": 128}, {"r": 64}),
    ],
)
def test_the_spec_decides_the_kind(changes: dict[str, Any], expected: dict[str, Any], base: Path) -> None:
    config = adapter_config(load_base(base), settings(**changes))
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"target_modules": ["q_proj", "query_key_value"]},
            "spec.training.targetModules names 'query_key_value', which is no linear layer of LlamaForCausalLM that "
            "can get an adapter. There are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj. Left out, "
            "all of them are trained.",
        ),
        ({"target_modules": ["lm_head"]}, "names 'lm_head', which is no linear layer"),
        ({"target_modules": ["proj"]}, "names 'proj', which is no linear layer"),
        (
            {"rank": 128},
            "spec.training.rank 128 is more than any linear layer can use, whose smaller side is 64: set it to 64 at "
            "most; 16 suits most tasks.",
        ),
        ({"rank": 64, "target_modules": ["up_proj", "k_proj"]}, "rank 64 is more than k_proj can use"),
    ],
)
def test_what_the_model_does_not_have_is_refused(changes: dict[str, Any], says: str, base: Path) -> None:
    with pytest.raises(StageError) as raised:
        adapter_config(load_base(base), settings(**changes))
    assert says in raised.value.message
    assert raised.value.reason is Reason.SPEC_INVALID
    assert not raised.value.retriable
