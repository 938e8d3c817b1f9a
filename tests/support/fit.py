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
