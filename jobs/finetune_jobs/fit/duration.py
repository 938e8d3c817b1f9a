"""How fast a profile trains and runs a model: operations and bytes, divided by what its hardware reaches.

Operations per token are a multiple of the weights it is multiplied with (Kaplan et al. 2020, arXiv 2001.08361): 2
forward, 2 for the gradients of the activations, 2 more for those of the weights where these are trained, and 2 to
recompute everything under checkpointing, or the wider products where that is selective. Attention adds to each of these
passes what grows with an example's length; its kernel reaches about twice the share of the rest (FlashAttention-2, Dao
2023, arXiv 2307.08691), so half is counted. The gated delta rule adds as much for any length; how long its pieces take
to launch is not known here and not counted.

Attention without a kernel computes every score, also those of later tokens, which causal kernels skip, at the share of
the rest; backward, each of its products becomes two. And it moves scores through the card's memory: what it keeps of
each is written and read again, and so is what its backward pass makes of it. That is the least, since what neither
keeps is moved too. It follows from the layers (``hack.families.scores``); nobody's seconds were compared with it.
"""

from collections.abc import Sequence
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.timing import Pace
from finetune_api.training import Method, Quantization, Training
from finetune_jobs.fit.activations import PIECE, SCORES
from finetune_jobs.fit.answering import readers
from finetune_jobs.fit.asked import Asking
from finetune_jobs.fit.cards import card_of, unknown
from finetune_jobs.fit.memory import INT8, NF4
from finetune_jobs.fit.shapes import LayerKind, Shape
from finetune_jobs.fit.steps import BF16, Step
from finetune_jobs.fit.validating import validation_tokens

SCALING: Final = 0.9
"""Share of their speed that several processes keep while they exchange gradients, mostly during the backward pass
(PyTorch DDP, Li et al. 2020, arXiv 2006.15704). An assumption for links of GPUs; Ethernet is slower."""
SHARDED_SCALING: Final = 0.8
"""The same for a divided model: each pass gathers every layer twice, a whole model's in float32, and adds up its
gradients (FSDP, Zhao et al. 2023, arXiv 2304.11277); elsewhere only gradients are exchanged, once a step. An assumption
for links of GPUs, not measured."""
CPU_FLOPS: Final = 130e9
"""Operations per second of one CPU with AVX512-BF16: SmolLM2-135M with QLoRA, 239 tokens per CPU second (measured)."""
CPU_BANDWIDTH: Final = 20e9
"""Bytes per second that the CPUs of a pod read. An assumption."""
LAUNCH_SECONDS: Final = 5e-3
"""Launching the kernels of one layer in a pass, forward, again and backward, with an adapter on each of its matrices:
Qwen's seconds per step with 256 tokens (4.7 to 5.2 ms a layer)."""
LAUNCH_ROUNDED_SECONDS: Final = 6e-3
"""With a base in NF4, each of whose matrices is first turned back into 16 bits: Qwen3-0.6B on an H100 takes 1 ms a
layer longer with it than without (Unsloth)."""
START_SECONDS: Final = 90.0
"""A stage with a model, from its pod's start to the first batch, without the download. An assumption."""
NETWORK_BYTES: Final = 200e6
"""Bytes per second between a pod and the object store. An assumption."""
DISK_BYTES: Final = 1e9
"""Bytes per second to and from scratch. An assumption: NVMe; network disks are slower."""


def operations(shape: Shape, training: Training, step: Step, length: float) -> float:
    """Floating-point operations for one token of training, in an example of so many tokens; of attention by a kernel,
    half."""
    backward = 4 if training.method is Method.FULL else 2
    again = shape.computed_parameters if step.checkpointing else 0
    attention = sum(kind.count * _passes(kind, step) * _mixing(kind, length) for kind in shape.kinds)
    if step.selective:
        again -= sum(kind.count * kind.selected_parameters for kind in shape.kinds)
    return float(shape.computed_parameters * (2 + backward) + 2 * again + attention)


def _passes(kind: LayerKind, step: Step) -> int:
    """Forward passes whose operations a layer's attention takes."""
    if kind.score_bytes:  # it is made of products that selective checkpointing keeps nothing of
        return 4 if step.checkpointing else 3
    return 3 if step.keeps_least else 2  # attention's own backward pass is of activations only


