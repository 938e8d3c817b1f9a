"""A model server as a process on loopback: what tests ask of it, whichever it is."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forked import Forked


class ServerEndedError(AssertionError):
    """A server ended before it was ready."""


@dataclass(slots=True)
class ServerProcess:
    """A running (or still loading) server. ``seen`` is what ``/health`` answered while it was waited for: an HTTP
    status, or "refused"."""

    url: str
    process: subprocess.Popen[bytes] | Forked
    log: Path
    patience: float
    """Seconds until it must be ready."""
    pause: float = 0.1
    """Seconds between two looks at it."""
    seen: list[int | str] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        """Poll ``/health`` until it is 200. Raises AssertionError, with the log, if time is up: ServerEndedError, if
        the process ends."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline and self.process.poll() is None:
            self.seen.append(health(self.url))
            if self.seen[-1] == 200:
                return
            time.sleep(self.pause)
        said = self.log.read_text(encoding="utf-8", errors="replace")[-20_000:]
        if self.process.poll() is not None:
            raise ServerEndedError(f"the server has ended:\n{said}")
        raise AssertionError(f"the server is not ready:\n{said}")

    def terminate(self) -> None:
        """Send SIGTERM, as the kubelet does; nothing happens if the process has ended."""
        self.process.terminate()


def health(url: str) -> int | str:
    """What a model server at ``url`` answers to ``/health``: an HTTP status, or "refused"."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ConnectionRefusedError):
            raise
        return "refused"
