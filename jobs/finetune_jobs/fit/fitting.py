"""Whether a training and the stages after it fit a profile, and the smallest change with which they do. Pure.

Changes are tried from cheap to expensive: the same optimiser step in more passes (time only), a rounded base (a little
quality), shorter examples (data). Other hardware (money) is for the reader to choose.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.dataset import TaskType
from finetune_api.evaluation import Examination, Generator
from finetune_api.stages import Stage
from finetune_api.training import Method, Quantization, Training
from finetune_jobs.fit.afterwards import shortage
from finetune_jobs.fit.disk import WITH_MODEL, scratch_shortage
from finetune_jobs.fit.memory import GIB, INT8, USABLE, Memory, gpu_step, host_memory, least_step, peak_memory
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.fit.shapes import Shape

SHORTEST: Final = 64
"""Shortest ``maxLength`` that is proposed, in tokens; proposals are multiples of it."""


@dataclass(frozen=True)
class After:
    """What follows the training, as far as its time and its memory depend on it."""

    evaluation: Examination | None = None
    """What the evaluation asks; None: it asks nothing."""
    task: TaskType = TaskType.TEXT
    exported: Sequence[float] = (INT8,)
    """Bytes of a weight of the exported model, in each format that is made."""
    stages: Collection[Stage] = WITH_MODEL
    """The stages with a model that are still to be done, the evaluation among them."""
    downloaded: int = 0
    """Bytes of the base model's files, which each of these downloads; 0: not known."""

    @property
    def unrounded(self) -> bool:
        """Whether the evaluation writes out a rounded base in 16 bits."""
        return self.evaluation is not None and self.evaluation.generator is Generator.VLLM


DEFAULT_AFTER: Final = After()


def fits(memory: Memory, hardware: HardwareFacts) -> bool:
    """Whether it fits a GPU, with a margin for the estimate's error."""
    return memory.gib <= USABLE * hardware.memory_gib


def other_shortage(shape: Shape, training: Training, hardware: HardwareFacts, after: After) -> str:
    """What the pod is too small for beside the training itself, in a sentence; empty if nothing."""
    asked = (shape, training, hardware, after.exported, after.stages)
    return shortage(*asked) or scratch_shortage(*asked, unrounded=after.unrounded, downloaded=after.downloaded)


def loads(shape: Shape, training: Training, hardware: HardwareFacts) -> bool:
    """Whether a pod has the memory of its own for what does not go straight to GPUs; true if unknown."""
    available = pod_gib(hardware)
    return not available or host_gib(shape, training, hardware) <= available


def host_gib(shape: Shape, training: Training, hardware: HardwareFacts) -> float:
    """Pod memory that a training needs, in GiB."""
    part = per_process(training, hardware) or training
    step = gpu_step(shape, part, hardware.memory_gib, hardware.processes)
    return host_memory(shape, training, step, hardware) / GIB


def pod_gib(hardware: HardwareFacts) -> float:
    """Pod memory in GiB; 0: unknown."""
    return hardware.pod_memory_gib if hardware.has_gpu else hardware.memory_gib


def per_process(training: Training, hardware: HardwareFacts) -> Training | None:
    """What each of the profile's processes trains; None if a step's examples do not divide among them."""
    part = Batch.of(training).divided(hardware.processes)
    if part is None:
        return None
    return training.model_copy(update={"batch_size": part.size, "gradient_accumulation": part.passes})


def smallest_change(
    shape: Shape, training: Training, hardware: HardwareFacts, after: After = DEFAULT_AFTER
) -> Training | None:
    """The first changed training that fits a GPU; None if none does."""
    return next((changed for changed in _changes(training) if fits_gpu(shape, changed, hardware, after)), None)


def _changes(training: Training) -> Iterator[Training]:
    """Changes of increasing size, from smaller passes to shorter examples."""
    yield from _smaller_passes(training)
    rounded = with_rounded_base(training)
    if rounded is not None:
        yield rounded
        yield from _smaller_passes(rounded)
    smallest = _smallest_passes(training)
    for length in _shorter(training.max_length):
        yield smallest.model_copy(update={"max_length": length})
    if rounded is not None:
        for length in _shorter(training.max_length):
            yield _smallest_passes(rounded).model_copy(update={"max_length": length})


def _smaller_passes(training: Training) -> Iterator[Training]:
    batch: Batch | None = Batch.of(training)
    while batch := batch.smaller() if batch else None:
        yield training.model_copy(update={"batch_size": batch.size, "gradient_accumulation": batch.passes})


def _smallest_passes(training: Training) -> Training:
    return [training, *_smaller_passes(training)][-1]


def with_rounded_base(training: Training) -> Training | None:
    """The same over a base in 4 bits; None if it is that already."""
    if training.base_quantization is Quantization.NF4:
        return None
    return training.model_copy(update={"method": Method.QLORA, "quantization": Quantization.NF4})


def _shorter(length: int) -> Iterator[int]:
    yield from range((length - 1) // SHORTEST * SHORTEST, 0, -SHORTEST)


def fits_gpu(shape: Shape, training: Training, hardware: HardwareFacts, after: After) -> bool:
    """Whether all of it fits a profile with GPUs."""
    if per_process(training, hardware) is None or not fits(peak(shape, training, hardware), hardware):
        return False
    return loads(shape, training, hardware) and not other_shortage(shape, training, hardware, after)


def peak(shape: Shape, training: Training, hardware: HardwareFacts) -> Memory:
    """Of one GPU."""
    part = per_process(training, hardware) or training
    return peak_memory(shape, part, least_step(training, hardware.processes), hardware.processes)
