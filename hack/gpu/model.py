"""A model of a current architecture and half a billion parameters, with random weights: its speed and memory are those
of a real one, and nothing has to be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
"""Those of Qwen3-0.6B (its config.json on the hub); the vocabulary is the tokenizer's."""
WORDS = 49152
"""The vocabulary is no smaller than the test model's: the output layer is a large part of such a model."""
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
"""For a rehearsal: heads as large as servers want them."""


def random_model(folder: Path, tokenizer_of: Path, sizes: Mapping[str, int] = SIZES, words: int = WORDS) -> Path:
    """Write the model to ``folder``, with the tokenizer of another one, and at least so many ``words``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen3Config(vocab_size=max(words, len(tokenizer)), tie_word_embeddings=True, **sizes, **tokens)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
