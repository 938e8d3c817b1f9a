"""What happens beside the training steps: progress, watchdogs, checkpoints, and the end by SIGTERM."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import torch
from transformers import TrainerCallback

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Progress
from finetune_jobs.fit.interruptions import FLUSH_SECONDS, CheckpointCost
from finetune_jobs.training.context import TrainingContext
from finetune_jobs.training.watchdogs import diverged, not_finite, overfits

log = logging.getLogger(__name__)

FIRST: Final = 0.05
LAST: Final = 0.95
"""The steps take the stage's progress from FIRST to LAST; before is loading, after is publishing."""


class Reporting(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Reports every step, and ends a training that fails: LossNotFinite, LossDiverged."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._validation = ""
        self._losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed training is judged by its whole history, except for its speed: this pod spent no time on the steps
        of earlier pods. Loading does not count either."""
        self._losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self._progress.begin(_share(state), "training")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """``logs`` hold ``loss`` and ``grad_norm`` of a step, or ``eval_loss`` of a validation."""
        self._judge(args, state, logs)
        if "eval_loss" in logs:
            self._validation = f", validation loss {logs['eval_loss']:.3f}"
            if overfits(state.log_history):
                self._validation += " and rising (overfitting)"
        if "loss" in logs:
            self._progress.report(
                _share(state),
                f"step {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}{self._validation}",
            )

    def _judge(self, args: Any, state: Any, logs: dict[str, float]) -> None:
        here = f"At step {state.global_step} of {state.max_steps}"
        rate = f"with learning rate {args.learning_rate:g}"
        best = f" The best validation loss was {state.best_metric:.4f}." if state.best_metric is not None else ""
        if name := not_finite(logs):
            raise StageError(Reason.LOSS_NOT_FINITE, f"{here} the {name} was {logs[name]} {rate}.{best}")
        if "loss" not in logs:
            return
        self._losses.append(logs["loss"])
        if diverged(self._losses):
            raise StageError(
                Reason.LOSS_DIVERGED,
                f"{here} the loss was {logs['loss']:.2f}, far above the initial {self._losses[0]:.2f}, {rate}.{best}",
            )


def _share(state: Any) -> float:
    """The stage's progress after the completed steps."""
    return FIRST + (LAST - FIRST) * float(state.global_step) / float(state.max_steps)


class Checkpointing(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Saves checkpoints outside the pod, after validations and every few minutes, less often if they take long; once
    ``stopping`` is set, saves a last time, if that can be done in time, and ends the training, in the middle of a step
    if necessary. Processes that train together decide together."""

    def __init__(
        self,
        context: TrainingContext,
        work: Path,
        *,
        minutes: int = 0,
        divided: bool = False,
        save: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``minutes``: age of the last checkpoint at which the next one is due, 0 for never; ``divided``: each process
        writes a shard of it; ``save`` writes one."""
        self._checkpoints, self._stopping, self._team = context.checkpoints, context.stopping, context.team
        self._work, self._save, self._clock = work, save, clock
        self._ends = False
        self._minutes, self._divided = minutes, divided
        self._saved = self._writing = clock()
        self._written = 0.0
        self._before: _Moment | None = None
        self._epoch_begins = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An epoch's first step repeats from here, since its order is drawn next; not so when it resumes mid-way."""
        self._epoch_begins = float(state.epoch or 0.0).is_integer()
        self._before = _Moment.now(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights do not change until the step's end: until then a checkpoint of this moment can be written."""
        if not self._epoch_begins:
            self._before = _Moment.now(state)
        self._epoch_begins = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step may take longer than the pod has left: the current one is abandoned, and repeated by the next pod."""
        (self._ends,) = self._team.any(self._stopping.is_set())
        if not self._ends:
            return
        if self._before:
            self._before.restore(state)
        # All look before any of them writes: they save together, or none does.
        due, slow = self._team.any(
            not (self._work / f"checkpoint-{state.global_step}").exists(), not self._cost.in_time
        )
        if slow:
            self._end(state)
        if state.global_step and due:
            self._save()
        self.on_save(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last step is validated too, whatever the interval, so that its weights can be the best."""
        self._checkpoints.check()
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        self._ends, due, slow = self._team.any(self._stopping.is_set(), self._late, not self._cost.in_time)
        if self._ends and slow and state.global_step < state.max_steps:
            self._end(state)
        control.should_save = control.should_save or due or self._ends
        self._writing = self._clock()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step's checkpoint is written after its validation."""
        self._writing = self._clock()

    @property
    def _late(self) -> bool:
        """Whether the last checkpoint is old; the first process says so for all, since it uploads last."""
        if not self._minutes or not self._team.first:
            return False
        return self._clock() - self._saved >= self._cost.interval(self._minutes)

    @property
    def _cost(self) -> CheckpointCost:
        """Of a checkpoint, as measured by this process; the first one's upload ends with the last of the others'."""
        return CheckpointCost(self._written, self._checkpoints.upload_seconds)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises StoppedError once the checkpoint of a training that must stop is saved, or StageError (PeerLost) if
        another pod must stop."""
        self._saved = self._clock()
        self._written = self._saved - self._writing
        if self._divided:
            self._checkpoints.keep(self._work, divided=True, last=self._ends or control.should_training_stop)
        else:
            self._checkpoints.keep(self._work)
        if self._ends and state.global_step < state.max_steps:
            self._end(state)

    def _end(self, state: Any) -> NoReturn:
        """Wait for what is being uploaded, and raise what ``on_save`` says."""
        saved = f"step {state.global_step} of {state.max_steps} is saved."
        if not self._checkpoints.flush(FLUSH_SECONDS) or self._checkpoints.newest_step < state.global_step:
            newest = self._checkpoints.newest_step
            saved = f"step {state.global_step} could not be saved in time; the newest saved step is {newest}."
        if self._stopping.is_set():
            raise StoppedError(f"The pod was told to stop; {saved}")
        message = f"Another pod of this training was told to stop; {saved} All restart from there."
        raise StageError(Reason.PEER_LOST, message, retriable=True, peer_initiated=True)


@dataclass(frozen=True)
class _Moment:
    """What a checkpoint holds beside weights and optimiser: the random states that the trainer saves, and a count."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor]
    tokens: int

    @classmethod
    def now(cls, state: Any) -> "_Moment":
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda, state.num_input_tokens_seen)

    def restore(self, state: Any) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        state.num_input_tokens_seen = self.tokens
