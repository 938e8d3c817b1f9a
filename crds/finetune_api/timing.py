"""How long a run takes: one formula, read by preflight's forecast, the operator's cost and the budget. Pure arithmetic.

Preflight turns a model and a profile into a ``Pace``; with the data set it gives seconds. A pass takes what its tokens
take to compute, or what launching its kernels and reading the weights takes however few they are. A GPU computes while
the CPU launches, so the larger of the two decides; near each other both count, for which the root of the sum of their
squares stands (within 20 % of Qwen's published seconds from 256 to 8,192 tokens: hack/benchmarks/fit_estimate.py).
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final, Self

from finetune_api.budget import FitStatus
from finetune_api.training import Method, Packing, Quantization, Training

VALIDATION_SHARE: Final = 0.05
"""Share of the steps' time that validations may take."""
FORWARD_SHARE: Final = 1 / 3
"""Time of a validated example, as a share of a trained one: a forward pass of three passes' worth."""
FEWEST_VALIDATIONS, MOST_VALIDATIONS = 4, 20
"""Validations of a run that is long enough: fewer say little about when it was best, more say nothing new."""
USUAL_INTERVAL: Final = 25
VALIDATION_TOKENS: Final = 200_000
"""Tokens of a validation at most."""
_ONCE: Final = 3
"""Models whose answers an older preflight counted, each once: base, tuned, exported. Its ``answerSeconds`` are those of
one."""
_DRAWN: Final = 2048
"""Examples whose lengths are drawn to estimate padding."""


@dataclass(frozen=True)
class Pace:
    """How fast a profile trains and runs a model."""

    tokens_per_second: float
    """Training speed of all GPUs together, in passes so large that only computing counts."""
    load_seconds: float
    """From a stage's start until the base model is on the device."""
    pass_seconds: float = 0.0
    """The least that a pass forward and backward takes: kernels are launched and weights are read for any tokens."""
    answer_seconds: float = 0.0
    """All models' answers to one example of the evaluation, on one GPU."""
    beside_seconds: float = 0.0
    """What the evaluation asks however many examples there are: about forgetting and safety, and reference texts."""
    transfer_seconds: float = 0.0
    """Writing the exported model and sending it to the store, or fetching it."""
    validation_tokens: int = 0
    """Tokens of a validation's pass at most; 0: as many as a pass of training has."""

    @classmethod
    def of(cls, fit: FitStatus | None, training: Training, processes: int) -> Self | None:
        """As preflight reported it; None where the model's speed is unknown."""
        if fit is None or not float(fit.tokens_per_second or 0):
            return None
        speed = float(fit.tokens_per_second)
        answer = float(fit.answer_seconds or training.max_length * processes / speed)  # the oldest reported none
        return cls(
            tokens_per_second=speed,
            load_seconds=float(fit.load_seconds or 0),
            pass_seconds=float(fit.pass_seconds or 0),
            answer_seconds=answer if fit.beside_seconds else _ONCE * answer,
            beside_seconds=float(fit.beside_seconds or 0),
            transfer_seconds=float(fit.transfer_seconds or 0),
            validation_tokens=fit.validation_tokens or 0,
        )


@dataclass(frozen=True)
class Examples:
    """What a training learns from, or the most that it may be."""

    count: int
    tokens: float
    """Tokens of an example, on average."""
    longest: float
    """Tokens of the longest."""
    validated: int
    """Examples of the validation split."""

    @classmethod
    def at_most(cls, training: Training, count: int | None = None, validated: int | None = None) -> Self | None:
        """The most that the spec allows for so many examples, or for all of its steps; None without ``maxSteps``. A
        split of which the size is unknown has all that a validation takes: in a short run, whose four validations may
        cost more than its steps, a share of the time would be no bound."""
        if count is None and training.max_steps is None:
            return None
        step = training.batch_size * training.gradient_accumulation
        most = count if count is not None else step * (training.max_steps or 0)
        return cls(most, training.max_length, training.max_length, validated or training.validation.max_examples)


def planned_steps(examples: int, training: Training) -> int:
    """Optimiser steps: ``epochs`` passes in batches, the last of a pass perhaps smaller; at most ``max_steps``.

    The same for each way to divide a step's examples into passes: rounding up twice is rounding up once.
    """
    steps = math.ceil(examples / (training.batch_size * training.gradient_accumulation)) * training.epochs
    return min(steps, training.max_steps) if training.max_steps else steps