def _mixing(kind: LayerKind, length: float) -> float:
    """Operations with which a layer mixes one token with others, forward."""
    if kind.score_bytes:
        return 4 * kind.attention_width * length  # 2 × 2 × length, and all of it
    if not kind.key_dim:
        return kind.attention_width * length  # causal: 2 × 2 × length / 2, and half of it
    keys, values = kind.key_dim, kind.head_dim  # a piece is multiplied with itself and with the state before it
    return kind.heads * (PIECE * (5 * keys + 3 * values) + 6 * keys * values)


def _score_bytes(shape: Shape, step: Step, length: float) -> float:
    """Bytes of scores that one token of training moves at least, in an example of so many tokens."""
    moved = 0
    for kind in shape.kinds:
        if kind.score_bytes:
            kept = kind.score_bytes * (3 if step.checkpointing else 2)  # written once more, and read once
            moved += kind.count * kind.heads * (kept + 2 * SCORES)
    return moved * length


def scaling(training: Training, step: Step) -> float:
    """Share of their speed that several processes keep."""
    return SHARDED_SCALING if training.method is Method.FULL or step.divided else SCALING


def pace(
    shape: Shape,
    training: Training,
    step: Step,
    hardware: HardwareFacts,
    *,
    asked: Asking | None = None,
    exported: Sequence[float] = (BF16,),
) -> Pace | None:
    """How fast the profile's hardware trains and runs the model; None where the hardware is unknown.

    ``asked``: what the models are asked in the evaluation; ``exported``: bytes of a weight of the exported model, in
    each format that is made and asked.
    """
    if hardware.has_gpu:
        card = card_of(hardware) or unknown(hardware)
        speed = hardware.peak_tflops * 1e12 * card.share(training)
        bandwidth = card.bandwidth * 1e9 * min(1.0, hardware.peak_tflops / card.tflops) if card.tflops else 0.0
        launch = LAUNCH_SECONDS if training.base_quantization is None else LAUNCH_ROUNDED_SECONDS
        least = shape.layers * launch + _traffic(shape, training, step) / bandwidth if bandwidth else 0.0
    else:
        speed, bandwidth, least = hardware.cpus * CPU_FLOPS, CPU_BANDWIDTH, 0.0
    if speed <= 0:
        return None
    seconds = operations(shape, training, step, training.max_length) / speed
    if hardware.has_gpu and bandwidth:  # one kernel after the other: this time is added
        seconds += _score_bytes(shape, step, training.max_length) / bandwidth
    alone = 1 / seconds
    models = []
    if asked:
        base, tuned, served = readers(shape, training, step, asked, speed=alone, bandwidth=bandwidth)
        models = [base, tuned, *[served] * len(exported)]
    together = 1 if hardware.processes == 1 else hardware.processes * scaling(training, step)
    return Pace(
        tokens_per_second=together * alone,
        load_seconds=load_seconds(shape),
        pass_seconds=least,
        answer_seconds=sum(model.example_seconds for model in models),
        beside_seconds=sum(model.beside_seconds for model in models),
        transfer_seconds=sum(exported) * shape.parameters * (1 / NETWORK_BYTES + 1 / DISK_BYTES),
        validation_tokens=validation_tokens(shape, training, step),
    )


def _traffic(shape: Shape, training: Training, step: Step) -> float:
    """Bytes that a pass moves whatever its tokens: weights are read, rounded ones also written out in 16 bits."""
    per_weight = {
        Quantization.NF4: NF4 + 2 * BF16,
        Quantization.INT8: INT8 + 2 * BF16,
        None: 4 + 2 * BF16 if training.method is Method.FULL else BF16,
    }[training.base_quantization]
    return (3 if step.checkpointing else 2) * per_weight * shape.computed_parameters


def load_seconds(shape: Shape) -> float:
    """Time that a stage needs until its model is on the device: fetched, written to scratch, read again."""
    return START_SECONDS + BF16 * shape.parameters * (1 / NETWORK_BYTES + 2 / DISK_BYTES)
