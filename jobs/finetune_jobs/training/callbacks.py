"""What happens beside the training steps: progress, checkpoints, and the end by SIGTERM."""

import math
import threading
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback

from finetune_api.reasons import Reason
from finetune_jobs.errors import StageError, StoppedError
from finetune_jobs.progress import Progress
from finetune_jobs.training.checkpoints import Checkpoints

FIRST: Final = 0.05
LAST: Final = 0.95
"""The steps take the stage's progress from FIRST to LAST; before is loading, after is publishing."""


class Reporting(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Reports every step, and ends a training whose loss or gradient is no number any more (LossNotFinite)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._validation = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """``logs`` hold ``loss`` and ``grad_norm`` of a step, or ``eval_loss`` of a validation."""
        for name in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise StageError(
                    Reason.LOSS_NOT_FINITE,
                    f"At step {state.global_step} of {state.max_steps} the {name} was {logs[name]} with "
                    f"spec.training.learningRate {args.learning_rate:g}.",
                )
        tokens = int(state.num_input_tokens_seen)
        if "eval_loss" in logs:
            self._validation = f", validation loss {logs['eval_loss']:.3f}"
            self._progress.measure(validation_loss=logs["eval_loss"], tokens=tokens)
        if "loss" in logs:
            self._progress.measure(loss=logs["loss"], tokens=tokens)
            self._progress.report(
                FIRST + (LAST - FIRST) * state.global_step / state.max_steps,
                f"step {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}{self._validation}",
            )


class Checkpointing(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Keeps checkpoints safe outside the pod; once ``stopping`` is set, does so a last time and ends the training."""

    def __init__(self, checkpoints: Checkpoints, work: Path, stopping: threading.Event) -> None:
        self._checkpoints = checkpoints
        self._work = work
        self._stopping = stopping

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last step is validated too, whatever the interval, so that its weights can be the best."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        control.should_save = control.should_save or self._stopping.is_set()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises StoppedError once the checkpoint of a training that must stop is safe."""
        self._checkpoints.mirror(self._work)
        if self._stopping.is_set() and state.global_step < state.max_steps:
            raise StoppedError(f"The pod was told to stop; step {state.global_step} of {state.max_steps} is saved.")
