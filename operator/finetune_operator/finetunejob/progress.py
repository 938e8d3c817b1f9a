"""Progress of a running stage, from its pod's Prometheus metrics. A failure costs only the progress display."""

import http.client
import re
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from finetune_api import meta, telemetry

TIMEOUT: Final = 2.0
MAX_BYTES: Final = 262_144
FAILURE_PAUSE: Final = 6
"""Turns skipped after two failures in a row (a network policy, a mesh); one failure is a stage that starts."""
_LINE: Final = re.compile(r"^(?P<name>[a-z_]+)(\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
_MESSAGE: Final = re.compile(r'message="((?:[^"\\]|\\.)*)"')
_ESCAPES: Final = {"\\\\": "\\", '\\"': '"', "\\n": " "}


@dataclass(frozen=True)
class Sample:
    """How far a stage has come."""

    stage: str
    percent: int
    eta_seconds: int | None = None
    message: str = ""


class ProgressReader:
    """Reads each Job's progress at most once per ``interval``."""

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval
        self._next: dict[str, datetime] = {}
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def read(self, job_uid: str, stage: str, address: str, now: datetime) -> Sample | None:
        """The newest progress; None if it is not due yet or cannot be read."""
        with self._lock:
            if self._next.get(job_uid, now) > now:
                return None
            self._next = {uid: due for uid, due in self._next.items() if due > now - FAILURE_PAUSE * self._interval}
            self._next[job_uid] = now + self._interval
        try:
            sample = parse(fetch(address), stage)
        except (OSError, http.client.HTTPException, ValueError):
            with self._lock:
                again = job_uid in self._failed
                self._failed = (self._failed & self._next.keys()) | {job_uid}
                self._next[job_uid] = now + (FAILURE_PAUSE if again else 1) * self._interval
            return None
        with self._lock:
            self._failed.discard(job_uid)
        return sample


def fetch(address: str, port: int = meta.METRICS_PORT) -> str:
    """The metrics page of a pod; raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise OSError(f"status {response.status}")
        return response.read(MAX_BYTES).decode(errors="replace")
    finally:
        connection.close()


def parse(page: str, stage: str) -> Sample | None:
    """The sample that a metrics page shows, or None without one; raises ValueError for a value that is no number."""
    values: dict[str, str] = {}
    message = ""
    for line in _LINE.finditer(page):
        values[line["name"]] = line["value"]
        if line["name"] == telemetry.INFO and (found := _MESSAGE.search(line["labels"] or "")):
            message = re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), found[1])
    if telemetry.PROGRESS_RATIO not in values:
        return None
    ratio = min(1.0, max(0.0, float(values[telemetry.PROGRESS_RATIO])))
    eta = values.get(telemetry.ETA_SECONDS)
    return Sample(stage, int(ratio * 100), round(float(eta)) if eta is not None else None, message[:256])
