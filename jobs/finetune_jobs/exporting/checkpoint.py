"""What every exported checkpoint has, whatever its weights."""

from pathlib import Path
from typing import Any, Final

from finetune_jobs.exporting.transformers_v4 import add_tokenizer_config, write_transformers_v4
from finetune_jobs.modelling.loading import copy_tokenizer
from finetune_jobs.modelling.tokenizer import write_served_template, write_stop_tokens
from finetune_jobs.modelling.tuning import Tuning

MAX_SHARD: Final = "5GB"
"""Largest weight file: a size that suits object stores and parallel downloads."""


def save_16_bits(model: Any, out: Path) -> None:
    """Write weights that are not rounded."""
    model.save_pretrained(out, safe_serialization=True, max_shard_size=MAX_SHARD)


def complete(base: Path, out: Path, tuning: Tuning) -> None:
    """Add the tokenizer with the template that was trained, all tokens that end an answer, and what readers with
    transformers 4 need."""
    copy_tokenizer(base, out)
    add_tokenizer_config(out)
    write_served_template(out, thoughts=tuning.thoughts)
    write_stop_tokens(out)
    write_transformers_v4(out)
