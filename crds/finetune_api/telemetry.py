"""Names of the Prometheus metrics that a stage's pod exposes on METRICS_PORT; the operator reads them for the status.

The names follow https://prometheus.io/docs/practices/naming/: base units in the name, ``_total`` for counters only.
"""

from collections.abc import Mapping
from typing import Final

PROGRESS_RATIO: Final = "finetune_stage_progress_ratio"
"""Gauge, 0 to 1: share of the stage's work that is done."""
ETA_SECONDS: Final = "finetune_stage_eta_seconds"
"""Gauge: estimated seconds left; absent while unknown."""
INFO: Final = "finetune_stage_info"
"""Gauge, always 1; its label ``message`` describes for people what the stage is doing."""
STEP: Final = "finetune_train_step"
"""Gauge: optimiser steps done."""
PLANNED_STEPS: Final = "finetune_train_planned_steps"
"""Gauge: maximum optimiser steps of the training; early stopping may end it sooner."""
STEP_LOSS: Final = "finetune_train_loss"
"""Gauge: latest training loss."""
EVAL_LOSS: Final = "finetune_validation_loss"
"""Gauge: latest validation loss."""
LEARNING_RATE: Final = "finetune_train_learning_rate"
"""Gauge: learning rate of the latest step."""
GRADIENT_NORM: Final = "finetune_train_gradient_norm"
"""Gauge: gradient norm of the latest step, before clipping."""
TOKENS: Final = "finetune_train_tokens_total"
"""Counter: tokens trained on."""
TOKENS_PER_SECOND: Final = "finetune_train_tokens_per_second"
"""Gauge: tokens per second over the last steps, without validation and saving."""
GPU_MEMORY: Final = "finetune_train_gpu_memory_peak_bytes"
"""Gauge: peak GPU memory held by tensors so far; absent without a GPU."""

HELP: Final[Mapping[str, str]] = {
    PROGRESS_RATIO: "Share of the stage's work that is done",
    ETA_SECONDS: "Estimated seconds left",
    INFO: "What the stage is doing",
    STEP: "Optimiser steps done",
    PLANNED_STEPS: "Maximum optimiser steps of the training",
    STEP_LOSS: "Latest training loss",
    EVAL_LOSS: "Latest validation loss",
    LEARNING_RATE: "Learning rate of the latest step",
    GRADIENT_NORM: "Gradient norm of the latest step, before clipping",
    TOKENS: "Tokens trained on",
    TOKENS_PER_SECOND: "Tokens trained on per second over the last steps, without validation and saving",
    GPU_MEMORY: "Peak GPU memory held by tensors so far",
}
"""Help text of each metric."""
