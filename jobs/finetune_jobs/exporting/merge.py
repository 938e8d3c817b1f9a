"""Merges an adapter into its base without losing what was trained.

A QLoRA adapter has learnt on top of the rounded 4-bit base, so that rounded base is dequantised and the adapter merged
into it. The obvious ways are worse: merging inside the 4-bit weights rounds the small change away (PEFT issues 1043 and
2321), and merging into the original 16-bit base drops what the adapter learnt of the rounding. The numbers are in
docs/concepts/training.md.
"""

from pathlib import Path
from typing import Any

from finetune_jobs.exporting.offload import device_for_16_bits
from finetune_jobs.modelling.loading import DTYPE, load_adapter, load_base, load_checkpoint, plain
from finetune_jobs.modelling.tuning import Tuning


def merge(base: Path, tuned: Path, tuning: Tuning) -> Any:
    """The tuned model as one 16-bit model that computes what the trained one did; ``tuned`` is train's output. It is in
    pod memory if the GPU, which may have trained on 4 bits of each weight, is too small for it."""
    if not tuning.is_adapter:
        return load_checkpoint(tuned, dtype=DTYPE, where=device_for_16_bits(tuned))
    return load_adapter(plain_base(base, tuning), tuned).merge_and_unload()


def plain_base(base: Path, tuning: Tuning) -> Any:
    """The model that the adapter was trained on, in 16 bits: for QLoRA with the rounded values."""
    return plain(load_base(base, tuning.quantization, dtype=DTYPE, where=device_for_16_bits(base)))
