"""Money and hardware: what a run may cost, what it runs on, and what it has come to.

Prices are the admin's (``profiles.<name>.gpu.usdPerHour``); CPUs have none, so that a run without a GPU costs nothing
here. Facts and prices are lineage: they change no input key.
"""

from decimal import ROUND_HALF_UP
from decimal import Decimal as Number
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel, WireModel
from finetune_api.training import Training

CURRENCY: Final = "USD"
_CENT: Final = Number("0.01")

Usd = Annotated[str, Field(pattern=r"^[0-9]{1,7}(\.[0-9]{1,2})?$", max_length=16)]
"""An amount of money as text, e.g. ``12.50``."""


class OnExceeded(StrEnum):
    """What happens when the budget is not enough."""

    CHECKPOINT = "Checkpoint"
    FAIL = "Fail"


class Budget(ApiModel):
    """What a run may cost."""

    max_cost: Usd
    """Most that a run's GPUs may cost, in US dollars, e.g. 25.00."""
    on_exceeded: OnExceeded = OnExceeded.CHECKPOINT
    """Checkpoint: training stops in time, its best checkpoint is exported, evaluated and published. Fail: the run ends
    with BudgetExceeded, before training when the forecast is too high already."""


class HardwareFacts(WireModel):
    """What a profile's pods with a model have, as the operator tells the stages."""

    profile: str = ""
    """Name of the profile."""
    name: str = ""
    """Product of the GPU; empty without one."""
    count: int = 0
    """GPUs per pod."""
    memory_gib: float = 0
    """Memory of one GPU, or of the pod where there is no GPU; 0: not limited, so not known."""
    peak_tflops: float = 0
    """Dense bfloat16 peak of one GPU in TFLOP/s; 0 without one."""
    usd_per_hour: float = 0
    """Price of one GPU for one hour."""
    cpus: float = 0
    """CPUs of the pod; 0: not limited, so not known."""
    nodes: int = 1
    """Pods that train together; the other stages run in one."""
    pod_memory_gib: float = 0
    """Memory of the pod beside its GPUs; 0: not limited, so not known."""

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU does the work."""
        return self.count > 0

    @property
    def processes(self) -> int:
        """Processes that train together, one per GPU, or one per pod without GPUs."""
        return max(1, self.count) * self.nodes

    @property
    def usd_per_second(self) -> float:
        """Price of a pod's GPUs together."""
        return self.count * self.usd_per_hour / 3600


class Verdict(StrEnum):
    """Whether the training fits the profile."""

    FITS = "Fits"
    UNKNOWN = "Unknown"


class FitStatus(WireModel):
    """What preflight (in stage resolve) found out about memory and time, from the base model's config.json."""

    verdict: Verdict = Verdict.UNKNOWN
    """Fits, or Unknown where nothing can be said; what does not fit is refused (FitRefused)."""
    memory_gib: Annotated[str, Field(max_length=16)] = ""
    """Estimated peak memory of training, for batches of examples of maxLength, in GiB."""
    available_gib: Annotated[str, Field(max_length=16)] = ""
    """Memory of the GPU, or of the pod, in GiB."""
    tokens_per_second: Annotated[str, Field(max_length=16)] = ""
    """Estimated speed of training, on all GPUs together."""
    load_seconds: Annotated[str, Field(max_length=16)] = ""
    """Estimated time that a stage needs to start and to get the model."""


class Basis(StrEnum):
    """What a forecast rests on."""

    LIMITS = "Limits"
    """The spec's limits alone: an upper bound, known before the data."""
    TOKENS = "Tokens"
    """The data set's tokens."""
    SPEED = "Speed"
    """The measured speed of the running training."""
    FINISHED = "Finished"
    """Nothing is left to forecast."""


class CostStatus(WireModel):
    """What a run's GPUs cost."""

    currency: Annotated[str, Field(max_length=3)] = CURRENCY
    """USD."""
    spent: Annotated[str, Field(max_length=16)] = "0.00"
    """So far: running time of the stages with a GPU times the profile's price."""
    forecast: Annotated[str, Field(max_length=16)] = ""
    """The whole run, what is spent included; empty while unknown."""
    basis: Basis | None = None
    """What the forecast rests on: Limits (an upper bound), Tokens, Speed or Finished."""
    max_cost: Annotated[str, Field(max_length=16)] = ""
    """spec.budget.maxCost."""


def dollars(amount: float) -> str:
    """An amount of money for people and programs: two decimals."""
    return str(Number(amount).quantize(_CENT, rounding=ROUND_HALF_UP))


def trained_tokens(training: Training, examples: int, tokens: int) -> float:
    """Tokens that a whole training sees: ``tokens`` of ``examples`` in each epoch, until ``maxSteps`` ends it, and what
    the parts of a learning curve add.

    Early stopping may end it sooner, so that this is what the training may take, not what it will.
    """
    seen = float(tokens * training.epochs)
    if training.max_steps and examples:
        step = training.batch_size * training.gradient_accumulation * tokens / examples
        seen = min(seen, training.max_steps * step)
    return seen * training.work


def most_tokens(training: Training) -> float | None:
    """Upper bound of the trained tokens before the data are known; None where the spec has no ``maxSteps``."""
    if not training.max_steps:
        return None
    step = training.batch_size * training.gradient_accumulation * training.max_length
    return training.max_steps * step * training.work


def remaining_seconds(*, tokens: float, samples: int, max_length: int, speed: float, load: float, stages: int) -> float:
    """Time of ``stages`` stages (of train, export, evaluate): each gets the model, then the data go through it.

    ``tokens`` are those left to train, at ``speed`` per second. Three models answer ``samples`` examples in the
    evaluation; reading one is taken to be as slow as training on one of ``max_length`` tokens.
    """
    return stages * load + (tokens + 3 * samples * max_length) / speed
