"""The end of a training by its budget: the money is gone, the best weights are kept."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from finetune_api.reasons import Reason
from finetune_jobs.logs import process_age
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.team import ALONE, Team
from finetune_jobs.training.watchdogs import Ending


class Allowance(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Ends the training after the step in which its seconds ran out, over all attempts: what costs is the pod, so
    loading counts too. The last step is validated, so that its weights can be the best."""

    def __init__(
        self, seconds: int, checkpoints: Checkpoints, age: Callable[[], float] = process_age, team: Team = ALONE
    ) -> None:
        """``seconds`` for the whole stage; ``age`` tells how long this attempt has been there."""
        self._seconds, self._checkpoints, self._age, self._team = seconds, checkpoints, age, team
        self._earlier = checkpoints.seconds
        self.used_up = False
        """Whether that was the end."""

    @property
    def spent(self) -> float:
        """Seconds so far, over all attempts."""
        return self._earlier + self._age()

    @property
    def left(self) -> float:
        """Seconds that are left of the allowance; 0 once it is used up."""
        return max(0.0, self._seconds - self.spent)

    def remember(self) -> None:
        """Let later attempts know what this one has used. Raises StageError as ``Checkpoints``."""
        self._checkpoints.remember_seconds(self.spent)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer; may end the training."""
        (over,) = self._team.any(self.spent >= self._seconds)
        if over and state.global_step < state.max_steps:
            self.used_up = True
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.remember()

    def ending(self, otherwise: Ending) -> Ending:
        """How the training came to its end; ``otherwise`` is what its losses say."""
        if not self.used_up:
            return otherwise
        return Ending(
            Reason.BUDGET_EXCEEDED,
            f"spec.budget.maxCost pays for {self._seconds} s of training, which are over. {otherwise.message}",
        )
