"""Whether what comes after a training fits its profile too: the merging in export, and the models that evaluation asks.

Both use one GPU at most. One that does not hold the model in 16 bits leaves the merging to the pod's own memory, and
computes what was exported from its 8-bit weights (``modelling.room``). Without a GPU all of it is in the pod's memory.
"""

from finetune_api.budget import HardwareFacts
from finetune_api.training import Method, Training
from finetune_jobs.fit.memory import BF16, GIB, INT8, PROCESS, USABLE, holds, resident
from finetune_jobs.fit.shapes import Shape


def shortage(shape: Shape, training: Training, hardware: HardwareFacts) -> str:
    """What does not fit, in a sentence; empty where all does, or where it is not known what there is."""
    return _of_export(shape, hardware) or (_of_evaluation(shape, training, hardware) if hardware.has_gpu else "")


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


def _of_evaluation(shape: Shape, training: Training, hardware: HardwareFacts) -> str:
    """Under an adapter the base is as it was in training, which fits: what counts is the exported model, or one that
    was tuned as a whole."""
    rest = shape.parameters - shape.linear_parameters
    asked = BF16 * rest + (BF16 if training.method is Method.FULL else INT8) * shape.linear_parameters
    if holds(asked, hardware.memory_gib * GIB):
        return ""
    return (
        f"Evaluation needs about {resident(asked) / GIB:.1f} GiB for its largest model, more than "
        f"{USABLE:.0%} of the {hardware.memory_gib:g} GiB of {hardware.name} in profile {hardware.profile}."
    )
