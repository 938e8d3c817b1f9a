"""Time and cost of a run before the data are known: an upper bound, if the spec sets one."""

from dataclasses import dataclass

from finetune_api.budget import HardwareFacts, most_tokens, remaining_seconds
from finetune_api.training import Training
from finetune_jobs.fit.duration import load_seconds, tokens_per_second
from finetune_jobs.fit.memory import Step
from finetune_jobs.fit.shapes import Shape


@dataclass(frozen=True)
class CostForecast:
    """What is known of a run's time and cost."""

    tokens_per_second: float
    """Speed of training, on all GPUs together."""
    load_seconds: float
    """Time that each stage with the model needs before it starts."""
    most_seconds: float | None
    """Upper bound of the time of all stages, of each GPU or pod that takes part; None without
    ``spec.training.maxSteps``."""
    most_usd: float | None
    """Upper bound of its cost."""


def forecast(
    shape: Shape, training: Training, step: Step, hardware: HardwareFacts, samples: int
) -> CostForecast | None:
    """The forecast of a run whose evaluation asks ``samples`` examples; None if the hardware's speed is unknown."""
    speed, load = tokens_per_second(shape, training, step, hardware), load_seconds(shape)
    if speed is None:
        return None
    tokens, seconds = most_tokens(training), None
    if tokens is not None:
        length, alone = training.max_length, speed / hardware.processes
        seconds = hardware.processes * remaining_seconds(
            tokens=tokens, samples=0, max_length=length, speed=speed, load=load, stages=1
        ) + remaining_seconds(tokens=0, samples=samples, max_length=length, speed=alone, load=load, stages=2)
    usd = None if seconds is None else seconds * hardware.usd_per_gpu_second
    return CostForecast(speed, load, seconds, usd)
