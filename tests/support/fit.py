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
GEMMA2_9B: dict[str, Any] = {
    "model_type": "gemma2",
    "head_dim": 256,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "vocab_size": 256000,
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""deepseek-ai/DeepSeek-V3 on the hub, without its quantisation."""
GLM_AIR: dict[str, Any] = {
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
"""zai-org/GLM-4.5-Air on the hub."""
QWEN35_27B: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 248320,
}
"""The text part of Qwen/Qwen3.5-27B on the hub."""
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
GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "intermediate_size": 2880,
    "vocab_size": 201088,
    "num_local_experts": 32,
}
MXFP4: dict[str, Any] = GPT_OSS_20B | {"quantization_config": {"quant_method": "mxfp4"}}
"""The same as published."""
L4 = HardwareFacts(
    profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22, peak_tflops=121, usd_per_hour=0.8, cpus=8
)
A100 = HardwareFacts(
    profile="gpu-a100-40", name="NVIDIA A100 40GB", count=1, memory_gib=39, peak_tflops=312, usd_per_hour=2.1
)
CPU = HardwareFacts(profile="cpu-small", memory_gib=8, cpus=2)


def small(family: str) -> dict[str, Any]:
    """A config.json of a family with the usual names of sizes, as small as it gets."""
    if family == "gemma3":
        return {"model_type": family, "text_config": small("gemma3_text"), "vision_config": VISION}
    return {"model_type": family} | SMALL


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
CONFIGS = st.sampled_from([LLAMA_8B, MIXTRAL, SMOLLM, GLM_AIR, QWEN35_27B, small("gpt_neox"), small("gemma3_text")])
