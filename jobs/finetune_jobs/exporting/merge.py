"""Merging an adapter into its base without losing what was trained.

A QLoRA adapter has learnt on top of the rounded 4-bit base, so that rounded base is dequantised and the adapter merged
into it. The obvious ways are worse: merging inside the 4-bit weights rounds the small change away (PEFT issues 1043
and 2321), and merging into the original 16-bit base drops what the adapter learnt of the rounding. The numbers are in
docs/concepts/training.md.
"""

from pathlib import Path
from typing import Any

from finetune_api.training import Method
from finetune_jobs.modelling.loading import DTYPE, load_adapter, load_base


def merge(base: Path, adapter: Path, method: Method) -> Any:
    """The tuned model as one 16-bit model, computing what base and adapter computed as trained."""
    model = load_base(base, method)
    if method is Method.QLORA:
        model = model.dequantize().to(DTYPE)
    return load_adapter(model, adapter).merge_and_unload()
