"""How long the models of an evaluation take to answer: they read prompts, then write a token for each prompt of a batch
at a time. Pure."""

import math
from dataclasses import dataclass
from typing import Final

from finetune_api.timing import FORWARD_SHARE
from finetune_api.training import Quantization, Training
from finetune_jobs.fit.asked import BESIDE_TOKENS, LONG_TOKENS, PASSAGES, QUESTION_TOKENS, Asked, Asking
from finetune_jobs.fit.memory import INT8, NF4
from finetune_jobs.fit.shapes import Shape
from finetune_jobs.fit.steps import BF16, FP32, Step

DECODE_SECONDS: Final = 1.0e-3
"""Launching the kernels of one layer in one step of decoding, with weights in 16 bits: LitGPT's tokens per second on an
A100 (0.98 to 1.3 ms)."""
DECODE_ROUNDED_SECONDS: Final = 1.7e-3
"""With weights in NF4 (LitGPT: 1.6 to 1.8 ms)."""
TOGETHER: Final = 16
"""Prompts of the task that are answered at once, at least (``evaluation.asking.BATCH_SIZE``)."""
BESIDE_TOGETHER: Final = 32
"""The same of questions beside the task (``evaluation.behaviour.probe.BATCH_SIZE``)."""


@dataclass(frozen=True)
class Reader:
    """How fast one model reads and writes what it is asked."""

    asked: Asked
    answer_tokens: float
    """Of an answer to an example of the task."""
    prompt_tokens: float
    """Of the prompt before it."""
    token_seconds: float
    """Computing one more token."""
    step_seconds: float
    """The least that a step of decoding takes: kernels are launched and weights are read for any number of prompts."""

    @property
    def example_seconds(self) -> float:
        """Time of all answers to one example of the task, as one of a batch."""
        read = (self.asked.answers + self.asked.likelihoods) * self.prompt_tokens * self.token_seconds
        written = self.asked.answers * self.answer_tokens + self.asked.more_tokens
        return read + self._writing(written, TOGETHER) / TOGETHER

    @property
    def beside_seconds(self) -> float:
        """Time of what is asked however many examples there are."""
        examples = self.asked.readings * PASSAGES + self.asked.noisy
        texts = examples * self.prompt_tokens + self.asked.readings * LONG_TOKENS
        read = self.asked.beside * QUESTION_TOKENS + texts
        batches = math.ceil(self.asked.beside / BESIDE_TOGETHER)
        return read * self.token_seconds + batches * self._writing(BESIDE_TOKENS, BESIDE_TOGETHER)

    def _writing(self, tokens: float, together: int) -> float:
        """So many tokens after each prompt of a batch: a step takes its least, or what its tokens take to compute."""
        return tokens * math.hypot(self.step_seconds, together * self.token_seconds)


def readers(
    shape: Shape, training: Training, step: Step, asking: Asking, *, speed: float, bandwidth: float
) -> tuple[Reader, Reader, Reader]:
    """Base, tuned and exported model, on one GPU or without one.

    ``speed``: trained tokens per second, of which reading takes a forward pass; ``bandwidth``: bytes per second of the
    memory that holds the weights, 0 if unknown. A CPU unpacks a base in NF4 once and then reads whole numbers.
    """
    whole = BF16 if step.bfloat16 else FP32
    nf4 = NF4 + 2 * BF16 if step.on_gpu else whole
    of_base = {Quantization.NF4: nf4, Quantization.INT8: INT8, None: whole}[training.base_quantization]
    unpacks = training.base_quantization is Quantization.NF4

    def reader(asked: Asked, weight: float, launch: float) -> Reader:
        reading = weight * shape.computed_parameters / bandwidth if bandwidth else 0.0
        least = math.hypot(shape.layers * launch if step.on_gpu else 0.0, reading)
        return Reader(asked, asking.answer_tokens, training.max_length, FORWARD_SHARE / speed, least)

    trained = (of_base, DECODE_ROUNDED_SECONDS if unpacks else DECODE_SECONDS)
    return (
        reader(asking.base, *trained),
        reader(asking.tuned, *trained),
        reader(asking.exported, whole, DECODE_SECONDS),
    )
