"""Quantized weights in the compressed-tensors format, by llm-compressor.

The only module that imports llm-compressor, whose pins live in the image and environment ``quantize``.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
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
from llmcompressor.modifiers.transform.awq import AWQModifier
from loguru import logger as loguru_logger
from pydantic import PrivateAttr
from torch.utils.data import DataLoader

from finetune_api.export import CALIBRATED, ExportFormat
from finetune_jobs.exporting.calibration import Tokens
from finetune_jobs.exporting.checkpoint import MAX_SHARD
from finetune_jobs.exporting.rescaling import Rescaling
from finetune_jobs.fit.exported import require_calibrated, require_group, require_rounded

KEPT: Final = ["lm_head"]
"""The output layer stays 16-bit, as in every published W8A8 checkpoint: rounding it would affect every answer."""

_ATTENTION_OUTPUT: Final = ".o_proj"
"""How the layer's name ends in every family that AWQ rescales."""


def quantize(model: Any, out: Path, export_format: ExportFormat, calibration: Tokens = ()) -> Sequence[Rescaling]:
    """Round ``model`` and write it. INT8 and FP8 activations are rounded per token at run time, 8-bit weights have a
    scale for each output, so these need no data; the formats of CALIBRATED are calibrated on the token ids of
    ``calibration``. Returns how weights were rescaled before they were rounded, which only AWQ does.

    Raises StageError (ModelUnsupported) for a model that has no such form.
    """
    require_rounded(export_format, len(_rounded_layers(model)))
    # llm-compressor logs through loguru: its warnings and errors go into this stage's log, the error of each layer,
    # which it ranks above them, does not.
    log = logging.getLogger("llmcompressor").warning
    loguru_logger.configure(handlers=[{"sink": log, "level": "WARNING", "filter": _is_no_metric}])
    rescalings: Sequence[Rescaling] = ()
    if export_format is ExportFormat.INT4:
        _round(model, [_Gptq(ignore=KEPT, **_four_bits(model, export_format))], calibration)
    elif export_format is ExportFormat.INT4_AWQ:
        rescalings = _round_by_awq(model, calibration)
    else:
        needed = calibration if export_format in CALIBRATED else ()
        _round(model, [QuantizationModifier(ignore=KEPT, **_SCHEMES[export_format])], needed)
    model.save_pretrained(out, save_compressed=True, safe_serialization=True, max_shard_size=MAX_SHARD)
    return rescalings


def _weights_only(bits: int, **scales: Any) -> dict[str, Any]:
    """Integer weights; activations stay in 16 bits."""
    weights = QuantizationArgs(num_bits=bits, type=QuantizationType.INT, symmetric=True, **scales)
    return {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}


def _static_floats() -> dict[str, Any]:
    """8-bit floating point: weights with a scale for each output, activations with one for all that a layer is given,
    by which the largest that calibration has seen becomes the largest value of the format."""
    floats = partial(QuantizationArgs, num_bits=8, type=QuantizationType.FLOAT, symmetric=True, dynamic=False)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=floats(strategy=QuantizationStrategy.CHANNEL),
        input_activations=floats(strategy=QuantizationStrategy.TENSOR, observer="static_minmax"),
    )
    return {"config_groups": {"group_0": scheme}}


_SCHEMES: Final = {
    ExportFormat.INT8: {"targets": "Linear", "scheme": "W8A8"},
    ExportFormat.FP8: {"targets": "Linear", "scheme": "FP8_DYNAMIC"},
    ExportFormat.FP8_STATIC: _static_floats(),
    ExportFormat.W8A16: _weights_only(8, strategy=QuantizationStrategy.CHANNEL),
}
"""The library's own presets where they fit: that of W8A16 has groups of 128, that of static FP8 a single scale for all
weights of a layer."""


def _four_bits(model: Any, export_format: ExportFormat) -> dict[str, Any]:
    size = require_group((layer.in_features for layer in _rounded_layers(model).values()), export_format)
    return _weights_only(4, strategy=QuantizationStrategy.GROUP, group_size=size)


