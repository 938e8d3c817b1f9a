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

START_TIMEOUT_S = 400.0
"""It makes its tables and imports half of PyPI: a minute on a busy machine."""
ENVIRONMENT = {
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server whose data lie in ``folder``; its URL. It is killed at the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # The tracking server's application alone: ``mlflow server`` makes its imports twice, in a process that starts
    # another, and adds what agents and gateways need.
    command = [sys.executable, "-m", "flask", "--app", "mlflow.server:app", "run", "--port", str(port)]
    environment = ENVIRONMENT | {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "files"),
    }
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=os.environ | environment, start_new_session=True
        )
    try:
        _wait(process, f"{url}/health")
        # Its tables are made for whoever asks first.
        with urllib.request.urlopen(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=START_TIMEOUT_S):
            pass
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except (OSError, urllib.error.URLError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the MLflow server did not start; see mlflow.log") from error
            time.sleep(0.2)