def validation_interval(training: Training, steps: int, validated: int) -> int:
    """Optimiser steps between validations of so many examples in a training of so many steps."""
    trained = steps * training.batch_size * training.gradient_accumulation
    affordable = VALIDATION_SHARE * trained / (FORWARD_SHARE * max(1, validated))
    count = min(MOST_VALIDATIONS, max(FEWEST_VALIDATIONS, affordable))
    usual = min(USUAL_INTERVAL, math.ceil(steps / FEWEST_VALIDATIONS))
    return min(steps, training.checkpoint_steps or max(usual, math.ceil(steps / count)))


def training_seconds(training: Training, examples: Examples, pace: Pace, processes: int = 1) -> float:
    """Time of all steps and validations, the parts of a learning curve among them, on each of so many processes.

    An upper bound: early stopping may end the training sooner.
    """
    step = training.batch_size * training.gradient_accumulation
    seen = float(examples.count * training.epochs)
    if training.max_steps:
        seen = min(seen, float(training.max_steps * step))
    size = min(training.batch_size, max(1, step // processes))
    tokens = size * examples.tokens * padding(training, examples, processes)
    each = math.hypot(pace.pass_seconds, tokens * processes / pace.tokens_per_second)
    trained = seen / (size * processes) * each
    return training.work * (trained + _validation_seconds(training, examples, pace, processes))


def _validation_seconds(training: Training, examples: Examples, pace: Pace, processes: int) -> float:
    """Of all validations, each in passes that the processes share, without padding to speak of: examples of like length
    stand together."""
    steps = planned_steps(examples.count, training)
    if not steps:
        return 0.0
    validated = min(examples.validated, training.validation.max_examples, VALIDATION_TOKENS / max(1, examples.tokens))
    times = math.ceil(steps / validation_interval(training, steps, math.ceil(validated)))
    tokens = validated * examples.tokens / processes
    passes = math.ceil(tokens / (pace.validation_tokens or training.batch_size * max(1.0, examples.tokens)))
    each = math.hypot(passes * pace.pass_seconds, tokens * processes / pace.tokens_per_second)
    return times * each * FORWARD_SHARE


def padding(training: Training, examples: Examples, processes: int = 1) -> float:
    """Tokens that go through the model for each token of the data: 1 where a pass's examples share a row.

    They do not in divided models, nor in most models in LLM.int8 on a GPU (docs/concepts/training.md), which are all
    counted as such.

    Otherwise each pass is padded to its longest example, those of a step in the order of their lengths. The lengths are
    taken to be log-normal, as those of chats are, with the mean and the longest that the data have.
    """
    kept_apart = training.base_quantization is Quantization.INT8 or (training.method is Method.FULL and processes > 1)
    packed, size = training.packing is Packing.AUTO and not kept_apart, training.batch_size
    if packed or size == 1 or examples.longest <= examples.tokens or examples.count < 2:
        return 1.0
    ratio = examples.longest / max(1.0, examples.tokens)
    far = NormalDist().inv_cdf(1 - 1 / (examples.count + 1))
    spread = far - math.sqrt(max(0.0, far * far - 2 * math.log(ratio)))
    return _padded(round(spread, 2), round(ratio, 1), size, training.gradient_accumulation)


@lru_cache(maxsize=256)
def _padded(spread: float, ratio: float, size: int, passes: int) -> float:
    """``padding`` of drawn lengths, in multiples of their mean; ``spread`` is that of their logarithms. Always the same
    lengths are drawn."""
    draw = random.Random(0)  # noqa: S311 # no secret
    step = size * max(1, min(passes, _DRAWN // size))
    padded = whole = 0.0
    for _ in range(max(1, _DRAWN // step)):
        normal = (draw.gauss() for _ in range(step))
        lengths = sorted(min(ratio, math.exp(spread * each - spread * spread / 2)) for each in normal)
        padded += sum(size * lengths[end - 1] for end in range(size, step + 1, size))
        whole += sum(lengths)
    return padded / whole


def train_seconds(training: Training, examples: Examples, pace: Pace, processes: int = 1) -> float:
    """Time of stage train. A whole model is also sent to the store at its end; an adapter is small."""
    sent = pace.transfer_seconds if training.method is Method.FULL else 0.0
    return pace.load_seconds + training_seconds(training, examples, pace, processes) + sent


def export_seconds(pace: Pace) -> float:
    """Time of stage export: it reads the base, and writes and sends the merged model."""
    return pace.load_seconds + pace.transfer_seconds


def evaluate_seconds(pace: Pace, samples: int) -> float:
    """Time of stage evaluate: it fetches base and artifact, and all models answer so many examples and what is asked
    beside them."""
    return pace.load_seconds + pace.transfer_seconds + samples * pace.answer_seconds + pace.beside_seconds
