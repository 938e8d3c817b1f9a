"""Cost and hardware: what a run may cost, what it runs on, and what it has cost so far.

The admin sets the prices (``profiles.<name>.gpu.usdPerHour``). CPUs have none, so a run without a GPU costs nothing
here. Hardware facts and prices are lineage: they change no input key.
"""

from decimal import ROUND_HALF_UP
from decimal import Decimal as Amount
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel, Count, Message, Number, OpenEnum, WireModel
from finetune_api.spelled import spelled

CURRENCY: Final = "USD"
_CENT: Final = Amount("0.01")

Usd = Annotated[
    str,
    spelled(
        r"^[0-9]{1,7}(\.[0-9]{1,2})?$",
        "write an amount in USD, e.g. 100 or 12.50, with at most 7 digits before the point and 2 after it",
        max_length=16,
    ),
]
"""An amount of money as text, e.g. ``12.50``."""


class OnExceeded(StrEnum):
    """What happens when the budget does not suffice."""

    CHECKPOINT = "Checkpoint"
    FAIL = "Fail"


class Budget(ApiModel):
    """What a run may cost."""

    max_cost: Usd
    """Maximum cost of a run's GPUs in US dollars, e.g. 25.00."""
    on_exceeded: OnExceeded = OnExceeded.CHECKPOINT
    """Checkpoint: training stops in time, and its best checkpoint is exported, evaluated and published. Fail: the run
    fails with BudgetExceeded, before training starts if the forecast already exceeds the budget."""


class HardwareFacts(WireModel):
    """The hardware of a profile's pods that run a model, as the operator passes it to the stages."""

    profile: str = ""
    """Name of the profile."""
    name: str = ""
    """Product name of the GPU; empty without a GPU."""
    count: int = 0
    """GPUs per pod."""
    memory_gib: float = 0
    """Memory of one GPU, or of the pod without a GPU; 0: no limit, so unknown."""
    peak_tflops: float = 0
    """Dense bfloat16 peak of one GPU in TFLOP/s; 0 without one."""
    usd_per_hour: float = 0
    """Price of one GPU for one hour."""
    cpus: float = 0
    """CPUs of the pod; 0: no limit, so unknown."""
    nodes: int = 1
    """Pods that train together; every other stage runs in one pod."""
    pod_memory_gib: float = 0
    """Memory of the pod, apart from its GPUs; 0: no limit, so unknown."""
    scratch_gib: float = 0
    """Size of the pod's scratch volume; 0: unknown."""

    @property
    def has_gpu(self) -> bool:
        """Whether the pod has a GPU."""
        return self.count > 0

    @property
    def processes(self) -> int:
        """Training processes: one per GPU, or one per pod without GPUs."""
        return max(1, self.count) * self.nodes

    @property
    def usd_per_gpu_second(self) -> float:
        """Price of one GPU for a second; 0 without a GPU."""
        return self.usd_per_hour / 3600 if self.has_gpu else 0.0


class Verdict(OpenEnum):
    """Whether the training fits the profile."""

    FITS = "Fits"
    UNKNOWN = "Unknown"


class FitStatus(WireModel):
    """Memory and time as preflight (in stage resolve) estimates them from the base model's config.json."""

    verdict: Verdict = Verdict.UNKNOWN
    """Fits, or Unknown if there is no estimate. A training that does not fit is refused (FitRefused)."""
    memory_gib: Number = ""
    """Estimated peak memory of training in GiB, for batches of examples of maxLength."""
    available_gib: Number = ""
    """Memory of the GPU, or of the pod, in GiB."""
    tokens_per_second: Number = ""
    """Estimated training speed of all GPUs together, in passes full of tokens; small ones are slower (passSeconds)."""
    pass_seconds: Number = ""
    """Estimated least time of a pass forward and backward, however few its tokens."""
    load_seconds: Number = ""
    """Estimated time that a stage needs to start and to load the model."""
    answer_seconds: Number = ""
    """Estimated time of all models' answers to one example of the evaluation. Without besideSeconds (older results): of
    one model's one answer."""
    beside_seconds: Number = ""
    """Estimated time of what the evaluation asks however many examples there are, e.g. about forgetting and safety."""
    transfer_seconds: Number = ""
    """Estimated time to write and send the exported model, or to fetch it."""
    validation_tokens: Count = None
    """Tokens that a pass of a validation has at most: as many as take no more memory than a pass of training."""
    evaluation_gpus: Count = None
    """GPUs of a pod that evaluation needs, where its largest model fits no single one. Absent: one."""
    warning: Message = ""
    """What preflight warns of: runtimes that cannot serve the artifact, layers without an adapter."""


class Basis(OpenEnum):
    """What a forecast is based on."""

    LIMITS = "Limits"
    """Only the spec's limits: an upper bound that is known before the data are read."""
    TOKENS = "Tokens"
    """The data set's tokens."""
    SPEED = "Speed"
    """The measured speed of the running training."""
    FINISHED = "Finished"
    """The run has finished: nothing is left to forecast."""


class CostStatus(WireModel):
    """What a run's GPUs cost."""

    currency: Annotated[str, Field(max_length=3)] = CURRENCY
    """USD."""
    spent: Number = "0.00"
    """Cost so far: running time of the stages with a GPU, times their GPUs, times the price of one."""
    forecast: Number = ""
    """Cost of the whole run, including what is already spent; absent while unknown."""
    basis: Basis | None = None
    """What the forecast is based on: Limits (an upper bound), Tokens, Speed or Finished."""
    max_cost: Number = ""
    """spec.budget.maxCost."""


def dollars(amount: float) -> str:
    """An amount of money with two decimals."""
    return str(Amount(amount).quantize(_CENT, rounding=ROUND_HALF_UP))
