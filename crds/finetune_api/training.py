"""How a FineTuneJob trains, and which settings are known to do badly."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel, Decimal


class Method(StrEnum):
    """How the model is trained."""

    QLORA = "QLoRA"
    LORA = "LoRA"
    FULL = "Full"


class Quantization(StrEnum):
    """How the base of a QLoRA adapter is rounded."""

    NF4 = "NF4"
    INT8 = "INT8"


class Loss(StrEnum):
    """What of a conversation is learnt."""

    ANSWER = "Answer"
    ALL_ANSWERS = "AllAnswers"


Fraction = Annotated[str, Field(pattern=r"^0(\.[0-9]{1,8})?$", max_length=10)]
"""A number from 0 to less than 1, as text."""

LayerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$", min_length=1, max_length=128)]


class LearningCurve(ApiModel):
    """Shorter trainings on parts of the examples, to forecast what more examples would bring."""

    percents: Annotated[list[Annotated[int, Field(ge=5, le=90)]], Field(min_length=2, max_length=6)] = [10, 25, 50]
    """Parts of the training examples, in percent, that a model is trained on each, beside the one of them all. The
    training then takes so much longer: 85 % for 10, 25 and 50."""

    @property
    def extra_work(self) -> float:
        """What the parts cost, as a share of the training of all examples."""
        return sum(set(self.percents)) / 100


class Training(ApiModel):
    """How to train. The defaults suit 500 to 5,000 examples (see docs/concepts)."""

    method: Method = Method.QLORA
    """QLoRA: adapter over a rounded base; LoRA: adapter over the 16-bit base; Full: every weight of the model."""
    quantization: Quantization = Quantization.NF4
    """Base of QLoRA: NF4 (4 bits, least memory) or INT8 (8 bits, LLM.int8)."""
    loss: Loss = Loss.ANSWER
    """Answer: only a conversation's last answer is learnt; AllAnswers: each of the assistant's answers is."""
    epochs: Annotated[int, Field(ge=1, le=50)] = 3
    """Passes over the training examples."""
    max_steps: Annotated[int, Field(ge=0, le=1000000)] = 0
    """Stop after this many optimiser steps; 0 leaves it to `epochs`."""
    learning_rate: Decimal | None = None
    """Peak learning rate; cosine schedule with 3 % warm-up. Left out: 2e-4, above 14 billion parameters 1e-4; for
    Full a tenth of that."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Examples per forward pass and device; halved by itself when the GPU's memory does not hold them."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=512)] = 2
    """Forward passes per optimiser step."""
    max_length: Annotated[int, Field(ge=16, le=131072)] = 512
    """Longest example in tokens; a longer one fails the job rather than being cut silently."""
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank r of the adapter."""
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32
    """Scale of the adapter; the usual choice is twice the rank."""
    rslora: bool = False
    """Divide the scale by the root of the rank instead of the rank (rsLoRA): for ranks of 64 and more."""
    dora: bool = False
    """Train the length of the weights' columns apart from their direction (DoRA): slower, often better at low ranks."""
    target_modules: Annotated[list[LayerName], Field(max_length=64)] = []
    """Linear layers that get an adapter, e.g. q_proj; left out: all of them."""
    dropout: Fraction = "0.05"
    """Dropout on the adapter's input."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """Seed of initialisation and order."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=100000)] = 25
    """Optimiser steps between validations, each with a checkpoint."""
    checkpoint_minutes: Annotated[int, Field(ge=0, le=1440)] = 10
    """A further checkpoint when the last one is so old, for slow steps; 0: none."""
    patience: Annotated[int, Field(ge=0, le=1000)] = 3
    """Stop after this many validations without a better loss; 0: never. The best weights are kept either way."""

    learning_curve: LearningCurve | None = None
    """Train on parts of the examples too and forecast what more of them would bring; left out: do not."""

    @property
    def work(self) -> float:
        """All that is trained, as a multiple of the one training whose weights are kept."""
        return 1 + (self.learning_curve.extra_work if self.learning_curve else 0)

    @property
    def base_quantization(self) -> Quantization | None:
        """How the base is rounded while it is trained on; None: not at all."""
        return self.quantization if self.method is Method.QLORA else None


LOW_ADAPTER_RATE: Final = 5e-5
HIGH_FULL_RATE: Final = 1e-4
HIGH_RANK: Final = 64
LARGE_BATCH: Final = 128
ATTENTION_LAYERS: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "query_key_value", "c_attn", "Wqkv", "wq", "wk"}
    | {"wv", "wo", "query", "key", "value", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}
)
"""Names of attention's projections in the architectures of transformers."""


def training_warnings(training: Training) -> list[str]:
    """Settings that are allowed and known to do badly: for each, what it is, what it does, and what to set instead.

    Sources: "LoRA Without Regret" (Thinking Machines 2025), rsLoRA (Kalajdzievski 2023, arXiv 2312.03732), QLoRA
    (Dettmers et al. 2023, arXiv 2305.14314); what was measured here stands in docs/concepts/training.md.
    """
    return list(_full_warnings(training) if training.method is Method.FULL else _adapter_warnings(training))


def _full_warnings(training: Training) -> Iterator[str]:
    if training.learning_rate and float(training.learning_rate) > HIGH_FULL_RATE:
        yield (
            f"spec.training.learningRate {training.learning_rate} is a rate for adapters: with method Full it makes "
            "the model forget what it knew. 1e-5 to 2e-5 are usual."
        )


def _adapter_warnings(training: Training) -> Iterator[str]:
    if training.learning_rate and float(training.learning_rate) < LOW_ADAPTER_RATE:
        yield (
            f"spec.training.learningRate {training.learning_rate} underfits with {training.method.value}: adapters "
            "want about ten times the rate of full fine-tuning. Leave it out, or set 2e-4."
        )
    if training.target_modules and all(_is_attention(name) for name in training.target_modules):
        yield (
            f"spec.training.targetModules names attention layers only ({', '.join(sorted(training.target_modules))}): "
            "that learns less than all linear layers, even at the same size. Leave it out."
        )
    if training.rank >= HIGH_RANK and not training.rslora:
        yield (
            f"spec.training.rank {training.rank} learns hardly more than a smaller one, since LoRA divides by the "
            "rank. Set rslora: true, or rank: 16."
        )
    if (batch := training.batch_size * training.gradient_accumulation) > LARGE_BATCH:
        yield (
            f"spec.training.batchSize × gradientAccumulation is {batch}: adapters learn worse from large batches, "
            "whatever the rank. 16 to 32 are usual."
        )


def _is_attention(layer: str) -> bool:
    return layer.rpartition(".")[2] in ATTENTION_LAYERS
