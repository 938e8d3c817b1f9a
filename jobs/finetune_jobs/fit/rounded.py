"""What becomes of a checkpoint that is already quantised, as far as its config.json and the profile's card decide it.
Pure.

Read from ``quantizers/`` and ``integrations/`` of transformers 5.24 and 5.17, which train, evaluate and export. Their
images have neither ``kernels``, which fetches kernels from a hub, nor ``gptqmodel``; tests fail once they do.
"""

from collections.abc import Mapping
from typing import Any, Final

from finetune_api.budget import HardwareFacts
from finetune_api.cards import Generation, generation_of
from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError

_OURS: Final = "bitsandbytes"
"""What rounds a base model for QLoRA; a checkpoint that it has rounded is taken as it is."""
_UNREADABLE: Final = frozenset({"gptq", "awq"})
"""Methods whose checkpoints transformers reads with gptqmodel alone."""
_FP8_CARDS: Final = frozenset({Generation.ADA, Generation.HOPPER, Generation.BLACKWELL})
"""Compute capability 8.9 and more. There, transformers keeps FP8 and multiplies by kernels of ``kernels``; elsewhere it
turns the weights back into 16 bits."""


def require_trainable(config: Mapping[str, Any], training: Training, hardware: HardwareFacts) -> None:
    """Raises StageError (ModelUnsupported) for a quantised checkpoint that is certain not to train, which would be
    known once the pod has a GPU and the model is downloaded. Others are not refused: they may train."""
    how = _method(config)
    if why := _obstacle(how, config, training, hardware) if how else "":
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"The checkpoint is already quantised ({how[:40]!r}), {why}. Take the same model in 16 bits.",
        )


def as_loaded(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the model that is computed with. MXFP4 is turned back into 16 bits wherever it is loaded: it is
    computed with as it is by kernels of ``kernels`` only."""
    if _method(config) != "mxfp4":
        return config
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _obstacle(how: str, config: Mapping[str, Any], training: Training, hardware: HardwareFacts) -> str:
    """Why it does not train; empty if nothing is known against it."""
    if training.base_quantization:
        return "" if how == _OURS else "and QLoRA cannot round it again"
    if how in _UNREADABLE:
        return "in a form that the training image has no library to read"
    if config["quantization_config"].get("dequantize"):
        return ""
    if how == "fp8" and hardware.has_gpu and generation_of(hardware.name) in _FP8_CARDS:
        card = f"{hardware.name} of profile {hardware.profile!r}"
        return f"and {card} would multiply it as it is, for which the training image has no kernels"
    if training.method is Method.FULL and how in (_OURS, "compressed-tensors"):
        return "which method Full does not train"
    return ""


def _method(config: Mapping[str, Any]) -> str:
    """The name of how it is quantised; empty if it is not, or if config.json says it in another way."""
    rounded = config.get("quantization_config")
    how = rounded.get("quant_method") if isinstance(rounded, Mapping) else None
    return how if isinstance(how, str) else ""
