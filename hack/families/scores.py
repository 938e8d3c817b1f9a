"""What attention keeps of its scores, where transformers has no kernel for it: one per head, query and key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from unittest import mock

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hack.families.models import build, config_of

TOKENS: Final = 61
"""No size of a small model is as large, nor one more."""


def score_bytes(family: str, fields: Mapping[str, Any]) -> int:
    """Bytes of a score that a backward pass needs, of the model with these ``fields``; 0 if a kernel computes attention
    (``scaled_dot_product_attention``) and keeps none."""
    if build(config_of(family, fields))._supports_sdpa:
        return 0
    config = config_of(family, fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").train()
    kept: dict[int, torch.Tensor] = {}  # held, so that no other tensor gets its address
    as_on_gpu = mock.patch.object(nn.functional, "softmax", partial(_softmax, nn.functional.softmax))
    hooks = torch.autograd.graph.saved_tensors_hooks(partial(_keep, kept), lambda tensor: tensor)
    with as_on_gpu, hooks, torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros((1, TOKENS), dtype=torch.long), use_cache=False)
    scores: int = config.num_hidden_layers * config.num_attention_heads * TOKENS**2
    held: int = sum(each.untyped_storage().nbytes() for each in kept.values() if _holds_scores(each))
    return round(held / scores)


def _softmax(
    plain: Callable[..., torch.Tensor], given: torch.Tensor, dim: int | None = None, **named: Any
) -> torch.Tensor:
    """As autocast has it on GPUs, where it is computed in float32 unless told otherwise."""
    return plain(given, dim=dim, **{**named, "dtype": named.get("dtype") or torch.float32})


def _keep(kept: dict[int, torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    kept[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def _holds_scores(tensor: torch.Tensor) -> bool:
    """Whether it has one for each head, query and key, or a sink's beside the keys; not what all heads share, as a
    mask."""
    shape = tuple(tensor.shape)
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    return len(shape) > 2 and shape[-2] == TOKENS and shape[-1] in (TOKENS, TOKENS + 1) and held > 2 * TOKENS**2
