"""What the code of a model family in transformers fixes: the names of its layers, its norms and biases, and the sizes
that its config.json may leave out.

Preflight's image holds neither torch nor transformers, so it is written down here; tests/unit/test_fit_shapes.py builds
each family with transformers on PyTorch's meta device and compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class QkNorm(Enum):
    """Over what queries and keys are normalised with weights of their own."""

    NONE = 0
    HEAD = 1
    WHOLE = 2


@dataclass(frozen=True)
class Family:
    """What a family's code in transformers fixes, and the defaults of what its config.json may leave out."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    gated: bool = True
    norms: int = 2
    norm_weight: bool = True
    norm_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    """Of queries, keys and values, whatever the config says."""
    out_bias: bool = True
    """Whether the last projection of attention has a bias where the config gives attention one."""
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False
    sparse: bool = False
    shared: bool = False
    """Whether all tokens pass through one more feed-forward part beside the experts."""
    expert_bias: bool = False
    sinks: bool = False
    """Whether each head has one more weight, to attend to nothing."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Sizes that config.json may leave out."""


_GEMMA: Final = {"head_dim": 256}
_GEMMA3: Final = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208}
_LLAMA4: Final = Family(
    sparse=True,
    shared=True,
    defaults={
        "head_dim": 128,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 202048,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
    },
)
OF_TYPE: Final[Mapping[str, Family]] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(defaults={"num_key_value_heads": 8}),
    "ministral3": Family(defaults={"head_dim": 128, "num_key_value_heads": 8}),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=QkNorm.HEAD, defaults={"head_dim": 128}),
    "gemma": Family(tied=True, defaults=_GEMMA),
    "gemma2": Family(norms=4, tied=True, defaults=_GEMMA),
    "gemma3_text": Family(norms=4, qk_norm=QkNorm.HEAD, tied=True, defaults=_GEMMA3),
    "granite": Family(),
    "smollm3": Family(tied=True, defaults={"num_key_value_heads": 4}),
    "glm4": Family(
        up=("gate_up_proj",),
        norms=4,
        attention_bias=True,
        out_bias=False,
        defaults={"head_dim": 128, "num_key_value_heads": 2},
    ),
    "cohere2": Family(norms=1, tied=True),
    "olmo": Family(norm_weight=False),
    "olmo2": Family(qk_norm=QkNorm.WHOLE),
    "olmo3": Family(qk_norm=QkNorm.WHOLE),
    "starcoder2": Family(
        up=("c_fc",),
        down="c_proj",
        gated=False,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        tied=True,
        defaults={"num_key_value_heads": 2},
    ),
    "phi": Family(
        out="dense",
        up=("fc1",),
        down="fc2",
        gated=False,
        norms=1,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        head_bias=True,
    ),
    "phi3": Family(qkv=("qkv_proj",), up=("gate_up_proj",)),
    "gpt_neox": Family(
        qkv=("query_key_value",),
        out="dense",
        up=("dense_h_to_4h",),
        down="dense_4h_to_h",
        gated=False,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "mixtral": Family(sparse=True),
    "qwen3_moe": Family(qk_norm=QkNorm.HEAD, sparse=True),
    "olmoe": Family(
        qk_norm=QkNorm.WHOLE,
        sparse=True,
        defaults={"num_experts": 64, "num_experts_per_tok": 8},
    ),
    "gpt_oss": Family(
        attention_bias=True,
        sparse=True,
        expert_bias=True,
        sinks=True,
        defaults={"head_dim": 64, "num_key_value_heads": 8, "num_experts_per_tok": 4},
    ),
    "llama4_text": _LLAMA4,
}
NESTED: Final = {"gemma3": "gemma3_text", "llama4": "llama4_text"}
"""Configurations of a text part and others, and the family of the text part. Of Gemma 3, the part for images is loaded
and adapted too; of Llama 4, transformers' causal model takes the text part alone."""
NO_TEXT_MODEL: Final = frozenset({"mistral3", "pixtral", "mllama", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3n"})
"""Families for images and text of which transformers 5.24 loads no causal language model, or one that is not known."""
