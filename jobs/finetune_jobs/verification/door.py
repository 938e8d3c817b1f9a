"""The moment in which the network opens to clients, as the verifier sees it.

Network plugins apply a policy with a delay that nobody tells. The policy that lets clients in opens a second port to
the verifier, the door: once that answers, the policy is in force. That says something only if the door was closed
before. Where another policy lets the verifier through it, or nothing enforces policies, it is open all along.
"""

import socket
import threading
import time
from typing import Final
from urllib.parse import urlsplit

_POLL_SECONDS: Final = 0.25
_CONNECT_SECONDS: Final = 0.5
"""Plugins drop what they do not let through. The kernel would send the first packet again after a second."""


class Door:
    """A port that is tried all the time from now on."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "", address.port or 80)
        self._was_open = False
        self._tried, self._is_due = threading.Event(), threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def is_closed(self) -> bool:
        """Whether it has been closed all the time."""
        self._tried.wait()
        return not self._was_open

    def opens(self, seconds: float) -> float | None:
        """After how many seconds it opens; None: it does not within so many."""
        self._is_due.set()
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            if self._answers():
                return passed
            time.sleep(_POLL_SECONDS)
        return None

    def _look(self) -> None:
        while not self._is_due.is_set():
            self._was_open = self._answers() or self._was_open
            self._tried.set()
            self._is_due.wait(_POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=_CONNECT_SECONDS).close()
        except OSError:
            return False
        return True
