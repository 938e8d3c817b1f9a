"""Tiny random checkpoints: real files of real formats, built in a second or two, whose answers are noise.

Everything is written in the dialect of transformers 4 (as most published base models are), which transformers 5 reads
as well as TGI 3.3 does.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML."""

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_HIDDEN = 64
_INTERMEDIATE = 128
_LAYERS = 2
_TRAINING_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "refund my order, the parcel arrived broken",
    "what is the capital of France and who wrote it down",
    "system user assistant: answer with one word",
)


def build_tiny_llama(path: Path, *, seed: int = 0) -> Path:
    """Write a chat-capable Llama (2 layers, hidden 64, fp32, 2048 positions) with a byte-level BPE tokenizer.

    Bos, eos (``<|im_end|>``) and pad are three different tokens. The same seed gives the same weights.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config(tokenizer))
    # Random weights of the usual scale give almost equal logits, whose order rounding decides; ten times the
    # output layer spreads them, so that greedy answers are the same alone and in a batch.
    model.lm_head.weight.data *= 10
    model.save_pretrained(path)
    _to_transformers_4(path)
    return path


def build_tiny_lora(path: Path, base: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """Write a random LoRA adapter for ``build_tiny_llama`` whose weights are large enough to change every answer."""
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in load_file(base / "model.safetensors").items()
        if name.split(".")[-2] in LORA_TARGETS
    }
    weights: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in shapes.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / 4
        weights[f"{prefix}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 4
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
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def build_tiny_int8(path: Path, base: Path) -> Path:
    """Write ``base`` as a compressed-tensors INT8 W8A8 checkpoint (``int-quantized``): per-channel symmetric weights,
    dynamic per-token activations, everything but the output layer: what llm-compressor's scheme "W8A8" writes."""
    path.mkdir(parents=True, exist_ok=True)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.split(".")[-2] in LORA_TARGETS:
            scale = tensor.abs().amax(dim=1, keepdim=True) / 127
            weights[name] = torch.round(tensor / scale).clamp(-128, 127).to(torch.int8)
            weights[f"{name}_scale"] = scale
        else:
            weights[name] = tensor
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    for file in base.glob("*.json"):
        (path / file.name).write_bytes(file.read_bytes())
    _edit_json(path / "config.json", quantization_config=_w8a8())
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=_INTERMEDIATE,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def _to_transformers_4(path: Path) -> None:
    _edit_json(path / "config.json", rope_theta=10000.0, torch_dtype="float32")
    _edit_json(
        path / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=["<|im_start|>"],
        extra_special_tokens={},
    )
    (path / "chat_template.jinja").unlink(missing_ok=True)


def _edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}, indent=2), encoding="utf-8")


def _w8a8() -> dict[str, Any]:
    arguments = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**arguments, "strategy": "channel", "dynamic": False},
        "input_activations": {**arguments, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
