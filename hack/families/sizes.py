"""Small models to read families from: four of each, whose sizes tell every field of a config from every other one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

READ: Final = 3
"""The first models are read, the last one is for comparison only."""
EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Names that families have for how many experts there are, and for how many of them a token passes through."""
ACTIVE: Final = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_HIDDEN: Final = (96, 160, 240, 128)
_INNER: Final = (224, 352, 416, 288)
_SHARED: Final = (136, 144, 152, 120)
_DENSE: Final = (184, 208, 264, 312)
SIZES: Final[Mapping[str, tuple[int, ...]]] = {
    "hidden_size": _HIDDEN,
    # Enough layers for one of each kind, where families have several.
    "num_hidden_layers": (5, 7, 8, 9),
    "num_attention_heads": (4, 8, 12, 8),
    "num_key_value_heads": (2, 2, 3, 4),
    "num_kv_heads": (2, 2, 3, 4),
    "head_dim": (32, 16, 24, 48),
    "intermediate_size": _INNER,
    "ffn_dim": _INNER,
    "ffn_hidden_size": _INNER,
    "vocab_size": (509, 613, 701, 811),
    "max_position_embeddings": (128, 192, 320, 256),
    **dict.fromkeys(EXPERTS, (6, 10, 8, 12)),
    **dict.fromkeys(ACTIVE, (2, 3, 2, 4)),
    "moe_intermediate_size": (72, 56, 88, 104),
    "intermediate_size_mlp": _DENSE,
    "shared_expert_intermediate_size": _SHARED,
    "shared_intermediate_size": _SHARED,
    "n_shared_experts": (3, 2, 4, 3),
    "num_shared_experts": (3, 2, 4, 3),
    "moe_num_shared_experts": (3, 2, 4, 3),
    "q_lora_rank": (28, 44, 52, 36),
    "kv_lora_rank": (36, 20, 68, 44),
    "qk_rope_head_dim": (8, 16, 12, 20),
    "qk_nope_head_dim": (24, 40, 18, 28),
    "v_head_dim": (26, 34, 22, 38),
    "linear_num_key_heads": (3, 5, 2, 4),
    "linear_num_value_heads": (6, 5, 8, 12),
    "linear_key_head_dim": (10, 14, 27, 18),
    "linear_value_head_dim": (30, 12, 46, 58),
    "linear_conv_kernel_dim": (3, 5, 4, 2),
}
SET: Final[Mapping[str, int]] = {"pad_token_id": 0, "n_group": 1, "topk_group": 1}
"""What would not fit models as small as these: a padding token above the vocabulary, more groups than experts."""

EARLIER: Final[Mapping[str, str]] = {"n_embed": "hidden_size"}
"""Names that some configs still take for a field, though their ``attribute_map`` does not have them (BLOOM)."""


def names(config: type[Any], *, standard: Mapping[str, Any] = SIZES) -> dict[str, str]:
    """The fields of a config class that have one of the ``standard`` names, or stand for it: by that name."""
    own = {each.name for each in dataclasses.fields(config)}
    other: Mapping[str, str] = getattr(config, "attribute_map", {})
    found = {name: name if name in own else other.get(name, name) for name in standard}
    return {name: field for name, field in found.items() if field in own}


def aliases(config: type[Any]) -> dict[str, str]:
    """Other names of the fields of a config class, and theirs."""
    own = {each.name for each in dataclasses.fields(config)}
    pairs = [sorted(pair, key=lambda each: each in own) for pair in getattr(config, "attribute_map", {}).items()]
    found = {name: field for name, field in pairs if field in own and name not in own}
    return found | {name: field for name, field in EARLIER.items() if field in own and _takes(config, name, field)}


def _takes(config: type[Any], name: str, field: str) -> bool:
    """Whether a config sets a field by another name."""
    size = SIZES[field][0]
    try:
        return bool(getattr(config(**{name: size}), field) == size)
    except Exception:  # noqa: BLE001 # whatever a config raises
        return False


def small(config: type[Any], index: int) -> dict[str, int]:
    """The fields of one of the models."""
    sizes = {field: SIZES[name][index] for name, field in names(config).items()}
    return sizes | {field: SET[name] for name, field in names(config, standard=SET).items()}
