"""What a training runs in: where its checkpoints are kept, whom it tells, when it must end, who shares the work."""

import threading
from dataclasses import dataclass

from finetune_jobs.base.progress import Progress
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.team import ALONE, Team
from finetune_jobs.training.time_budget import TimeBudget


@dataclass(frozen=True)
class TrainingContext:
    """The same for all attempts of a pod at one training."""

    checkpoints: Checkpoints
    progress: Progress
    stopping: threading.Event
    """Set when the pod is told to stop: a last checkpoint is written, and the training ends."""
    time_budget: TimeBudget | None = None
    """Time that the stage may take over all attempts; then the best weights so far are the result."""
    team: Team = ALONE
    """The processes that train together, each with its part of every batch; the first writes the result."""
