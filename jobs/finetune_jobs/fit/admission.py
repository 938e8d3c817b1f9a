"""Admits a training and the stages after it to its profile, or refuses it with the smallest change that makes them fit.

Activation checkpointing is no change: a training on a GPU uses it as soon as it would not fit without. A model of
unknown shape is admitted, and the message says so: preflight never guesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.budget import HardwareFacts
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.afterwards import evaluation_gpus, shortage
from finetune_jobs.fit.asked import asking
from finetune_jobs.fit.cards import caution
from finetune_jobs.fit.cost import CostForecast, forecast
from finetune_jobs.fit.duration import pace
from finetune_jobs.fit.fields import UnknownShapeError
from finetune_jobs.fit.fitting import (
    DEFAULT_AFTER,
    After,
    fits,
    fits_gpu,
    host_gib,
    loads,
    other_shortage,
    peak,
    per_process,
    pod_gib,
    smallest_change,
    with_rounded_base,
)
from finetune_jobs.fit.interruptions import interruption
from finetune_jobs.fit.kernels import fused_kernels, listed
from finetune_jobs.fit.memory import GIB, INT8, USABLE, Memory, floor_memory, gpu_step, peak_memory
from finetune_jobs.fit.recipe import indivisible
from finetune_jobs.fit.rounded import as_loaded
from finetune_jobs.fit.shapes import Shape, read_shape
from finetune_jobs.fit.steps import BF16, FP32, ON_CPU, ON_OLD_CPU, Step


@dataclass(frozen=True)
class Admission:
    """A training that may start."""

    memory: Memory | None
    """The estimated peak; None where the shape is unknown."""
    forecast: CostForecast | None
    message: str
    """The estimate in a sentence, or why there is none."""
    warning: str = ""
    """What is to be known beside it (``fit.suitability``)."""
    evaluation_gpus: int = 1
    """GPUs of a pod that evaluation needs."""


def admit(
    config: Mapping[str, Any],
    training: Training,
    hardware: HardwareFacts,
    others: Sequence[HardwareFacts] = (),
    *,
    after: After = DEFAULT_AFTER,
    bfloat16: bool = True,
) -> Admission:
    """Admit a training of the model that ``config`` (its config.json) describes, or refuse it.

    ``others`` are the platform's other profiles; ``bfloat16``: whether this pod's CPU computes in it. The profile's may
    be of another kind, so that only what every CPU needs is refused, and what one without bfloat16 needs is a warning.
    Raises StageError (FitRefused) with the numbers and the smallest change that fits, and SpecInvalid if a step's
    examples do not divide among the profile's processes.
    """
    part = per_process(training, hardware)
    if part is None:
        raise StageError(Reason.SPEC_INVALID, indivisible(training, hardware.processes))
    try:
        shape = read_shape(config)
    except UnknownShapeError as unknown:
        _require_room_in_16_bits(config, hardware)
        return Admission(None, None, f"Memory and time are unknown: {unknown}.")
    on_cpu = ON_CPU if bfloat16 else ON_OLD_CPU
    chosen = gpu_step(shape, part, hardware.memory_gib, hardware.processes) if hardware.has_gpu else on_cpu
    memory = peak_memory(shape, part, chosen, hardware.processes)
    asked = asking(after.task, after.evaluation, training) if after.evaluation else None
    speed = pace(shape, part, chosen, hardware, asked=asked, exported=after.exported)
    evaluating = max(1, evaluation_gpus(shape, training, hardware, max(after.exported)))
    samples = after.evaluation.max_samples if after.evaluation else 0
    expected = forecast(speed, training, hardware, samples, evaluating)
    if not hardware.memory_gib:
        return Admission(memory, expected, f"Needs {_gib(memory)}; the profile's memory is unknown.")
    if not hardware.has_gpu:
        _require_pod_memory(shape, part, hardware, others, after)
    elif not fits(memory, hardware):
        raise _refused(shape, training, hardware, others, after)
    if not loads(shape, training, hardware):
        raise _unloadable(shape, training, hardware, others, after)
    if lacking := other_shortage(shape, training, hardware, after):
        advice = _advice(shape, training, hardware, others, after) or "Choose a profile whose pods have more of it."
        raise StageError(Reason.FIT_REFUSED, f"{lacking} {advice}")
    if not hardware.has_gpu:
        usual = None if bfloat16 else peak_memory(shape, part, ON_CPU, hardware.processes)
        warning = "" if bfloat16 else _float32_warning(shape, part, hardware, after)
        return Admission(memory, expected, f"{_pod_message(memory, hardware)}{_float32_message(usual)}", warning)
    message = f"Needs {_gib(memory)} of the {hardware.memory_gib:g} GiB of {_name(hardware)}."
    if chosen.rounded:
        message += " Weights and optimiser are in 16 bits, rounded stochastically: in 32 they would not fit."
    if chosen.divided:
        message += " The base model is divided among them: it would not fit each."
    if evaluating > 1:
        message += f" Evaluation takes {evaluating} GPUs: its largest model fits no single one."
    pods = hardware.nodes if chosen.divided or training.method is Method.FULL else 1
    if slow := interruption(shape, training, pods):
        message += f" {slow}"
    if not chosen.checkpointing:
        message += " There is room for all activations: none is computed twice."
    elif chosen.selective:
        message += " There is room for a part of the activations: the others are computed twice."
    if kernels := fused_kernels(config, training):
        message += f" {listed(kernels)} take one kernel each, if a check on the card passes."
    if roomier := _faster(shape, part, hardware):
        message += (
            f" LoRA over the base in 16 bits fits too ({_gib(roomier)}) and is mostly faster: it unpacks no weights."
        )
    return Admission(memory, expected, f"{message} {caution(hardware)}".rstrip(), evaluation_gpus=evaluating)


def admit_rest(
    config: Mapping[str, Any],
    training: Training,
    hardware: HardwareFacts,
    others: Sequence[HardwareFacts] = (),
    *,
    after: After,
    bfloat16: bool = True,
) -> Admission:
    """Admit the stages that ``after`` names, which follow a training that is done. That is not judged again.
    ``bfloat16`` as in ``admit``.

    Raises StageError (FitRefused) with the numbers and the smallest change that fits and keeps the training.
    """
    try:
        shape = read_shape(config)
    except UnknownShapeError:
        return Admission(None, None, "")
    lacking = other_shortage(shape, training, hardware, after) if hardware.memory_gib else ""
    if not lacking:
        count = evaluation_gpus(shape, training, hardware, max(after.exported))
        old_cpu = not (bfloat16 or hardware.has_gpu)
        warning = _float32_warning(shape, training, hardware, after) if old_cpu else ""
        return Admission(None, None, "", warning, evaluation_gpus=count)
    advice = []
    if not shape.has_experts and not other_shortage(shape, training, hardware, replace(after, exported=(INT8,))):
        advice.append("It fits with spec.export.format: INT8 alone: without alternatives, and with onRegression: Fail.")
    roomy = (other for other in _by_memory(others) if other.memory_gib)
    if names := [other.profile for other in roomy if not other_shortage(shape, training, other, after)]:
        advice.append(f"Unchanged, it fits profile {' or '.join(names[:3])}.")
    if not advice:
        advice.append("Choose a profile whose pods have more of it.")
    raise StageError(Reason.FIT_REFUSED, f"{lacking} The training is done and kept. {' '.join(advice)}")


def _faster(shape: Shape, part: Training, hardware: HardwareFacts) -> Memory | None:
    """The peak of the same adapter over a base that is not rounded, which need not be unpacked layer by layer, if it
    fits.

    How much faster differs with the tokens of a pass, over which unpacking is spread: LLaMA-Factory's published speeds
    of an A100 have no difference at 4 × 1,024 tokens (2,392 tokens a second in 16 bits, 2,415 in 4), Google's guide
    says 66 % (https://docs.cloud.google.com/vertex-ai/docs/model-garden/lora-qlora).
    """
    if part.method is not Method.QLORA:
        return None
    other = part.model_copy(update={"method": Method.LORA})
    step = gpu_step(shape, other, hardware.memory_gib, hardware.processes)
    memory = peak_memory(shape, other, step, hardware.processes)
    return memory if fits(memory, hardware) and not step.divided else None


def _require_room_in_16_bits(config: Mapping[str, Any], hardware: HardwareFacts) -> None:
    """Of a quantised checkpoint that is turned back while it is loaded (``rounded.as_loaded``) no more is certain than
    that its weights must fit. Several processes may divide them. Raises StageError (FitRefused)."""
    loaded = as_loaded(config)
    if loaded is config or not hardware.memory_gib or hardware.processes > 1:
        return
    try:
        weights = BF16 * read_shape(loaded).parameters / GIB
    except UnknownShapeError:
        return
    if weights > hardware.memory_gib:
        raise StageError(
            Reason.FIT_REFUSED,
            f"The checkpoint is quantised (mxfp4) and is turned back into 16 bits to be trained. These weights alone "
            f"are {weights:.1f} GiB, more than the {hardware.memory_gib:g} GiB of {_name(hardware)} in profile "
            f"{hardware.profile}. Choose a profile with more memory, or a smaller model.",
        )


def _refused(
    shape: Shape, training: Training, hardware: HardwareFacts, others: Sequence[HardwareFacts], after: After
) -> StageError:
    memory = peak(shape, training, hardware)
    changed = smallest_change(shape, training, hardware, after)
    advice = []
    if changed is not None:
        advice.append(f"It fits with {_difference(training, changed)} ({_gib(peak(shape, changed, hardware))}).")
    if names := [other.profile for other in _by_memory(others) if fits_gpu(shape, training, other, after)]:
        advice.append(f"Unchanged, it fits profile {' or '.join(names[:3])}.")
    if not advice:
        advice.append("No smaller setting and no other profile of this platform would fit.")
    return StageError(
        Reason.FIT_REFUSED,
        f"{training.method.value} with batchSize {training.batch_size} and maxLength {training.max_length} needs "
        f"{_gib(memory)} ({_parts(memory)}), more than {USABLE:.0%} of the {hardware.memory_gib:g} GiB of "
        f"{_name(hardware)} in profile {hardware.profile}. {' '.join(advice)}",
    )


def _unloadable(
    shape: Shape, training: Training, hardware: HardwareFacts, others: Sequence[HardwareFacts], after: After
) -> StageError:
    """Passes and lengths do not matter here; only an adapter, or another pod, helps."""
    advice = _advice(shape, training, hardware, others, after)
    why = "the first process loads the model that all of them divide"
    if hardware.processes == 1:
        why = "a training that resumes reads the optimiser's state into it, before that goes to the GPU"
    return StageError(
        Reason.FIT_REFUSED,
        f"{training.method.value} needs about {host_gib(shape, training, hardware):.1f} GiB of pod memory, because "
        f"{why}: more than the {pod_gib(hardware):g} GiB of profile {hardware.profile}. "
        f"{advice or 'Choose a profile whose pods have more memory.'}",
    )


def _advice(
    shape: Shape, training: Training, hardware: HardwareFacts, others: Sequence[HardwareFacts], after: After
) -> str:
    """What would fit; empty if nothing is known to."""
    changed = smallest_change(shape, training, hardware, after) if hardware.has_gpu else None
    advice = [f"It fits with {_difference(training, changed)}."] if changed else []
    if names := [other.profile for other in _by_memory(others) if fits_gpu(shape, training, other, after)]:
        advice.append(f"Unchanged, it fits profile {' or '.join(names[:3])}.")
    return " ".join(advice)


def _difference(old: Training, new: Training) -> str:
    pairs = (
        ("method", old.method.value, new.method.value),
        ("quantization", old.base_quantization, new.base_quantization),
        ("batchSize", old.batch_size, new.batch_size),
        ("gradientAccumulation", old.gradient_accumulation, new.gradient_accumulation),
        ("maxLength", old.max_length, new.max_length),
    )
    return ", ".join(f"{name}: {after}" for name, before, after in pairs if before != after and after is not None)


def _by_memory(others: Sequence[HardwareFacts]) -> list[HardwareFacts]:
    return sorted((other for other in others if other.has_gpu), key=lambda other: (other.memory_gib, other.profile))


def _require_pod_memory(
    shape: Shape, training: Training, hardware: HardwareFacts, others: Sequence[HardwareFacts], after: After
) -> None:
    """Without a GPU, only what no data and no CPU can change is refused: most examples are far shorter than
    maxLength, and the profile's CPUs may be other ones than this pod's."""
    if not (lacking := _floor_shortage(shape, training, ON_CPU, hardware)):
        return
    names = [other.profile for other in _by_memory(others) if fits_gpu(shape, training, other, after)]
    rounded = with_rounded_base(training)
    advice = ["Choose a profile with more memory."]
    if rounded and _fits_pod(shape, rounded, hardware, after):
        advice = [f"It fits with {_difference(training, rounded)}."]
    elif names:
        advice = [f"It fits profile {' or '.join(names[:3])}."]
    raise StageError(Reason.FIT_REFUSED, f"{lacking} {' '.join(advice)}")


def _fits_pod(shape: Shape, training: Training, hardware: HardwareFacts, after: After) -> bool:
    return not _floor_shortage(shape, training, ON_CPU, hardware) and not other_shortage(
        shape, training, hardware, after
    )


def _floor_shortage(shape: Shape, training: Training, step: Step, hardware: HardwareFacts) -> str:
    """What even the shortest examples lack in a pod without a GPU, in a sentence; empty if nothing."""
    floor = floor_memory(shape, training, step, hardware.processes)
    if floor.gib <= hardware.memory_gib:
        return ""
    return (
        f"{training.method.value} needs at least {_gib(floor)} for the shortest examples ({_parts(floor)}), more than "
        f"the {hardware.memory_gib:g} GiB of a pod of profile {hardware.profile}."
    )


def _float32_warning(shape: Shape, training: Training, hardware: HardwareFacts, after: After) -> str:
    """What a pod of a profile without GPUs is too small for if its CPU is as this pod's; empty if nothing."""
    trains = Stage.TRAIN in after.stages
    lacking = [
        _floor_shortage(shape, training, ON_OLD_CPU, hardware) if trains else "",
        shortage(shape, training, hardware, after.exported, after.stages, FP32),
    ]
    if not any(lacking):
        return ""
    return (
        "Where a CPU lacks AVX512-BF16 and AMX, as this pod's does, numbers are computed in float32. "
        f"{' '.join(filter(None, lacking))}"
    )


def _pod_message(memory: Memory, hardware: HardwareFacts) -> str:
    most = f"Batches of maxLength examples need {_gib(memory)} of the pod's {hardware.memory_gib:g} GiB"
    return f"{most}." if memory.gib <= hardware.memory_gib else f"{most}: shorter examples fit, or a smaller batchSize."


def _float32_message(usual: Memory | None) -> str:
    """``usual``: what a CPU with bfloat16 would need; None for such a one."""
    if usual is None:
        return ""
    return (
        " This pod's CPU lacks AVX512-BF16 and AMX, without which bfloat16 is emulated: on one like it the training "
        f"computes in float32, which takes more memory ({_gib(usual)} with bfloat16), not more time."
    )


def _name(hardware: HardwareFacts) -> str:
    """Of its GPUs: the estimate is for one of them."""
    return hardware.name if hardware.processes == 1 else f"each {hardware.name} ({hardware.processes} train together)"


def _gib(memory: Memory) -> str:
    return f"about {memory.gib:.1f} GiB"


def _parts(memory: Memory) -> str:
    parts = (
        ("weights", memory.weights),
        ("optimiser", memory.state),
        ("activations", memory.activations),
        ("other", memory.workspace + memory.overhead),
    )
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
