"""Handles a model that was trained on 4 bits of each weight and whose 16-bit weights do not fit the GPU. It is merged
and rounded in pod memory, and the result computed from its rounded weights, one layer at a time. Both give the same as
on a larger GPU, more slowly; ``fit.afterwards`` has checked that they fit.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import decompress_module
from compressed_tensors.quantization.utils import is_module_quantized
from safetensors import safe_open

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.memory import GIB, holds
from finetune_jobs.fit.steps import BF16
from finetune_jobs.modelling.loading import load_adapter, load_checkpoint

log = logging.getLogger(__name__)


def device_for_16_bits(folder: Path) -> str | None:
    """Where the model of these files fits in 16 bits: on the usual device (None), or on the CPU."""
    if _gpu_holds(folder):
        return None
    log.info("%.1f GiB of 16-bit weights do not fit the GPU: they are kept in pod memory", _size(folder) / GIB)
    return "cpu"


def load_artifact(folder: Path, base: Path | None = None) -> Any:
    """An exported artifact, exactly as its files say; its weights stay rounded if they do not fit the GPU in 16
    bits. ``base``: of an adapter, the exported model that it belongs to. Raises StageError (ArtifactCorrupt)."""
    if base is not None:
        return load_adapter(_load_exported(base), folder)
    model = _load_exported(folder)
    if _quantization(folder) and not _gpu_holds(folder):
        log.info("%.1f GiB of 16-bit weights do not fit the GPU: they stay rounded", _size(folder) / GIB)
        keep_rounded(model)
    return model


def _load_exported(folder: Path) -> Any:
    """Another base model would not help where files that ``export`` wrote cannot be read."""
    try:
        return load_checkpoint(folder)
    except StageError as error:
        if error.reason is not Reason.MODEL_UNSUPPORTED:
            raise
        raise StageError(Reason.ARTIFACT_CORRUPT, f"What export wrote cannot be read back. {error.message}") from error


def keep_rounded(model: Any) -> None:
    """Unpack each layer's weights only while it computes. By default, compressed-tensors unpacks all of them before the
    first layer runs, and keeps them so."""
    model.ct_decompress_hook.remove()
    for module in model.modules():
        if is_module_quantized(module):
            _unpack_in_use(module)


def _unpack_in_use(layer: Any) -> None:
    rounded, status = dict(layer._parameters), layer.quantization_status

    def unpack(_layer: Any, _inputs: Any) -> None:
        decompress_module(layer)

    def pack(_layer: Any, _inputs: Any, _output: Any) -> None:
        layer._parameters.clear()
        layer._parameters.update(rounded)
        layer.quantization_status = status

    layer.register_forward_pre_hook(unpack)
    layer.register_forward_hook(pack)


def _gpu_holds(folder: Path) -> bool:
    """Without a GPU the pod's own memory is all there is."""
    if not torch.cuda.is_available():
        return True
    return holds(_size(folder), torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def _size(folder: Path) -> int:
    """Bytes of all weights in 16 bits."""
    return sum(BF16 * _weights(path, _packed(folder)) for path in folder.glob("*.safetensors"))


def _weights(path: Path, packed: int) -> int:
    """Numbers in a file, of which ``packed`` are in one integer where weights are packed."""
    with safe_open(path, "pt") as file:
        shapes = ((name, file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 # not a dict
        return sum(
            torch.Size(shape).numel() * (packed if name.endswith(".weight_packed") else 1) for name, shape in shapes
        )


def _packed(folder: Path) -> int:
    """Weights in one 32-bit integer of compressed-tensors' form ``pack-quantized``."""
    groups = _quantization(folder).get("config_groups", {}).values()
    return max((32 // int(group["weights"]["num_bits"]) for group in groups), default=1)


def _quantization(folder: Path) -> Mapping[str, Any]:
    """How the weights are rounded; empty for 16 bits."""
    found: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found.get("quantization_config") or {}
