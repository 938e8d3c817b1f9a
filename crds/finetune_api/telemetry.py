"""Names of the Prometheus metrics that a stage's pod shows on METRICS_PORT; the operator reads them for the status."""

from typing import Final

PROGRESS_RATIO: Final = "finetune_stage_progress_ratio"
"""Gauge, 0 to 1: share of the stage's work that is done."""
ETA_SECONDS: Final = "finetune_stage_eta_seconds"
"""Gauge: seconds that are left; absent while unknown."""
INFO: Final = "finetune_stage_info"
"""Gauge, always 1, whose label ``message`` holds one sentence for people."""
STEP_LOSS: Final = "finetune_train_loss"
"""Gauge: the newest training loss."""
EVAL_LOSS: Final = "finetune_validation_loss"
"""Gauge: the newest validation loss."""
TOKENS: Final = "finetune_train_tokens_total"
"""Counter: tokens that were trained on."""
