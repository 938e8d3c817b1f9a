"""Peak memory of a training step in this project's trainer, term by term.

A step's peak is what stays (weights, adapter, optimiser) plus what the backward pass needs at its worst moment
(``activations``). ``hack/benchmarks/fit_estimate.py`` compares it with PyTorch's own memory tracker and published
measurements.
Processes that train a whole model together, or an adapter on a base that is too large for each, hold an equal part of
weights, gradients and optimiser (ZeRO's stage 3, Rajbhandari et al. 2020, arXiv 1910.02054), and gather the layers that
compute (PyTorch's FSDP2). Method and the constants of context and fragmentation: fitcheck-llm 0.3.1 (MIT), measured
there on a Tesla T4.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.training import AdapterKind, Method, Quantization, Training
from finetune_jobs.fit.activations import activations
from finetune_jobs.fit.shapes import LayerKind, Shape
from finetune_jobs.fit.steps import (
    BF16,
    DIVIDED,
    DIVIDED_KEPT,
    DIVIDED_SELECTIVE,
    FP32,
    KEPT,
    ON_GPU,
    ROUNDED,
    ROUNDED_KEPT,
    ROUNDED_SELECTIVE,
    SELECTIVE,
    Head,
    Step,
)

GIB: Final = 1 << 30
NF4_SCALES: Final = 1 / 64 + 4 / (64 * 256)
"""Bytes per weight of the scales of NF4 with double quantisation: a byte for 64 weights, a float for 256 of those bytes
(QLoRA)."""
NF4: Final = 1 / 2 + NF4_SCALES
"""Bytes per weight in NF4."""
INT8: Final = 1.0
CUDA_CONTEXT: Final = 1.35 * GIB
"""Kernels, handles and workspaces of a process on a GPU: the one constant that was fitted, to what the published
measurements have beyond their tensors. Newer versions of CUDA, which load kernels when they are needed, take less."""
PROCESS: Final = 0.7 * GIB
"""Python with torch, transformers and trl, without a model."""
FRAGMENTATION: Final = 0.05
"""Share of the GPU's memory that the allocator holds and cannot use."""
ROUNDED_CHUNK: Final = 1 << 24
"""Weights that the optimiser of a rounded model computes with in float32 at a time, ten numbers for each."""
USABLE: Final = 0.92
"""Share of a GPU's memory that an estimate may take: it errs by up to a fifth, mostly to the safe side."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training in bytes, by what takes it."""

    weights: float
    """The model as it is loaded."""
    state: float
    """Adapter (or the master weights' gradients) with gradients and Adam's two moments."""
    activations: float
    """What the backward pass needs of the longest batch, at the worst moment."""
    workspace: float
    """What is unsharded for a moment: one rounded matrix, or the layers that a divided model has gathered."""
    overhead: float
    """The process itself and what the allocator wastes."""

    @property
    def tensors(self) -> float:
        """Bytes of all tensors: what PyTorch's allocator is asked for."""
        return self.weights + self.state + self.activations + self.workspace

    @property
    def total(self) -> float:
        """Bytes that the device needs."""
        return self.tensors + self.overhead

    @property
    def gib(self) -> float:
        """``total`` in GiB."""
        return self.total / GIB


def peak_memory(shape: Shape, training: Training, step: Step, processes: int = 1) -> Memory:
    """The peak of one of so many processes, for batches whose examples all have ``training.max_length`` tokens."""
    if step.rounded and (training.method is not Method.FULL or processes > 1):
        step = replace(step, rounded=False)
    weights, state = _weights(shape, training, step), _state(shape, training, step)
    backward, workspace = activations(shape, training, step), _workspace(shape, training)
    if training.method is Method.FULL and processes > 1:
        weights, state = weights / processes, 3 * FP32 * shape.parameters / processes
        workspace = _gathered(shape)
    elif step.divided and processes > 1:
        whole = _scales(shape, training)
        weights = whole + (weights - whole) / processes
        # An adapter of no layer, whose targets training will refuse by name, has no state.
        state *= _padded_adapter(shape, training, processes) / max(1, trained_parameters(shape, training))
        workspace += _gathered_base(shape, training)
    elif training.method is Method.FULL:
        backward = max(backward, _after_backward(shape, step) - _casts(shape, step))
    if not step.bfloat16:
        weights, backward, workspace = _in_float32(shape, training, weights, backward, workspace)
    tensors = weights + state + backward + workspace
    held = tensors + _left_behind(shape, training, step)
    overhead = CUDA_CONTEXT + FRAGMENTATION * held + held - tensors if step.on_gpu else PROCESS
    return Memory(weights, state, backward, workspace, overhead)


