"""Stage train, whose processes divide an adapter's base among them as on GPUs that are each too small for it: a CPU's
memory never asks for that. Of each layer a part is computed again in the backward pass, as it would be there, or, where
the environment has PLAIN, the whole layer. With a step in STOPPED_AT, the pod is told to stop once that is done."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Final
from unittest import mock

from finetune_jobs import train
from finetune_jobs.base.progress import Measurement, Progress
from finetune_jobs.fit.steps import ON_CPU
from finetune_jobs.training import launcher, trainer

PROGRAM: Final = "tests.support.divided_train"
PLAIN: Final = "PLAIN"
STOPPED_AT: Final = "STOPPED_AT"
_STAGE: Final = "finetune_jobs.train"


def main() -> None:
    """Entry point."""
    command = launcher._command
    vars(launcher)["_command"] = lambda *given: [PROGRAM if word == _STAGE else word for word in command(*given)]
    vars(trainer)["chosen_step"] = lambda *_: replace(
        ON_CPU, divided=True, checkpointing=True, selective=PLAIN not in os.environ
    )
    if launcher.own_rank(os.environ) == 0 and STOPPED_AT in os.environ:
        _stop_at(int(os.environ[STOPPED_AT]))
    train.main()


def _stop_at(step: int) -> None:
    """The launcher, which the kubelet would tell, is this process's parent."""
    record = Progress.record

    def recorded(progress: Progress, measurement: Measurement) -> None:
        record(progress, measurement)
        if measurement.loss is not None and measurement.step == step:
            os.kill(os.getppid(), signal.SIGTERM)

    mock.patch.object(Progress, "record", recorded).start()


if __name__ == "__main__":
    main()
