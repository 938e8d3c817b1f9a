"""Whether the files of each stage fit its pod's scratch volume. What they hold is known from the model's size; the data
set, which is small beside it, is not counted.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.stages import Stage
from finetune_api.training import Method, Training
from finetune_jobs.fit.exported import exported_bytes
from finetune_jobs.fit.memory import GIB, INT8, trained_parameters
from finetune_jobs.fit.shapes import Shape
from finetune_jobs.fit.steps import BF16, FP32

WITH_MODEL: Final = (Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE)
"""The stages that load a model."""
CHECKPOINTS: Final = 3
"""Checkpoints on disk at a time: the best one, the newest, and the one that is being written."""
PER_TRAINED: Final = 3 * FP32
"""Bytes of a checkpoint for each trained weight: itself and Adam's two moments."""


def scratch_bytes(
    shape: Shape,
    training: Training,
    exported: Sequence[float] = (INT8,),
    *,
    unrounded: bool = False,
    downloaded: int = 0,
) -> Mapping[Stage, float]:
    """Bytes of each stage's files when it has the most of them; ``exported``: of a weight of the exported model, in
    each format. Export puts one format away before it makes the next, the evaluation has them all. ``unrounded``: the
    evaluation writes out a rounded base in 16 bits, for a program that does not round. ``downloaded``: bytes of the
    base model's own files, which may be in 32 bits, or hold the weights twice (Mistral's ``consolidated``)."""
    in_16_bits, trained = BF16 * shape.parameters, trained_parameters(shape, training)
    base = max(downloaded, in_16_bits)
    tuned = BF16 * trained if training.method is Method.FULL else FP32 * trained
    made = [exported_bytes(shape, each) for each in exported]
    return {
        Stage.TRAIN: base + CHECKPOINTS * PER_TRAINED * trained + tuned,
        Stage.EXPORT: base + tuned + max(made),
        Stage.EVALUATE: base + tuned + sum(made) + (in_16_bits if unrounded and training.base_quantization else 0),
    }


def scratch_shortage(  # noqa: PLR0913 # what a stage writes
    shape: Shape,
    training: Training,
    hardware: HardwareFacts,
    exported: Sequence[float] = (INT8,),
    stages: Collection[Stage] = WITH_MODEL,
    *,
    unrounded: bool = False,
    downloaded: int = 0,
) -> str:
    """What does not fit of these stages, in a sentence; empty if everything fits, or if the volume's size is unknown.
    Raises ValueError if none of them has a model."""
    if not hardware.scratch_gib:
        return ""
    sizes = scratch_bytes(shape, training, exported, unrounded=unrounded, downloaded=downloaded)
    asked = {stage: size for stage, size in sizes.items() if stage in stages}
    stage, needed = max(asked.items(), key=lambda each: each[1])
    if needed / GIB <= hardware.scratch_gib:
        return ""
    checkpoints = f" and {CHECKPOINTS} checkpoints" if stage is Stage.TRAIN and training.method is Method.FULL else ""
    return (
        f"Stage {stage.value} needs about {needed / GIB:.0f} GiB of scratch for its models{checkpoints}, more than the "
        f"{hardware.scratch_gib:g} GiB of a pod of profile {hardware.profile}."
    )