def gpu_step(shape: Shape, training: Training, memory: float, processes: int = 1) -> Step:
    """How a step is computed on a GPU with so many GiB of memory, 0 where it is unknown: activations are kept if they
    fit, or a part of them, and computed again otherwise; a whole model is in float32 if that fits, a base model whole
    on each GPU."""
    steps = [each for each in _steps(training, processes) if not each.selective or _selectable(shape, training)]
    fitting = (each for each in steps if peak_memory(shape, training, each, processes).gib <= USABLE * memory)
    return next(fitting, steps[-1] if memory else ON_GPU)


def least_step(training: Training, processes: int = 1) -> Step:
    """The step on a GPU that takes the least memory."""
    return _steps(training, processes)[-1]


def _steps(training: Training, processes: int) -> tuple[Step, ...]:
    """How a step can be computed on a GPU, from fast to small."""
    whole = (KEPT, SELECTIVE, ON_GPU)
    if training.method is Method.FULL:
        return (*whole, ROUNDED_KEPT, ROUNDED_SELECTIVE, ROUNDED) if processes == 1 else whole
    return (*whole, DIVIDED_KEPT, DIVIDED_SELECTIVE, DIVIDED) if processes > 1 and _divisible(training) else whole


def _selectable(shape: Shape, training: Training) -> bool:
    """What is kept is found again by counting operators, of which a mixture of experts has as many as its tokens ask
    for, the delta rule as many as an example has pieces, and LLM.int8 others the first time."""
    return not shape.has_experts and not shape.has_delta_rule and training.base_quantization is not Quantization.INT8


def _divisible(training: Training) -> bool:
    """FSDP divides floating-point numbers only, which LLM.int8 does not have, and DoRA needs whole matrices."""
    return training.base_quantization is not Quantization.INT8 and training.adapter is not AdapterKind.DORA


def _in_float32(
    shape: Shape, training: Training, weights: float, backward: float, workspace: float
) -> tuple[float, float, float]:
    """The same without bfloat16: what is not rounded is loaded in float32, and all that is computed is."""
    if training.method is not Method.FULL:
        rounded = shape.linear_parameters if training.base_quantization else 0
        weights += (FP32 - BF16) * (shape.parameters - rounded)
    return weights, FP32 / BF16 * backward, FP32 / BF16 * workspace


def floor_memory(shape: Shape, training: Training, step: Step, processes: int = 1) -> Memory:
    """What even the shortest examples need, one at a time: the part of the peak that does not depend on the data."""
    return peak_memory(shape, training.model_copy(update={"batch_size": 1, "max_length": 1}), step, processes)


def host_memory(shape: Shape, training: Training, step: Step, hardware: HardwareFacts) -> float:
    """Bytes of its own memory that the first pod of a training on GPUs needs for models and checkpoints.

    A model that is divided is loaded whole by its first process; at a checkpoint they have no more there, a tensor of
    each weight at a time. Adam's two moments of a whole model on one GPU pass through it when a training resumes, which
    any pod may have to; weights go to a GPU one by one. Otherwise 0, also without a GPU, where memory holds more than
    that anyway.
    """
    full = training.method is Method.FULL
    if hardware.processes > 1:
        return _weights(shape, training, step) + max(1, hardware.count) * PROCESS if full or step.divided else 0
    return 2 * (BF16 if step.rounded else FP32) * shape.parameters + PROCESS if full and hardware.has_gpu else 0


def resident(weights: float) -> float:
    """Bytes that a GPU needs to run a model of so many bytes without training it."""
    return CUDA_CONTEXT + (1 + FRAGMENTATION) * weights


def holds(weights: float, memory: float) -> bool:
    """Whether such a model fits a GPU with so many bytes of memory."""
    return resident(weights) <= USABLE * memory


def trained_parameters(shape: Shape, training: Training) -> int:
    """Weights that get a gradient."""
    if training.method is Method.FULL:
        return shape.parameters
    beside = training.rank * shape.tower.sides if shape.tower and not training.target_modules else 0
    return sum(kind.count * _trained(kind, training) for kind in shape.kinds) + beside


