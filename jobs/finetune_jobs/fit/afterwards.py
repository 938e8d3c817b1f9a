"""Whether the stages after a training fit its profile too: export's merge, and the models that evaluation runs.

If a GPU is too small for the model in 16 bits, the merge is done in pod memory, and the exported model is computed from
its rounded weights (``exporting.offload``), if it has such. If it is too small for these too, evaluation takes as many
GPUs of the pod as hold them, layer after layer. Without a GPU everything is in pod memory, and no weight stays rounded.
"""

from collections.abc import Collection, Sequence

from finetune_api.budget import HardwareFacts
from finetune_api.stages import Stage
from finetune_api.training import Quantization, Training
from finetune_jobs.fit.exported import exported_bytes
from finetune_jobs.fit.memory import GIB, INT8, NF4, PROCESS, USABLE, holds, resident
from finetune_jobs.fit.shapes import Shape
from finetune_jobs.fit.steps import BF16


def shortage(
    shape: Shape,
    training: Training,
    hardware: HardwareFacts,
    exported: Sequence[float] = (INT8,),
    stages: Collection[Stage] = (Stage.EXPORT, Stage.EVALUATE),
    computing: int = BF16,
) -> str:
    """What does not fit, in a sentence; empty if everything fits, or if the available memory is unknown. ``exported``:
    bytes of a weight of the exported model, in each format. ``stages``: those that are still to be done.
    ``computing``: bytes of a number that CPUs compute with."""
    if lacking := _of_export(shape, hardware) if Stage.EXPORT in stages else "":
        return lacking
    if hardware.has_gpu:
        return _of_evaluation(shape, training, hardware, max(exported))
    return _of_evaluation_on_cpus(shape, hardware, computing) if Stage.EVALUATE in stages else ""


def evaluation_gpus(shape: Shape, training: Training, hardware: HardwareFacts, exported: float = INT8) -> int:
    """How many of a pod's GPUs evaluation needs; 0: it does not fit all of them. 1 without a GPU, or where its memory
    is unknown."""
    if not hardware.has_gpu or not hardware.memory_gib:
        return 1
    asked, room = _largest_evaluated(shape, training, exported), hardware.memory_gib * GIB
    # Layers and embeddings are not cut: each GPU may get one more than its part.
    largest = max(shape.whole(kind) for kind in shape.kinds) / shape.layer_parameters
    piece = max(asked * largest, BF16 * shape.vocab * shape.hidden)
    counts = range(1, hardware.count + 1)
    return next((count for count in counts if holds(asked / count + (piece if count > 1 else 0), room)), 0)


def _of_export(shape: Shape, hardware: HardwareFacts) -> str:
    merged = BF16 * shape.parameters
    if hardware.has_gpu and holds(merged, hardware.memory_gib * GIB):
        return ""
    needed, pod = (merged + PROCESS) / GIB, hardware.pod_memory_gib if hardware.has_gpu else hardware.memory_gib
    if not pod or needed <= pod:
        return ""
    why = ", which does not fit the GPU" if hardware.has_gpu else ""
    return (
        f"Export needs about {needed:.1f} GiB of pod memory for the tuned model in 16 bits{why}, more than "
        f"the {pod:g} GiB of a pod of profile {hardware.profile}."
    )


def _of_evaluation(shape: Shape, training: Training, hardware: HardwareFacts, exported: float) -> str:
    if evaluation_gpus(shape, training, hardware, exported):
        return ""
    asked = _largest_evaluated(shape, training, exported)
    cards = f"{hardware.name}" if hardware.count == 1 else f"each of the {hardware.count} {hardware.name}"
    return (
        f"Evaluation needs about {resident(asked) / GIB:.1f} GiB for its largest model, more than "
        f"{USABLE:.0%} of the {hardware.memory_gib:g} GiB of {cards} in a pod of profile {hardware.profile}."
    )


def _of_evaluation_on_cpus(shape: Shape, hardware: HardwareFacts, computing: int) -> str:
    """All models are computed from whole numbers there, also those whose weights are stored rounded
    (``loading.unpacked``). Prompts are not counted: nothing is known of their length, and long ones are asked one at a
    time (``evaluation.batches``)."""
    needed = (computing * shape.parameters + PROCESS) / GIB
    if not hardware.memory_gib or needed <= hardware.memory_gib:
        return ""
    return (
        f"Evaluation needs at least {needed:.1f} GiB of pod memory for a model in {8 * computing} bits, more than "
        f"the {hardware.memory_gib:g} GiB of a pod of profile {hardware.profile}."
    )


def _largest_evaluated(shape: Shape, training: Training, exported: float) -> float:
    """Bytes: of the base as in training, where it may have been divided, of the exported model or of a fully tuned
    one."""
    if training.base_quantization is None:
        return exported_bytes(shape, BF16)
    return exported_bytes(shape, max(exported, INT8 if training.base_quantization is Quantization.INT8 else NF4))
