"""Background work that may fail or hang without delaying the stage: copies of logs and measurements."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from finetune_jobs.base.errors import StageError

log = logging.getLogger(__name__)

_SLOWEST: Final = 16


class Repeating:
    """Calls ``work`` every ``pause`` seconds in a daemon thread, sooner on request, and a last time at the end.

    Whatever ``work`` raises is logged once until it succeeds again, and costs nothing else. ``work`` runs in that one
    thread only, never twice at a time.
    """

    def __init__(self, work: Callable[[], None], *, name: str, pause: float, slowest: int = _SLOWEST) -> None:
        """``slowest``: after consecutive failures the pause grows up to so many times its length."""
        self._work, self._name, self._pause, self._slowest = work, name, pause, slowest
        self._wake, self._ending, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._failures = 0
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def soon(self) -> None:
        """Do not wait for the pause to end."""
        self._wake.set()

    def end(self) -> None:
        """Run ``work`` a last time, then stop."""
        self._ending.set()
        self._wake.set()

    def wait(self, seconds: float) -> bool:
        """After ``end``: True if that last time succeeded within ``seconds``, the longest that this takes."""
        return self._ended.wait(seconds) and not self._failures

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(self._pause * min(2**self._failures, self._slowest))
            self._wake.clear()
            last = self._ending.is_set()
            self._try()
            if last:
                self._ended.set()

    def _try(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 # whatever it is, the stage continues
            if not self._failures:
                log.warning("%s failed, the stage continues: %s", self._name, _cause(error))
            self._failures += 1
        else:
            if self._failures:
                log.info("%s works again", self._name)
            self._failures = 0


def _cause(error: Exception) -> str:
    if isinstance(error, StageError):
        return error.message
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
