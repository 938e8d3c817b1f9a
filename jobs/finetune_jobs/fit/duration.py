"""How long a training takes: floating-point operations per token, divided by the hardware's rate.

FLOPs per token are a multiple of the parameters that a token passes through (Kaplan et al. 2020, arXiv 2001.08361): 2
forward, 2 for the gradients of the activations, 2 more for those of the weights where these are trained, and 2 to
recompute everything under checkpointing. Attention's own share, which grows with the length, is left out on both sides:
the utilisation below was derived from published speeds with the same count.
"""

from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.training import Method, Training
from finetune_jobs.fit.memory import BF16, Step
from finetune_jobs.fit.shapes import Shape

UTILISATION: Final = 0.35
"""Share of a GPU's dense bfloat16 peak that trainings reach: 0.30 to 0.46 from 1,024 to 16,384 tokens on an A100
(LLaMA-Factory's published speeds, Llama-2-7B with QLoRA)."""
SCALING: Final = 0.9
"""Share of their speed that several processes keep while they exchange gradients, mostly during the backward pass
(PyTorch DDP, Li et al. 2020, arXiv 2006.15704). An assumption for links of GPUs; Ethernet is slower."""
SHARDED_SCALING: Final = 0.8
"""The same for a sharded model: each pass gathers every layer twice, in float32, and adds up its gradients (FSDP, Zhao
et al. 2023, arXiv 2304.11277); elsewhere only gradients are exchanged, once a step. An assumption for links of GPUs,
not measured."""
CPU_FLOPS: Final = 130e9
"""Operations per second of one CPU with AVX512-BF16: SmolLM2-135M with QLoRA, 239 tokens per CPU second (measured)."""
START_SECONDS: Final = 90.0
"""A stage with a model, from its pod's start to the first batch, without the download. An assumption."""
DOWNLOAD_BYTES: Final = 200e6
"""Bytes per second from the object store to the GPU. An assumption."""


def flops_per_token(shape: Shape, training: Training, step: Step) -> float:
    """Floating-point operations for one token of training."""
    passes = 6 if training.method is Method.FULL else 4
    return float(shape.active_parameters * (passes + (2 if step.checkpointing else 0)))


def scaling(training: Training) -> float:
    """Share of their speed that several processes keep."""
    return SHARDED_SCALING if training.method is Method.FULL else SCALING


def tokens_per_second(shape: Shape, training: Training, step: Step, hardware: HardwareFacts) -> float | None:
    """Speed of training on all GPUs that take part, or on their pods' CPUs; None where the hardware is unknown."""
    speed = hardware.peak_tflops * 1e12 * UTILISATION if hardware.has_gpu else hardware.cpus * CPU_FLOPS
    together = 1 if hardware.processes == 1 else hardware.processes * scaling(training)
    return together * speed / flops_per_token(shape, training, step) if speed > 0 else None


def load_seconds(shape: Shape) -> float:
    """Time that a stage needs until its model is on the device."""
    return START_SECONDS + BF16 * shape.parameters / DOWNLOAD_BYTES
