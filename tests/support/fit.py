"""Models by their config.json, and the hardware that they are measured against."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from finetune_api.budget import (
    HardwareFacts,
)
from finetune_api.training import AdapterKind, Method, Quantization, Training
from finetune_jobs.fit.shapes import Shape, read_shape

SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 224,
    "vocab_size": 500,
    "pad_token_id": 0,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gpt_neox": {"num_key_value_heads": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 24, "intermediate_size_mlp": 224},
    "ministral": {"head_dim": 24, "sliding_window": 32},
    "glm4": {"head_dim": 24},
}
NESTED: dict[str, str] = {"gemma3": "gemma3_text", "llama4": "llama4_text"}
"""Families whose config.json holds that of another one, the text part."""
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 56,
    "patch_size": 14,
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "intermediate_size": 28672,
}
MIXTRAL = LLAMA_8B | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
SMOLLM = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
L4 = HardwareFacts(
    profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22, peak_tflops=121, usd_per_hour=0.8, cpus=8
)
A100 = HardwareFacts(
    profile="gpu-a100-40", name="NVIDIA A100 40GB", count=1, memory_gib=39, peak_tflops=312, usd_per_hour=2.1
)
CPU = HardwareFacts(profile="cpu-small", memory_gib=8, cpus=2)


def small(family: str) -> dict[str, Any]:
    """A config.json of the family, as small as it gets."""
    if family in NESTED:
        parts = {"text_config": small(NESTED[family]) | {"model_type": NESTED[family]}}
        return {"model_type": family, **parts} | ({"vision_config": VISION} if family == "gemma3" else {})
    config = {"model_type": family} | SMALL | SPECIAL.get(family, {})
    return {name: value for name, value in config.items() if value is not None}


def shape_of(config: dict[str, Any]) -> Shape:
    """Its shape."""
    return read_shape(config)


TRAININGS = st.builds(
    Training,
    method=st.sampled_from(Method),
    quantization=st.sampled_from(Quantization),
    batch_size=st.sampled_from([1, 2, 4, 8, 64]),
    max_length=st.sampled_from([16, 512, 2048, 8192]),
    rank=st.sampled_from([1, 16, 256]),
    dropout=st.sampled_from(["0", "0.05"]),
    adapter=st.sampled_from(AdapterKind),
)
CONFIGS = st.sampled_from([LLAMA_8B, MIXTRAL, SMOLLM, small("gpt_neox"), small("gemma3_text")])