def _trained(kind: LayerKind, training: Training) -> int:
    """Weights of an adapter of one layer."""
    adapted = kind.adapted(training.target_modules)
    lengths = sum(matrix.outputs for matrix in adapted) if training.adapter is AdapterKind.DORA else 0
    return training.rank * sum(matrix.inputs + matrix.outputs for matrix in adapted) + lengths


def _padded_adapter(shape: Shape, training: Training, processes: int) -> int:
    """Weights of a divided adapter in the first process. FSDP2 divides each matrix by its rows, all processes get as
    many as the first one, and an adapter's first matrices have no more rows than its rank: of rank 4, each of eight
    processes holds one."""
    rows, rank = math.ceil(training.rank / processes), training.rank
    beside = rows * shape.tower.sides if shape.tower and not training.target_modules else 0
    parts = (
        kind.count * (rows * matrix.inputs + math.ceil(matrix.outputs / processes) * rank)
        for kind in shape.kinds
        for matrix in kind.adapted(training.target_modules)
    )
    return sum(parts) + beside


def _weights(shape: Shape, training: Training, step: Step) -> float:
    if training.method is Method.FULL:
        return (BF16 if step.rounded else FP32) * shape.parameters
    per_weight = {Quantization.NF4: NF4, Quantization.INT8: INT8, None: float(BF16)}[training.base_quantization]
    return per_weight * shape.linear_parameters + BF16 * (shape.parameters - shape.linear_parameters)


def _state(shape: Shape, training: Training, step: Step) -> float:
    """Gradient and Adam's two moments in float32, the adapter itself too, and autocast's 16-bit copies."""
    trained = trained_parameters(shape, training)
    if step.rounded:
        return 3 * BF16 * trained
    if training.method is Method.FULL:
        return 3 * FP32 * trained + _casts(shape, step)
    return (4 * FP32 + BF16) * trained


def _after_backward(shape: Shape, step: Step) -> float:
    """What full fine-tuning needs after the activations are freed: a tied output layer's gradient comes in two halves
    that are added up. Adam's fused kernel needs nothing, the rounded one its chunk."""
    halves = (BF16 if step.rounded else FP32) * 3 * shape.vocab * shape.hidden if shape.tied else 0
    return max(halves, 10 * FP32 * ROUNDED_CHUNK if step.rounded else 0)


def _casts(shape: Shape, step: Step) -> float:
    """Autocast keeps 16-bit copies of float32 matrices until the forward pass is over."""
    if step.rounded:
        return 0
    return BF16 * (shape.linear_parameters + (0 if shape.tied else shape.vocab * shape.hidden))


def _gathered(shape: Shape) -> float:
    """The most that FSDP2 has whole at a time: the largest layer, its gradient and its 16-bit copy, the next one
    as it arrives and as it is laid out, the gradient of the one before, which is being summed up; and the output layer
    with its copy. Counted from how torch 2.13 works, not measured."""
    layer = max(shape.whole(kind) for kind in shape.kinds)
    return (5 * FP32 + BF16) * layer + (FP32 + BF16) * shape.vocab * shape.hidden


def _scales(shape: Shape, training: Training) -> float:
    """What each process keeps whole of a base that is divided."""
    return NF4_SCALES * shape.linear_parameters if training.base_quantization is Quantization.NF4 else 0


def _gathered_base(shape: Shape, training: Training) -> float:
    """The most that FSDP2 has whole at a time of a frozen base: the layer that computes, and the next one as it arrives
    and as it is laid out; or, before and after all of them, the output layer in the same two forms. Counted, as for a
    whole model."""
    saved = BF16 - 1 / 2 if training.base_quantization is Quantization.NF4 else 0
    layer = max(BF16 * shape.whole(kind) - saved * kind.linear_parameters for kind in shape.kinds)
    return max(3 * layer, 2 * BF16 * shape.vocab * shape.hidden)


def _workspace(shape: Shape, training: Training) -> float:
    """bitsandbytes turns a rounded matrix back into 16 bits to multiply with it."""
    if training.base_quantization is None:
        return 0
    largest = max(matrix.parameters for matrix in shape.matrices)
    return (BF16 + FP32 / 64) * largest


def _left_behind(shape: Shape, training: Training, step: Step) -> float:
    """Bytes that PyTorch's allocator holds of whole logits beyond those that are alive at once: one tensor of them in
    float32. Fitted to LLaMA-Factory's and Qwen's figures, which are of the whole process; those of tensors have none of
    it, nor has the loss in tiles."""
    tokens = training.batch_size * training.max_length
    return FP32 * tokens * shape.vocab if step.head is Head.LOGITS else 0
