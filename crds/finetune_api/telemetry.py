"""Names of the Prometheus metrics that a stage's pod shows on METRICS_PORT; the operator reads them for the status.

They follow https://prometheus.io/docs/practices/naming/: base units in the name, ``_total`` for counters only.
"""

from collections.abc import Mapping
from typing import Final

PROGRESS_RATIO: Final = "finetune_stage_progress_ratio"
"""Gauge, 0 to 1: share of the stage's work that is done."""
ETA_SECONDS: Final = "finetune_stage_eta_seconds"
"""Gauge: seconds that are left; absent while unknown."""
INFO: Final = "finetune_stage_info"
"""Gauge, always 1, whose label ``message`` holds one sentence for people."""
STEP: Final = "finetune_train_step"
"""Gauge: optimiser steps that are done."""
PLANNED_STEPS: Final = "finetune_train_planned_steps"
"""Gauge: optimiser steps that the training takes at most; early stopping may end it before."""
STEP_LOSS: Final = "finetune_train_loss"
"""Gauge: the newest training loss."""
EVAL_LOSS: Final = "finetune_validation_loss"
"""Gauge: the newest validation loss."""
LEARNING_RATE: Final = "finetune_train_learning_rate"
"""Gauge: learning rate of the newest step."""
GRADIENT_NORM: Final = "finetune_train_gradient_norm"
"""Gauge: norm of the newest step's gradient, before it was clipped."""
TOKENS: Final = "finetune_train_tokens_total"
"""Counter: tokens that were trained on."""
TOKENS_PER_SECOND: Final = "finetune_train_tokens_per_second"
"""Gauge: speed of the last steps, without validation and saving."""
GPU_MEMORY: Final = "finetune_train_gpu_memory_peak_bytes"
"""Gauge: most GPU memory that tensors held at a time so far; absent without a GPU."""

HELP: Final[Mapping[str, str]] = {
    PROGRESS_RATIO: "Share of the stage's work that is done",
    ETA_SECONDS: "Seconds that are left",
    INFO: "What the stage is doing",
    STEP: "Optimiser steps that are done",
    PLANNED_STEPS: "Optimiser steps that the training takes at most",
    STEP_LOSS: "Newest training loss",
    EVAL_LOSS: "Newest validation loss",
    LEARNING_RATE: "Learning rate of the newest step",
    GRADIENT_NORM: "Norm of the newest step's gradient before clipping",
    TOKENS: "Tokens that were trained on",
    TOKENS_PER_SECOND: "Tokens trained on per second in the last steps, without validation and saving",
    GPU_MEMORY: "Most GPU memory that tensors held at a time so far",
}
"""One line for each metric, as a scrape shows it."""
