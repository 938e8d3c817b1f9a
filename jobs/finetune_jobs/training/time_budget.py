"""Ends a training when its budget is spent; the best weights are kept."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from transformers import TrainerCallback

from finetune_api.reasons import Reason
from finetune_jobs.base.background import Repeating
from finetune_jobs.runtime.logs import process_age
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.team import ALONE, Team
from finetune_jobs.training.watchdogs import Ending

log = logging.getLogger(__name__)

NOTE_SECONDS: Final = 60.0
"""Time between two records of the time spent: a killed pod loses at most this much."""
_LAST_NOTE_SECONDS: Final = 5.0
"""Longest wait for the last record when a pod ends: after the last checkpoint there is little time left."""


class TimeBudget(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Ends the training after the step in which its seconds run out, over all attempts: the pod is what costs, so
    loading counts too. The last step is validated, so that its weights can be the best. As a context it records the
    time spent for later attempts, periodically and at the end, however that comes: an unavailable store costs the
    record, never the training.
    """

    def __init__(
        self, seconds: int, checkpoints: Checkpoints, age: Callable[[], float] = process_age, team: Team = ALONE
    ) -> None:
        """``seconds`` for the whole stage; ``age`` gives how long this attempt has been running."""
        self._seconds, self._checkpoints, self._age, self._team = seconds, checkpoints, age, team
        self._earlier = checkpoints.seconds
        self._notes: Repeating | None = None
        self.used_up = False
        """Whether that was the end."""

    def __enter__(self) -> Self:
        if self._team.first:
            self._notes = Repeating(self._note, name="recording the time spent", pause=NOTE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._notes:
            self._notes.end()
            if not self._notes.wait(_LAST_NOTE_SECONDS):
                log.warning("later pods of this run will not count all seconds that this one took")

    def _note(self) -> None:
        self._checkpoints.remember_seconds(self.spent)

    @property
    def spent(self) -> float:
        """Seconds so far, over all attempts."""
        return self._earlier + self._age()

    @property
    def left(self) -> float:
        """Seconds left of the budget; 0 once it is used up."""
        return max(0.0, self._seconds - self.spent)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer; may end the training."""
        (over,) = self._team.any(self.spent >= self._seconds)
        if over and state.global_step < state.max_steps:
            self.used_up = True
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def ending(self, otherwise: Ending) -> Ending:
        """How the training ended; ``otherwise`` is the verdict from its losses."""
        if not self.used_up:
            return otherwise
        return Ending(
            Reason.BUDGET_EXCEEDED,
            f"spec.budget.maxCost covers {self._seconds} s of training, which are used up. {otherwise.message}",
        )
