"""What a training loses when its pod is told to stop or is lost: how long a checkpoint takes, and how often it pays.

A checkpoint is written to disk, for which the steps wait, and then sent to the store beside them. A pod that is told to
stop has a minute; a checkpoint that takes longer is not begun, and the next pod repeats what came after the last one.
"""

import math
from dataclasses import dataclass
from typing import Final

from finetune_api.training import Training
from finetune_jobs.fit.disk import PER_TRAINED
from finetune_jobs.fit.duration import DISK_BYTES, NETWORK_BYTES
from finetune_jobs.fit.memory import GIB, trained_parameters
from finetune_jobs.fit.shapes import Shape

FLUSH_SECONDS: Final = 40.0
"""How long the last checkpoint may take to reach the store: stage pods have a minute between SIGTERM and SIGKILL."""
LIFE_SECONDS: Final = 4 * 3600.0
"""Time between two losses of a pod. An assumption, for nodes that a cloud may take back."""


@dataclass(frozen=True)
class CheckpointCost:
    """Seconds that a checkpoint takes, estimated or measured."""

    write: float = 0.0
    """On disk, while the steps wait."""
    upload: float = 0.0
    """To the store, beside them."""

    @classmethod
    def of(cls, shape: Shape, training: Training, pods: int = 1) -> "CheckpointCost":
        """By the size of what is trained: its weights and Adam's two moments, of which each of ``pods`` saves
        its share."""
        size = checkpoint_bytes(shape, training) / pods
        return cls(size / DISK_BYTES, size / NETWORK_BYTES)

    @property
    def in_time(self) -> bool:
        """Whether a pod that is told to stop can save one more."""
        return self.write + self.upload <= FLUSH_SECONDS

    def interval(self, minutes: float) -> float:
        """Seconds from one checkpoint to the next where the spec asks for one every so many ``minutes``: no sooner than
        it is sent, and than Young's rule says, by which writing and repeated steps together take the least time (A
        first order approximation to the optimum checkpoint interval, Communications of the ACM 17, 1974)."""
        return max(60.0 * minutes, self.upload, math.sqrt(2 * self.write * LIFE_SECONDS))


def checkpoint_bytes(shape: Shape, training: Training) -> float:
    """Of one checkpoint."""
    return PER_TRAINED * trained_parameters(shape, training)


def interruption(shape: Shape, training: Training, pods: int = 1) -> str:
    """What a user has to know of checkpoints that take longer than a pod has at its end; empty if they do not. Each of
    ``pods`` saves its share."""
    cost = CheckpointCost.of(shape, training, pods)
    if cost.in_time:
        return ""
    size, minutes = checkpoint_bytes(shape, training) / GIB, cost.interval(training.checkpoint_minutes) / 60
    shared = f", of which each of {pods} pods saves its share," if pods > 1 else ""
    return (
        f"A checkpoint of {size:.0f} GiB{shared} takes about {(cost.write + cost.upload) / 60:.0f} min, and a pod that "
        f"is told to stop has {FLUSH_SECONDS:.0f} s: it saves none, and the steps since the last one are repeated. "
        f"Between validations they are {minutes:.0f} min apart."
    )
