"""The watchdog of a training that hangs: a device, a network or a lock that never answers costs money all night."""

import faulthandler
import logging
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from transformers import TrainerCallback

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

log = logging.getLogger(__name__)

AT_LEAST: Final = 900.0
"""Seconds without a sign of life that are always tolerated: the first step compiles kernels, a validation is long."""
TIMES_USUAL: Final = 20.0
"""And this many times the usual interval between two signs of life."""
LAST_CHANCE: Final = 30.0
"""Seconds for the training's thread to end by itself."""
_REMEMBERED: Final = 101


class StallWatch(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Ends a process whose training shows no sign of life for long: with StageError (StepHung) in the training's thread
    if Python still runs there, otherwise the whole process, so that a new pod can resume from the last checkpoint.

    A context manager; must be entered in the main thread. A sign of life is a forward pass or a step of a validation.
    """

    def __init__(
        self,
        *,
        at_least: float = AT_LEAST,
        last_chance: float = LAST_CHANCE,
        end_process: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_least, self._last_chance = at_least, last_chance
        self._end_process, self._clock = end_process, clock
        self._distances: deque[float] = deque(maxlen=_REMEMBERED)
        self._last = clock()
        self._step = 0
        self._done = threading.Event()
        self._before: Any = None

    def __enter__(self) -> "StallWatch":
        self._last = self._clock()
        self._before = signal.signal(signal.SIGUSR1, self._interrupt)
        threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        signal.signal(signal.SIGUSR1, self._before)

    @property
    def limit(self) -> float:
        """Seconds without a sign of life after which the training counts as hung."""
        usual = statistics.median(self._distances) if self._distances else 0.0
        return max(self._at_least, TIMES_USUAL * usual)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step = state.global_step
        self._alive()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._alive()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._alive()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._alive()

    def _alive(self) -> None:
        now = self._clock()
        self._distances.append(now - self._last)
        self._last = now

    def _watch(self) -> None:
        while not self._done.wait(min(5.0, self._at_least / 4)):
            if self._clock() - self._last > self.limit:
                self._end()
                return

    def _end(self) -> None:
        log.error("%s; the stacks of all threads follow", self._message())
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGUSR1)  # wakes a system call, so that Python's handler can run
        if not self._done.wait(self._last_chance):
            self._end_process(int(ExitCode.RETRIABLE))

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        raise StageError(Reason.STEP_HUNG, f"{self._message()}.", retriable=True)

    def _message(self) -> str:
        return f"After step {self._step} the training showed no sign of life for {self.limit:.0f} s"