def _round(model: Any, modifiers: Sequence[Any], calibration: Tokens) -> None:
    """To norms that add one to their weights (Gemma's), the library adds it in 16 bits while it works, and takes it off
    again, which rounds them: they get their own values back."""
    vectors = {name: each.detach().clone() for name, each in model.named_parameters() if each.ndim == 1}
    _apply(model, modifiers, calibration)
    with torch.no_grad():
        for name, each in vectors.items():
            model.get_parameter(name).copy_(each)


def _apply(model: Any, modifiers: Sequence[Any], calibration: Tokens) -> None:
    """One layer of the model after the other, if there is data. The library's session would keep the model in memory
    while the next one is merged."""
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in map(_batch, calibration)]
    data: Mapping[str, Any] = {"dataset": DataLoader(rows, batch_size=None)} if rows else {}
    oneshot(model=model, recipe=list(modifiers), clear_sparse_session=True, **data)


def _round_by_awq(model: Any, calibration: Tokens) -> Sequence[Rescaling]:
    awq, scheme = _Awq(), _four_bits(model, ExportFormat.INT4_AWQ)
    _apply(model, [awq, QuantizationModifier(ignore=KEPT, **scheme)], calibration)
    return awq.done


class _Gptq(GPTQModifier):  # type: ignore[misc] # llm-compressor is not typed here
    """4-bit weights by GPTQ (Frantar et al. 2022, arXiv 2210.17323). Where a layer's Hessian cannot be inverted, the
    library rounds it to the nearest value and only says so."""

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        """Called when all layers are rounded. Raises StageError (ModelUnsupported) if some are not calibrated."""
        require_calibrated(self._rtn_fallback_module_names)
        return bool(super().on_finalize(state, **kwargs))


class _Awq(AWQModifier):  # type: ignore[misc] # llm-compressor is not typed here
    """Rescales weights by AWQ (Lin et al. 2023, arXiv 2306.00978), before they are rounded to the nearest value."""

    _done: list[Rescaling] = PrivateAttr(default_factory=list)

    @property
    def done(self) -> Sequence[Rescaling]:
        """What was rescaled, in that order."""
        return tuple(self._done)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        """Called when all layers are rescaled. Raises StageError (ModelUnsupported) if some are not, because the
        library knows no way for this architecture, or has met numbers that are not finite. The output of attention is
        left as it is where heads share keys and values, as AWQ's authors do."""
        done = {name for each in self._done for name in each.layers}
        left = [name for name in _rounded_layers(state.model) if name not in done]
        require_calibrated([name for name in left if not name.endswith(_ATTENTION_OUTPUT)])
        super().on_calibration_end(state, event, **kwargs)

    def _set_resolved_mappings(self, model: Any) -> None:
        try:
            super()._set_resolved_mappings(model)
        except ValueError:  # of the layers that it looks for together, it finds some only
            require_calibrated(list(_rounded_layers(model)))

    def _apply_smoothing(self, model: Any) -> None:
        """Pinned memory is copied to a GPU faster; where there is none, torch cannot pin any."""
        if not torch.cuda.is_available():
            for cache in self._parent_args_cache.values():
                cache.pin_memory = _leave
        super()._apply_smoothing(model)

    def _compute_best_scale(self, mapping: Any, *given: Any) -> Any:
        factors = super()._compute_best_scale(mapping, *given)
        self._done.append(Rescaling(mapping.smooth_name, tuple(mapping.balance_names), factors))
        return factors


def _leave(*_args: Any) -> None:
    """Leave memory where it is."""


def _is_no_metric(record: Any) -> bool:
    return bool(record["level"].name != "METRIC")


def _rounded_layers(model: Any) -> Mapping[str, Any]:
    """By name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] not in KEPT
    }


def _batch(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([ids], dtype=torch.long)
