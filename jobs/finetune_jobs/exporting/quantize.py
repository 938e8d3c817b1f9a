"""Quantized weights in the compressed-tensors format, by llm-compressor.

The only module that imports llm-compressor, whose pins live in the image and environment ``quantize``.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    QuantizationType,
)
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from loguru import logger as loguru_logger
from torch.utils.data import DataLoader

from finetune_api.export import ExportFormat
from finetune_jobs.exporting.calibration import Tokens
from finetune_jobs.exporting.checkpoint import MAX_SHARD
from finetune_jobs.fit.exported import require_calibrated, require_group, require_rounded

KEPT: Final = ["lm_head"]
"""The output layer stays 16-bit, as in every published W8A8 checkpoint: rounding it would affect every answer."""


def quantize(model: Any, out: Path, export_format: ExportFormat, calibration: Tokens = ()) -> None:
    """Round ``model`` and write it. INT8 and FP8 activations are rounded per token at run time, 8-bit weights have a
    scale for each output, so these need no data; INT4 is calibrated on the token ids of ``calibration``.

    Raises StageError (ModelUnsupported) for a model that has no such form.
    """
    require_rounded(export_format, len(list(_rounded_layers(model))))
    # llm-compressor logs through loguru: its warnings and errors go into this stage's log, the error of each layer,
    # which it ranks above them, does not.
    log = logging.getLogger("llmcompressor").warning
    loguru_logger.configure(handlers=[{"sink": log, "level": "WARNING", "filter": _is_no_metric}])
    if export_format is ExportFormat.INT4:
        _calibrated(model, calibration)
    else:
        _round(model, QuantizationModifier(ignore=KEPT, **_SCHEMES[export_format]))
    model.save_pretrained(out, save_compressed=True, safe_serialization=True, max_shard_size=MAX_SHARD)


def _weights_only(bits: int, **scales: Any) -> dict[str, Any]:
    """Integer weights; activations stay in 16 bits."""
    weights = QuantizationArgs(num_bits=bits, type=QuantizationType.INT, symmetric=True, **scales)
    return {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}


_SCHEMES: Final = {
    ExportFormat.INT8: {"targets": "Linear", "scheme": "W8A8"},
    ExportFormat.FP8: {"targets": "Linear", "scheme": "FP8_DYNAMIC"},
    ExportFormat.W8A16: _weights_only(8, strategy=QuantizationStrategy.CHANNEL),
}
"""The library's own presets where they fit every width: that of W8A16 has groups of 128."""


def _calibrated(model: Any, calibration: Tokens) -> None:
    """4-bit weights by GPTQ (Frantar et al. 2022, arXiv 2210.17323), one layer of the model after the other."""
    size = require_group(layer.in_features for layer in _rounded_layers(model))
    scheme = _weights_only(4, strategy=QuantizationStrategy.GROUP, group_size=size)
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in map(_batch, calibration)]
    _round(model, _Gptq(ignore=KEPT, **scheme), dataset=DataLoader(rows, batch_size=None))


def _round(model: Any, modifier: Any, **data: Any) -> None:
    """The library's session would keep the model in memory while the next one is merged."""
    oneshot(model=model, recipe=modifier, clear_sparse_session=True, **data)


class _Gptq(GPTQModifier):  # type: ignore[misc] # llm-compressor is not typed here
    """Where a layer's Hessian cannot be inverted, the library rounds it to the nearest value and only says so."""

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        """Called when all layers are rounded. Raises StageError (ModelUnsupported) if some are not calibrated."""
        require_calibrated(self._rtn_fallback_module_names)
        return bool(super().on_finalize(state, **kwargs))


def _is_no_metric(record: Any) -> bool:
    return bool(record["level"].name != "METRIC")


def _rounded_layers(model: Any) -> Iterator[Any]:
    return (
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] not in KEPT
    )


def _batch(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([ids], dtype=torch.long)
