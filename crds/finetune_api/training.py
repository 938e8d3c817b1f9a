"""How a FineTuneJob trains, and which settings are known to perform badly."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_api.base import AS_SET, ApiModel, Decimal, Retired
from finetune_api.rules import not_zero
from finetune_api.spelled import spelled


class Method(StrEnum):
    """How the model is trained."""

    QLORA = "QLoRA"
    LORA = "LoRA"
    FULL = "Full"


class Quantization(StrEnum):
    """How the base model of a QLoRA adapter is quantized."""

    NF4 = "NF4"
    INT8 = "INT8"


class Loss(StrEnum):
    """Which answers of a conversation the model learns."""

    ANSWER = "Answer"
    ALL_ANSWERS = "AllAnswers"


Fraction = Annotated[
    str,
    spelled(
        r"^0(\.[0-9]{1,8})?$", "write a number from 0 to below 1 with at most 8 decimals, e.g. 0.05", max_length=10
    ),
]
"""A number as text, at least 0 and less than 1."""

LayerName = Annotated[
    str,
    spelled(
        r"^[A-Za-z0-9_.]+$",
        "write a layer's name in letters, digits, _ and ., e.g. q_proj",
        min_length=1,
        max_length=128,
    ),
]


class LearningCurve(ApiModel):
    """Additional trainings on parts of the examples, to forecast the benefit of more examples."""

    percents: Annotated[list[Annotated[int, Field(ge=5, le=90)]], Field(min_length=2, max_length=6), *AS_SET] = [
        10,
        25,
        50,
    ]
    """Percentages of the training examples; a model is trained on each part, in addition to the one on all examples.
    Training takes longer by their sum: by 85 % for 10, 25 and 50."""

    @property
    def extra_work(self) -> float:
        """Additional work of the parts, as a share of the training on all examples."""
        return sum(self.percents) / 100


class AdapterKind(StrEnum):
    """What an adapter learns of a weight matrix."""

    LORA = "LoRA"
    DORA = "DoRA"


class Scaling(StrEnum):
    """By what the adapter's scale is divided."""

    RANK = "Rank"
    ROOT_OF_RANK = "RootOfRank"


class EarlyStopping(StrEnum):
    """What ends a training before its last step."""

    VALIDATION_LOSS = "ValidationLoss"
    NEVER = "Never"


class Packing(StrEnum):
    """Whether the examples of a pass share a row of tokens instead of being padded to the longest."""

    AUTO = "Auto"
    OFF = "Off"


class Kernels(StrEnum):
    """Whether a GPU computes normalisation, rotations and gates in one kernel each."""

    AUTO = "Auto"
    OFF = "Off"


class Validation(ApiModel):
    """What the training is judged by while it runs."""

    max_examples: Annotated[int, Field(ge=10, le=100000)] = 500
    """Maximum number of examples of the validation split to evaluate each time, always the same ones."""


