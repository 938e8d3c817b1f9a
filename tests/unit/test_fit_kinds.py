"""Models whose layers are of several kinds: how many there are of each, and what each of them adds to an estimate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from finetune_api.training import Training
from finetune_jobs.fit.duration import operations
from finetune_jobs.fit.families import Asks, Condition, Pattern
from finetune_jobs.fit.fields import UnknownShapeError, order
from finetune_jobs.fit.memory import NF4, peak_memory, trained_parameters
from finetune_jobs.fit.shapes import Shape, read_shape
from finetune_jobs.fit.steps import DIVIDED, KEPT, ON_GPU, SELECTIVE
from finetune_jobs.fit.suitability import require_suitable
from tests.support.fit import A100, DEEPSEEK_V3, GLM_AIR, QWEN35_27B, TRAININGS, shape_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        (DEEPSEEK_V3, 671.0, 37.6),  # "671B total, 37B activated", without the embedding of 0.9 (arXiv 2412.19437)
        (
            GLM_AIR,
            106.9,
            13.4,
        ),  # "106B, 12B activated", without embedding and output layer: 1.2 (arXiv 2508.06471)
        (
            # GLM-4.5: "355B, 32B activated", with a layer of 3.8 for a second token, without embeddings (same paper)
            GLM_AIR
            | {
                "first_k_dense_replace": 3,
                "hidden_size": 5120,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "n_routed_experts": 160,
                "num_hidden_layers": 92,
                "use_qk_norm": True,
            },
            352.8,
            33.6,
        ),
        (
            # Qwen3-Next-80B-A3B: "80B in total and 3B activated" (model card), without embeddings
            {
                "model_type": "qwen3_next",
                "decoder_sparse_step": 1,
                "full_attention_interval": 4,
                "head_dim": 256,
                "hidden_size": 2048,
                "intermediate_size": 5120,
                "linear_conv_kernel_dim": 4,
                "linear_key_head_dim": 128,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "linear_value_head_dim": 128,
                "mlp_only_layers": [],
                "moe_intermediate_size": 512,
                "num_attention_heads": 16,
                "num_experts": 512,
                "num_experts_per_tok": 10,
                "num_hidden_layers": 48,
                "num_key_value_heads": 2,
                "shared_expert_intermediate_size": 512,
                "tie_word_embeddings": False,
                "vocab_size": 151936,
            },
            79.7,
            3.9,
        ),
        ({"model_type": "qwen3_5", "text_config": QWEN35_27B}, 26.9, 26.9),
        (
            # Qwen/Qwen3.5-9B
            QWEN35_27B
            | {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "linear_num_value_heads": 32,
                "num_attention_heads": 16,
                "num_hidden_layers": 32,
            },
            8.95,
            8.95,
        ),
        (
            # LGAI-EXAONE/K-EXAONE-236B-A23B
            {
                "model_type": "exaone_moe",
                "first_k_dense_replace": 1,
                "head_dim": 128,
                "hidden_size": 6144,
                "intermediate_size": 18432,
                "moe_intermediate_size": 2048,
                "num_attention_heads": 64,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "num_shared_experts": 1,
                "vocab_size": 153600,
            },
            236.6,
            23.7,
        ),
        (
            # baidu/ERNIE-4.5-21B-A3B-PT: 21.8 billion in its files, "3B activated"
            {
                "model_type": "ernie4_5_moe",
                "hidden_size": 2560,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "moe_k": 6,
                "moe_layer_interval": 1,
                "moe_layer_start_index": 1,
                "moe_num_experts": 64,
                "moe_num_shared_experts": 2,
                "num_attention_heads": 20,
                "num_hidden_layers": 28,
                "num_key_value_heads": 4,
                "tie_word_embeddings": True,
                "use_bias": False,
                "vocab_size": 103424,
            },
            21.8,
            3.3,
        ),
        (
            # deepseek-ai/DeepSeek-V2: "236B total, 21B activated" (arXiv 2405.04434)
            {
                "model_type": "deepseek_v2",
                "first_k_dense_replace": 1,
                "hidden_size": 5120,
                "intermediate_size": 12288,
                "kv_lora_rank": 512,
                "moe_intermediate_size": 1536,
                "n_routed_experts": 160,
                "n_shared_experts": 2,
                "num_attention_heads": 128,
                "num_experts_per_tok": 6,
                "num_hidden_layers": 60,
                "q_lora_rank": 1536,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "vocab_size": 102400,
            },
            235.7,
            21.4,
        ),
        (
            # Llama 4 Maverick: 402 with its part for images, "17B activated" (Meta's model card)
            {
                "model_type": "llama4_text",
                "hidden_size": 5120,
                "interleave_moe_layer_step": 2,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "num_hidden_layers": 48,
                "num_local_experts": 128,
            },
            400.7,
            17.2,
        ),
    ],
    ids=[
        "DeepSeek-V3",
        "GLM-4.5-Air",
        "GLM-4.5",
        "Qwen3-Next",
        "Qwen3.5-27B",
        "Qwen3.5-9B",
        "K-EXAONE",
        "ERNIE-4.5",
        "DeepSeek-V2",
        "Llama 4 Maverick",
    ],
)
def test_released_models(config: dict[str, Any], billions: float, active: float) -> None:
    """Their sizes are those that their makers publish, without parts that predict several tokens at once."""
    shape = shape_of(config)
    assert len(shape.kinds) == 2
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.1)
    assert shape.active_parameters / 1e9 == pytest.approx(active, abs=0.1)


FROM = Condition(asks=Asks.FROM, field="first", usual=1)
EVERY = Condition(asks=Asks.EVERY, field="step", usual=2)
UNTIL = Condition(asks=Asks.UNTIL, field="end", usual=-1)
EXCEPT = Condition(asks=Asks.EXCEPT, field="without", usual=(0,))
FOURTH = Condition(asks=Asks.EVERY, usual=4)
LISTED = Pattern(listed="types", labels={"linear": 0, "full": 1, "sliding": 1, "none": 2}, second=(FOURTH,))
NUMBERED = Pattern(listed="numbers", second=(EVERY,))


@pytest.mark.parametrize(
    ("pattern", "fields", "found"),
    [
        (Pattern(second=(FROM,)), {}, "01111111"),
        (Pattern(second=(FROM,)), {"first": 3}, "00011111"),
        (Pattern(second=(FROM,)), {"first": 0}, "11111111"),
        (Pattern(second=(FROM,)), {"first": 99}, "00000000"),
        (Pattern(second=(EVERY,)), {}, "01010101"),
        (Pattern(second=(EVERY,)), {"step": 3}, "00100100"),
        (Pattern(second=(FROM, UNTIL, EVERY)), {"first": 2}, "00010101"),
        (Pattern(second=(FROM, UNTIL, EVERY)), {"first": 2, "end": 5, "step": 1}, "00111100"),
        (Pattern(second=(EXCEPT,)), {}, "01111111"),
        (Pattern(second=(EXCEPT,)), {"without": None}, "01111111"),
        (Pattern(second=(EXCEPT,)), {"without": [2, 5]}, "11011011"),
        (LISTED, {}, "00010001"),
        (LISTED, {"types": None}, "00010001"),
        (LISTED, {"types": ["full", "linear", "sliding", "none"] * 2}, "10121012"),
        (NUMBERED, {}, "01010101"),
        (NUMBERED, {"numbers": [0, 7], "step": 3}, "10000001"),
        (NUMBERED, {"numbers": []}, "00000000"),
    ],
)
def test_the_kind_of_each_layer_follows_from_the_config(pattern: Pattern, fields: dict[str, Any], found: str) -> None:
    assert "".join(map(str, order(pattern, fields, 8))) == found


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (DEEPSEEK_V3 | {"first_k_dense_replace": None}, "first_k_dense_replace: no whole number"),
        (DEEPSEEK_V3 | {"first_k_dense_replace": "3"}, "first_k_dense_replace: no whole number"),
        (DEEPSEEK_V3 | {"num_hidden_layers": 1 << 20}, "num_hidden_layers: more than 10,000"),
        ({"model_type": "ernie4_5_moe", "moe_layer_interval": 0}, "moe_layer_interval: below 1"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 3}, "mlp_only_layers: no list"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": ["a"]}, "mlp_only_layers: no whole number"),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense"]}, "not a list with an entry for each layer"),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["conv"] * 47}, "differ from the family's usual models"),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": [{}] * 47}, "differ from the family's usual models"),
        ({"model_type": "llama4_text", "moe_layers": "all"}, "moe_layers: no list"),
    ],
)
def test_layers_that_cannot_be_told_are_unknown(config: dict[str, Any], why: str) -> None:
    with pytest.raises(UnknownShapeError, match=re.escape(why)):
        read_shape(config)


LAYERS = DEEPSEEK_V3["num_hidden_layers"]
DENSE, MIXED, SPARSE = (shape_of(DEEPSEEK_V3 | {"first_k_dense_replace": first}) for first in (LAYERS, 3, 0))
"""The same model with experts in no layer, in most of them, and in all."""


def test_layers_are_counted_by_their_kinds() -> None:
    assert [kind.count for kind in MIXED.kinds] == [3, LAYERS - 3]
    assert [len(shape.kinds) for shape in (DENSE, SPARSE)] == [1, 1]
    assert not DENSE.has_experts
    assert MIXED.has_experts
    assert Counter(MIXED.linear_layers)["gate_proj", 7168, 18432] == 3
    assert Counter(MIXED.linear_layers)["gate_proj", 7168, 2048] == LAYERS - 3


@given(training=TRAININGS)
def test_what_is_summed_over_layers_is_summed_over_each_kind(training: Training) -> None:
    """Three of 61 layers are dense: the figures are those of three dense layers and 58 others."""

    def in_proportion(figure: Callable[[Shape], float]) -> None:
        dense, mixed, sparse = map(figure, (DENSE, MIXED, SPARSE))
        assert mixed == pytest.approx(sparse + 3 * (dense - sparse) / LAYERS, rel=1e-9)

    in_proportion(lambda shape: shape.parameters)
    in_proportion(lambda shape: shape.active_parameters)
    in_proportion(lambda shape: shape.linear_parameters)
    in_proportion(lambda shape: trained_parameters(shape, training))
    in_proportion(lambda shape: operations(shape, training, ON_GPU, training.max_length))
    in_proportion(lambda shape: peak_memory(shape, training, ON_GPU).weights)
    in_proportion(lambda shape: peak_memory(shape, training, ON_GPU).state)


@given(training=TRAININGS)
def test_of_what_is_alive_once_the_largest_layer_counts(training: Training) -> None:
    """The layer that is computed again, the matrix that is unpacked, and the layers that processes gather."""

    def largest(figure: Callable[[Shape], float]) -> None:
        dense, mixed, sparse = map(figure, (DENSE, MIXED, SPARSE))
        assert mixed == pytest.approx(max(dense, sparse))

    def gathered(shape: Shape) -> float:
        alone, divided = (peak_memory(shape, training, step, 4).workspace for step in (ON_GPU, DIVIDED))
        return divided - alone

    largest(lambda shape: peak_memory(shape, training, ON_GPU).activations)
    largest(lambda shape: peak_memory(shape, training, ON_GPU).workspace)
    largest(gathered)


@given(training=TRAININGS)
def test_activations_that_are_kept_are_those_of_all_kinds(training: Training) -> None:
    """Between those of a model with layers of one kind and of the other."""
    for step in (KEPT, SELECTIVE):
        kept = [peak_memory(shape, training, step).activations for shape in (DENSE, MIXED, SPARSE)]
        assert min(kept[0], kept[2]) <= kept[1] <= max(kept) * (1 + 1e-9)


def test_experts_in_some_layers_are_told_as_experts_in_all() -> None:
    """Nothing adapts them, and what attention and the dense layers hold is little."""
    advice = require_suitable(DEEPSEEK_V3, Training(), "Merged", A100)
    share = MIXED.linear_parameters / MIXED.parameters
    assert f"({share:.1%}), attention and what all tokens share only" in advice.warning
    assert (
        "mixture of experts"
        not in require_suitable(DEEPSEEK_V3 | {"first_k_dense_replace": LAYERS}, Training(), "Merged", A100).warning
    )
    nf4 = peak_memory(MIXED, Training(), ON_GPU).weights
    assert nf4 == pytest.approx(NF4 * MIXED.linear_parameters + 2 * (MIXED.parameters - MIXED.linear_parameters))
