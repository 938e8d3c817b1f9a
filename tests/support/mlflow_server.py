"""A real MLflow tracking server (SQLite, artifacts in a folder) on loopback, for tests."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.layout import free_port

MLFLOW = Path(sys.executable).with_name("mlflow")
START_TIMEOUT_S = 180.0
"""It makes its tables and imports half of PyPI: a minute on a busy machine."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server whose data lie in ``folder``; its URL. It is killed at the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=os.environ | QUIET, start_new_session=True
        )
    try:
        _wait(process, f"{url}/health")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (OSError, urllib.error.URLError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the MLflow server did not start; see mlflow.log") from error
            time.sleep(0.2)
