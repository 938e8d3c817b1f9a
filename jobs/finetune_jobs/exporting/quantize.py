"""8-bit weights and activations (W8A8) in the compressed-tensors format, by llm-compressor.

The only module that imports llm-compressor, whose pins live in the image and environment ``quantize``.
"""

import logging
from pathlib import Path
from typing import Any, Final

from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from loguru import logger as loguru_logger

MAX_SHARD: Final = "5GB"
"""Largest weight file: a size that suits object stores and parallel downloads."""


def quantize_int8(model: Any, out: Path) -> None:
    """Write ``model`` as INT8: weights per channel, activations per token at run time, so no data is needed. The output
    layer stays 16-bit, as in every published W8A8 checkpoint: rounding it would affect every answer.
    """
    # llm-compressor logs through loguru: its warnings and errors go into this stage's log.
    loguru_logger.configure(handlers=[{"sink": logging.getLogger("llmcompressor").warning, "level": "WARNING"}])
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]))
    model.save_pretrained(out, save_compressed=True, safe_serialization=True, max_shard_size=MAX_SHARD)
