"""The TGI stand-in as a process on loopback, started and stopped by a test."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.layout import free_port
from tests.support import forked
from tests.support.forked import Forked
from tests.support.server_process import ServerProcess

START_TIMEOUT_S = 180.0
"""Importing torch takes a few seconds on an idle machine; a machine that compiles takes its time."""


@contextmanager
def tgi_cpu(
    model: Path,
    work: Path,
    *,
    adapters: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = True,
) -> Iterator[ServerProcess]:
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
        yield ServerProcess(f"http://127.0.0.1:{port}", process, log, START_TIMEOUT_S)
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