class Training(ApiModel):
    """How to train. The defaults suit 500 to 5,000 examples (see docs/concepts)."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "rslora": Retired("write scaling: RootOfRank", "boolean"),
        "dora": Retired("write adapter: DoRA", "boolean"),
    }

    method: Method = Method.QLORA
    """QLoRA: adapter on a quantized base model. LoRA: adapter on the 16-bit base model. Full: all weights of the
    model."""
    quantization: Quantization = Quantization.NF4
    """Quantization of the base model for QLoRA: NF4 (4 bits, least memory) or INT8 (8 bits, LLM.int8)."""
    loss: Loss = Loss.ANSWER
    """Answer: learn only the last answer of a conversation. AllAnswers: learn every answer of the assistant."""
    epochs: Annotated[int, Field(ge=1, le=50)] = 3
    """Passes over the training examples."""
    max_steps: Annotated[
        int | None, Field(ge=1, le=1000000, json_schema_extra=not_zero("omit maxSteps, so that epochs decides"))
    ] = None
    """Stop after this many optimiser steps. Default: `epochs` decides."""
    learning_rate: Decimal | None = None
    """Peak learning rate of a cosine schedule with 3 % warm-up. Default: 2e-4, or 1e-4 above 14 billion parameters; a
    tenth of that for Full."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Examples per forward pass and device; halved automatically if the GPU runs out of memory."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=512)] = 2
    """Forward passes per optimiser step."""
    max_length: Annotated[int, Field(ge=16, le=131072)] = 512
    """Maximum tokens of an example. spec.dataset.cleaning.tooLong decides what happens to longer ones; by default the
    job fails."""
    packing: Packing = Packing.AUTO
    """Auto: join the examples of a forward pass without padding, each attending to itself only, where the model allows
    it; the training is the same, and faster. On GPUs most models do not with quantization INT8, nor do models that are
    divided among several: they are padded, as with Off."""
    kernels: Kernels = Kernels.AUTO
    """Auto: on a GPU, compute RMSNorm, rotary embeddings and SwiGLU or GeGLU in one kernel each, for model families
    that are known and where a check on that GPU finds the same numbers; faster. Off: as PyTorch does."""
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank r of the adapter."""
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32
    """Scale of the adapter, usually twice the rank."""
    scaling: Scaling = Scaling.RANK
    """Rank: divide the scale by the rank. RootOfRank: by its square root (rsLoRA), for ranks of 64 and more."""
    adapter: AdapterKind = AdapterKind.LORA
    """LoRA, or DoRA: train magnitude and direction of the weights separately; slower, often better at low ranks."""
    target_modules: Annotated[list[LayerName], Field(max_length=64), *AS_SET] = []
    """Linear layers that get an adapter, e.g. q_proj; all if omitted."""
    dropout: Fraction = "0.05"
    """Dropout on the adapter's input."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """Seed of initialisation and order."""
    checkpoint_steps: Annotated[int | None, Field(ge=1, le=100000)] = None
    """Optimiser steps between validations, each of which also saves a checkpoint. Default: 25, fewer in short runs, and
    more in long ones, so that validations take about 5 % of the time and there are at most 20."""
    checkpoint_minutes: Annotated[
        int, Field(ge=1, le=10080, json_schema_extra=not_zero("for hardly any, set checkpointMinutes: 10080, a week"))
    ] = 10
    """Save another checkpoint if the last one is this many minutes old, for slow steps."""
    early_stopping: EarlyStopping = EarlyStopping.VALIDATION_LOSS
    """ValidationLoss: stop when the validation loss no longer improves. Never. The best weights are always kept."""
    patience: Annotated[int | None, Field(ge=1, le=1000, json_schema_extra=not_zero("set earlyStopping: Never"))] = None
    """Validations without a better loss after which training stops early. Default: as many as an epoch has, and at
    least 3."""
    validation: Validation = Validation()
    """What the training is judged by while it runs."""

    learning_curve: LearningCurve | None = None
    """Also train on parts of the examples and forecast the benefit of more; omit it to skip this."""

    @property
    def work(self) -> float:
        """Total training work, as a multiple of the training whose weights are kept."""
        return 1 + (self.learning_curve.extra_work if self.learning_curve else 0)

    @property
    def base_quantization(self) -> Quantization | None:
        """How the base model is quantized during training; None: not quantized."""
        return self.quantization if self.method is Method.QLORA else None


LOW_ADAPTER_RATE: Final = 5e-5
HIGH_FULL_RATE: Final = 1e-4
HIGH_RANK: Final = 64
LARGE_BATCH: Final = 128
ATTENTION_LAYERS: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "query_key_value", "c_attn", "Wqkv", "wq", "wk"}
    | {"wv", "wo", "query", "key", "value", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}
)
"""Names of the attention projections in the architectures of transformers."""


def training_warnings(training: Training) -> list[str]:
    """Warnings about valid settings that are known to perform badly: the setting, its effect, and what to set instead.

    Sources: "LoRA Without Regret" (Thinking Machines 2025), rsLoRA (Kalajdzievski 2023, arXiv 2312.03732), QLoRA
    (Dettmers et al. 2023, arXiv 2305.14314); our own measurements are in docs/concepts/training.md.
    """
    return list(_full_warnings(training) if training.method is Method.FULL else _adapter_warnings(training))


def _full_warnings(training: Training) -> Iterator[str]:
    if training.learning_rate and float(training.learning_rate) > HIGH_FULL_RATE:
        yield (
            f"spec.training.learningRate {training.learning_rate} is a rate for adapters: with method Full the model "
            "forgets what it knew. Set 1e-5 to 2e-5."
        )


def _adapter_warnings(training: Training) -> Iterator[str]:
    if training.learning_rate and float(training.learning_rate) < LOW_ADAPTER_RATE:
        yield (
            f"spec.training.learningRate {training.learning_rate} underfits with {training.method.value}: adapters "
            "need about ten times the rate of full fine-tuning. Omit it, or set 2e-4."
        )
    if training.target_modules and all(_is_attention(name) for name in training.target_modules):
        yield (
            f"spec.training.targetModules names only attention layers ({', '.join(sorted(training.target_modules))}): "
            "they learn less than all linear layers, even with the same number of parameters. Omit it."
        )
    if training.rank >= HIGH_RANK and training.scaling is Scaling.RANK:
        yield (
            f"spec.training.rank {training.rank} learns hardly more than a smaller rank, because LoRA divides by "
            "the rank. Set scaling: RootOfRank, or rank: 16."
        )
    if (batch := training.batch_size * training.gradient_accumulation) > LARGE_BATCH:
        yield (
            f"spec.training.batchSize × gradientAccumulation is {batch}: adapters learn less from large batches at "
            "any rank. Set 16 to 32."
        )


def _is_attention(layer: str) -> bool:
    return layer.rpartition(".")[2] in ATTENTION_LAYERS
