"""Time and cost of a run before the data are known: an upper bound, if the spec sets one."""

from dataclasses import dataclass

from finetune_api.budget import HardwareFacts
from finetune_api.timing import Examples, Pace, evaluate_seconds, export_seconds, train_seconds
from finetune_api.training import Training


@dataclass(frozen=True)
class CostForecast:
    """What is known of a run's time and cost."""

    pace: Pace
    most_seconds: float | None
    """Upper bound of the time of all stages, of each GPU or pod that takes part; None without
    ``spec.training.maxSteps``."""
    most_usd: float | None
    """Upper bound of its cost."""


def forecast(
    pace: Pace | None, training: Training, hardware: HardwareFacts, samples: int, evaluation_gpus: int = 1
) -> CostForecast | None:
    """The forecast of a run whose evaluation asks ``samples`` examples on so many GPUs; None if the hardware's speed is
    unknown."""
    if pace is None:
        return None
    examples, seconds = Examples.at_most(training), None
    if examples is not None:
        training_time = train_seconds(training, examples, pace, hardware.processes)
        seconds = hardware.processes * training_time + export_seconds(pace)
        seconds += evaluation_gpus * evaluate_seconds(pace, samples)
    usd = None if seconds is None else seconds * hardware.usd_per_gpu_second
    return CostForecast(pace, seconds, usd)
