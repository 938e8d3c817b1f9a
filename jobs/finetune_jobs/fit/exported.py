"""How large an exported model is, by its format, and which models have a 4-bit form. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from finetune_api.export import ExportFormat
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.memory import INT8
from finetune_jobs.fit.shapes import Shape
from finetune_jobs.fit.steps import BF16

GROUPS: Final = (128, 64, 32)
"""Weights in a row that may share one scale, largest first, which takes the least space: what the kernels of vLLM and
TGI (Marlin) read."""
_INT4: Final = 0.5 + BF16 / GROUPS[-1]
"""With the most scales."""
_WEIGHT_BYTES: Final[Mapping[str, float]] = {
    ExportFormat.INT8: INT8,
    ExportFormat.W8A16: INT8,
    ExportFormat.FP8: INT8,
    ExportFormat.FP8_STATIC: INT8,
    ExportFormat.INT4: _INT4,
    ExportFormat.INT4_AWQ: _INT4,
    ExportFormat.MERGED: BF16,
}


def weight_bytes(export_format: str) -> float:
    """Bytes of a weight of the linear layers; 16 bits for a format that this version does not know."""
    return _WEIGHT_BYTES.get(export_format, BF16)


def exported_bytes(shape: Shape, each: float) -> float:
    """Bytes of all weights, if those of the linear layers take ``each``; the rest stays in 16 bits."""
    return each * shape.linear_parameters + BF16 * (shape.parameters - shape.linear_parameters)


def require_group(inputs: Iterable[int], export_format: str = ExportFormat.INT4) -> int:
    """The largest group that divides the inputs of every layer. Raises StageError (ModelUnsupported) if none does."""
    widths = sorted(set(inputs))
    for size in GROUPS:
        if all(width % size == 0 for width in widths):
            return size
    raise StageError(
        Reason.MODEL_UNSUPPORTED,
        f"spec.export.format {export_format} needs layers whose inputs are divisible by "
        f"{', '.join(map(str, GROUPS))}; those of this model are {', '.join(map(str, widths))}. Choose INT8 or FP8.",
    )


def require_rounded(export_format: str, layers: int) -> None:
    """``layers``: how many of a model's layers a format rounds.

    Raises StageError (ModelUnsupported) if there are none: the file would be that of 16 bits under another name.
    """
    if not layers:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"spec.export.format {export_format}: no layer was quantized, because this model has no linear layers of "
            "PyTorch beside its output layer (GPT-2 and its like have others, Conv1D). Set spec.export.format to "
            "Merged, or train another base model.",
        )


def require_calibrated(nearest: Sequence[str]) -> None:
    """``nearest``: the layers that were rounded to the nearest 4-bit value, because they could not be calibrated.

    Raises StageError (ModelUnsupported) if there are any.
    """
    if nearest:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"{len(nearest)} layers could not be calibrated to 4 bits on the training examples, the first is "
            f"{nearest[0]}. Rounded to the nearest value, a model loses what it was trained to do, of a merged QLoRA "
            "adapter all of it. Set spec.export.format to INT8 or FP8.",
        )
