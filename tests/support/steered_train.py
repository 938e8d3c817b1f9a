"""Stage train that ends where a test wants it, so that no training need be longer than that takes. With a step in
STOPPED_AT, the pod is told to stop once that is done; with one in HELD_AT, this pod's processes wait there until they
are killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Final
from unittest import mock

from finetune_jobs import train
from finetune_jobs.base.progress import Measurement, Progress
from finetune_jobs.training import launcher
from finetune_jobs.training.callbacks import Checkpointing

PROGRAM: Final = "tests.support.steered_train"
STOPPED_AT: Final = "STOPPED_AT"
HELD_AT: Final = "HELD_AT"
_STAGE: Final = "finetune_jobs.train"


def main(program: str = PROGRAM) -> None:
    """Entry point, also of a ``program`` that changes more of the stage."""
    command = launcher._command
    vars(launcher)["_command"] = lambda *given: [program if word == _STAGE else word for word in command(*given)]
    rank = launcher.own_rank(os.environ)
    alone = rank is None and not {"--nodes", "--processes"} & {*sys.argv}
    if (alone or rank == 0) and STOPPED_AT in os.environ:
        _stop_at(int(os.environ[STOPPED_AT]), os.getpid() if alone else os.getppid())
    if rank is not None and HELD_AT in os.environ:
        _hold_at(int(os.environ[HELD_AT]))
    train.main()


def _stop_at(step: int, pod: int) -> None:
    """The kubelet tells the process ``pod``: of several their launcher, which passes it on. The next step begins once
    this one knows: how long that takes would decide where the training stops."""
    record = Progress.record

    def recorded(progress: Progress, measurement: Measurement) -> None:
        record(progress, measurement)
        if measurement.loss is None or measurement.step != step:
            return
        told, handle = threading.Event(), signal.getsignal(signal.SIGTERM)

        def handled(number: int, frame: FrameType | None) -> None:
            assert callable(handle)
            handle(number, frame)
            told.set()

        signal.signal(signal.SIGTERM, handled)
        os.kill(pod, signal.SIGTERM)
        while not told.is_set():
            time.sleep(0.01)

    mock.patch.object(Progress, "record", recorded).start()


def _hold_at(step: int) -> None:
    begin = Checkpointing.on_step_begin

    def begun(checkpointing: Checkpointing, args: Any, state: Any, control: Any, **given: Any) -> None:
        begin(checkpointing, args, state, control, **given)
        while state.global_step == step:
            time.sleep(60)

    mock.patch.object(Checkpointing, "on_step_begin", begun).start()


if __name__ == "__main__":
    main()
