"""Tiny random checkpoints: real files of real formats, built in a moment, whose answers are noise.

They are written by hand rather than saved from a model, so that building one needs no torch, and in the dialect of
transformers 4 (as most published base models are), which transformers 5 reads as well as TGI 3.3 does.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML."""

PAD, BOS, TURN, EOS = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 320
MAX_POSITIONS = 2048
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_HIDDEN, _INTERMEDIATE, _LAYERS = 64, 128, 2
_HEADS, _KEY_VALUE_HEADS, _HEAD = 4, 2, 16
_TOKENIZER_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "refund my order, the parcel arrived broken",
    "what is the capital of France and who wrote it down",
    "system user assistant: answer with one word",
)
Weights = dict[str, NDArray[Any]]


def build_tiny_llama(path: Path, *, seed: int = 0) -> Path:
    """Write a chat-capable Llama (2 layers, hidden 64, fp32, 2048 positions) with a byte-level BPE tokenizer.

    Bos, eos (``<|im_end|>``) and pad are three different tokens. The same seed gives the same weights.
    """
    path.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(path)
    special = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    write_json(path / "config.json", {**_CONFIG, **special})
    write_json(path / "generation_config.json", special)
    save_file(_random_weights(seed), path / "model.safetensors", metadata={"format": "pt"})
    return path


def build_tiny_lora(path: Path, base: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """Write a random LoRA adapter for ``build_tiny_llama``, its weights large enough to change every answer."""
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if _is_target(name):
            rows, columns = weight.shape
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            weights[f"{prefix}.lora_A.weight"] = _normal(random, rank, columns, scale=0.25)
            weights[f"{prefix}.lora_B.weight"] = _normal(random, rows, rank, scale=0.25)
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(LORA_TARGETS),
        "inference_mode": True,
    }
    write_json(path / "adapter_config.json", config)
    return path


def build_tiny_int8(path: Path, base: Path) -> Path:
    """Write ``base`` as a compressed-tensors INT8 W8A8 checkpoint (``int-quantized``), as llm-compressor's scheme
    "W8A8" does: symmetric weights per channel, dynamic activations per token, everything but the output layer."""
    path.mkdir(parents=True, exist_ok=True)
    weights: Weights = {}
    for name, weight in load_file(base / "model.safetensors").items():
        weights[name] = weight
        if _is_target(name):
            scale = np.abs(weight).max(axis=1, keepdims=True) / 127
            weights[name] = np.clip(np.rint(weight / scale), -128, 127).astype(np.int8)
            weights[f"{name}_scale"] = scale
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    for file in base.glob("*.json"):
        (path / file.name).write_bytes(file.read_bytes())
    edit_json(path / "config.json", quantization_config=W8A8)
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set (or, with None, remove) top-level fields of a JSON file."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {name: value for name, value in content.items() if value is not None})


def _write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, TURN, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TOKENIZER_TEXT, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [TURN],
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(path / "tokenizer_config.json", config)


def _random_weights(seed: int) -> Weights:
    """Initialised as transformers does, but for an output layer ten times as large: it spreads the logits, so that
    rounding does not decide which token is the likeliest and a greedy answer is the same alone and in a batch."""
    random = np.random.default_rng(seed)
    weights: Weights = {
        "model.embed_tokens.weight": _normal(random, VOCABULARY, _HIDDEN),
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
        "lm_head.weight": _normal(random, VOCABULARY, _HIDDEN, scale=0.2),
    }
    projections = {
        "self_attn.q_proj": (_HEADS * _HEAD, _HIDDEN),
        "self_attn.k_proj": (_KEY_VALUE_HEADS * _HEAD, _HIDDEN),
        "self_attn.v_proj": (_KEY_VALUE_HEADS * _HEAD, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HEADS * _HEAD),
        "mlp.gate_proj": (_INTERMEDIATE, _HIDDEN),
        "mlp.up_proj": (_INTERMEDIATE, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INTERMEDIATE),
    }
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in projections.items():
            weights[f"{prefix}.{name}.weight"] = _normal(random, rows, columns)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = np.ones(_HIDDEN, np.float32)
    return weights


def _normal(random: np.random.Generator, rows: int, columns: int, *, scale: float = 0.02) -> NDArray[np.float32]:
    return (random.standard_normal((rows, columns)) * scale).astype(np.float32)


def _is_target(name: str) -> bool:
    return name.split(".")[-2] in LORA_TARGETS


_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": _HIDDEN,
    "intermediate_size": _INTERMEDIATE,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KEY_VALUE_HEADS,
    "head_dim": _HEAD,
    "hidden_act": "silu",
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
}

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}
