"""What a layer with the gated delta rule keeps for its backward pass, against PyTorch's autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.training import Training
from finetune_jobs.fit.activations import activations
from finetune_jobs.fit.steps import KEPT
from tests.support.fit import shape_of

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_environment")]

DELTA = {
    "model_type": "qwen3_5_text",
    "full_attention_interval": 9,
    "head_dim": 48,
    "hidden_size": 160,
    "intermediate_size": 368,
    "linear_num_key_heads": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
"""A small Qwen3.5 without attention."""


@pytest.mark.parametrize(("heads", "keys", "values"), [(6, 24, 40), (2, 64, 16)])
def test_a_layer_with_the_delta_rule_keeps_what_autograd_keeps(heads: int, keys: int, values: int) -> None:
    """Counted on a layer of transformers with frozen weights and no adapter; the estimate also has what an adapter of
    the last projection reads."""
    tokens, config = (
        256,
        DELTA
        | {
            "linear_num_value_heads": heads,
            "linear_key_head_dim": keys,
            "linear_value_head_dim": values,
        },
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.requires_grad_(False)
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    hidden = torch.randn(1, tokens, config["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](hidden * 1, position_embeddings=None, attention_mask=None)
    training = Training(batch_size=1, max_length=tokens, target_modules=["none"])
    one, two = (activations(shape_of(config | {"num_hidden_layers": count}), training, KEPT) for count in (1, 2))
    assert two - one == pytest.approx(sum(each.nbytes() for each in kept.values()) * 1.025, rel=0.025)
