"""The TGI stand-in as a process on loopback, started and stopped by a test."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hack.cluster.layout import free_port
from tests.support import forked
from tests.support.forked import Forked

START_TIMEOUT_S = 180.0
"""Importing torch takes a few seconds on an idle machine; a machine that compiles takes its time."""


@dataclass(slots=True)
class TgiProcess:
    """A running (or still loading) stand-in. ``seen`` is what ``/health`` answered while it was waited for: an HTTP
    status, or "refused"."""

    url: str
    process: subprocess.Popen[bytes] | Forked
    log: Path
    seen: list[int | str] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        """Poll ``/health`` until it is 200. Raises AssertionError, with the log, if the process ends or time is up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            self.seen.append(health(self.url))
            if self.seen[-1] == 200:
                return
            time.sleep(0.1)
        raise AssertionError(f"tgi_cpu is not ready:\n{self.log.read_text(encoding='utf-8', errors='replace')}")

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


@contextmanager
def tgi_cpu(
    model: Path,
    work: Path,
    *,
    adapters: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = True,
) -> Iterator[TgiProcess]:
    """Start the stand-in for a checkpoint; ``env`` holds launcher variables, ``work`` takes the log. Not yet ready.

    Not ``fresh``: as a process that has its imports already.
    """
    port = free_port()
    log = work / f"tgi-cpu-{port}.log"
    launcher = {
        "MODEL_ID": str(model),
        "LORA_ADAPTERS": ",".join(f"{name}={path}" for name, path in (adapters or {}).items()),
        "HOSTNAME": "127.0.0.1",
        "PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        **(env or {}),
    }
    process = _start({**os.environ, **launcher}, log, fresh)
    try:
        yield TgiProcess(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(environment: dict[str, str], log: Path, fresh: bool) -> subprocess.Popen[bytes] | Forked:
    log.touch()
    if not fresh:
        return forked.start(["tgi_cpu"], environment, log)
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "tgi_cpu"], env=environment, stdout=output, stderr=output)
