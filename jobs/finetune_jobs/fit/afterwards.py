"""Whether the stages after a training fit its profile too: export's merge, and the models that evaluation runs.

Both use one GPU at most. If it is too small for the model in 16 bits, the merge is done in pod memory, and the exported
model is computed from its 8-bit weights (``exporting.offload``). Without a GPU everything is in pod memory.
"""

from finetune_api.budget import HardwareFacts
from finetune_api.training import Training
from finetune_jobs.fit.memory import BF16, GIB, INT8, PROCESS, USABLE, holds, resident
from finetune_jobs.fit.shapes import Shape


def shortage(shape: Shape, training: Training, hardware: HardwareFacts) -> str:
    """What does not fit, in a sentence; empty if everything fits, or if the available memory is unknown."""
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
    """The base is loaded as in training, where it may have been divided: what counts is that in 16 bits, the exported
    model, or a fully tuned one."""
    rest = shape.parameters - shape.linear_parameters
    asked = BF16 * rest + (INT8 if training.base_quantization else BF16) * shape.linear_parameters
    if holds(asked, hardware.memory_gib * GIB):
        return ""
    return (
        f"Evaluation needs about {resident(asked) / GIB:.1f} GiB for its largest model, more than "
        f"{USABLE:.0%} of the {hardware.memory_gib:g} GiB of {hardware.name} in profile {hardware.profile}."
    )
