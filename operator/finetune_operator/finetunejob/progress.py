"""Progress of a running stage, from its pod's Prometheus metrics. It never costs a reconciliation.

``ProgressReader.read`` answers at once with what was read last, and has the pod read in the background if that is due.
A pod that answers slowly, or whose port is dropped by a policy or a mesh, costs its own progress display only.
"""

import asyncio
import re
import threading
import time
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from finetune_api import meta, telemetry
from finetune_api.base import MAX_INTEGER
from finetune_operator.framework.metrics import PROGRESS_READINGS

TIMEOUT: Final = 2.0
"""Seconds for a whole reading, however slowly the answer comes."""
READERS: Final = 32
"""Pods that are read at the same time."""
MAX_BYTES: Final = 262_144
FAILURE_PAUSE: Final = 6
"""Intervals between attempts after two failures in a row (a policy, a mesh); one failure is a stage that starts."""
FORGET: Final = 10
"""Intervals after which a Job that nobody asks about any more is forgotten."""
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


@dataclass
class _Reading:
    """What is known of one Job's progress."""

    asked: float
    """When somebody last wanted to know."""
    due: float
    """When the pod may be read again; infinite while it is read."""
    failed: bool = False
    """Whether the last reading failed."""
    sample: Sample | None = None


class Readings:
    """Which pods may be read when, and what they said. Times are seconds of any clock; nothing is read here."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._known: dict[str, _Reading] = {}
        self._tidy_at = READERS

    def newest(self, job_uid: str) -> Sample | None:
        """The last progress that could be read."""
        known = self._known.get(job_uid)
        return known.sample if known else None

    def begin(self, job_uid: str, now: float) -> bool:
        """Whether the pod is to be read now; then ``end`` must follow."""
        known = self._known.setdefault(job_uid, _Reading(now, now))
        known.asked = now
        if known.due > now:
            return False
        known.due = float("inf")
        return True

    def end(self, job_uid: str, began: float, sample: Sample | None, *, failed: bool) -> None:
        """The reading that began then has ended. An answer without progress is no failure."""
        known = self._known[job_uid]
        pause = FAILURE_PAUSE if failed and known.failed else 1
        known.due, known.failed = began + pause * self._interval, failed
        known.sample = sample or known.sample
        if len(self._known) > self._tidy_at:
            self._tidy(began)

    def _tidy(self, now: float) -> None:
        """Forget Jobs that have ended: seldom, because it looks at all of them."""
        oldest = now - FORGET * self._interval
        self._known = {
            uid: known for uid, known in self._known.items() if known.asked > oldest or known.due == float("inf")
        }
        self._tidy_at = READERS + 2 * len(self._known)


class ProgressReader:
    """Reads each Job's progress at most once per ``interval`` (seconds), on a thread of its own."""

    def __init__(self, interval: float, port: int = meta.METRICS_PORT) -> None:
        self._port = port
        self._readings = Readings(interval)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers = asyncio.Semaphore(READERS)

    def read(self, job_uid: str, stage: str, address: str) -> Sample | None:
        """The newest progress, None if there is none yet. Does not wait for the pod. Any thread may call it."""
        now = time.monotonic()
        with self._lock:
            if self._readings.begin(job_uid, now):
                asyncio.run_coroutine_threadsafe(self._read(job_uid, stage, address, now), self._running_loop())
            return self._readings.newest(job_uid)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="progress", daemon=True).start()
        return self._loop

    async def _read(self, job_uid: str, stage: str, address: str, began: float) -> None:
        sample, failed = None, False
        try:
            async with self._readers:
                sample = parse(await fetch(address, self._port), stage)
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError):
            failed = True
        finally:
            PROGRESS_READINGS.labels("failed" if failed else "ok").inc()
            with self._lock:
                self._readings.end(job_uid, began, sample, failed=failed)


async def fetch(address: str, port: int) -> str:
    """The metrics page of a pod; raises OSError, ClientError or TimeoutError. The pod is trusted with nothing."""
    url = URL.build(scheme="http", host=address, port=port, path="/metrics")
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    page = bytearray()
    async with (
        aiohttp.ClientSession(timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(url, allow_redirects=False, headers={"Accept-Encoding": "identity"}) as response,
    ):
        if response.status != 200:
            raise OSError(f"status {response.status}")
        async for part in response.content.iter_any():
            page += part
            if len(page) >= MAX_BYTES:
                break
    return page[:MAX_BYTES].decode(errors="replace")


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
    return Sample(stage, int(ratio * 100), _seconds(eta) if eta is not None else None, message[:256])


def _seconds(text: str) -> int:
    """A number of seconds that the status can hold; raises ValueError."""
    number = float(text)
    if not abs(number) < MAX_INTEGER:  # nor infinite, nor NaN
        raise ValueError(f"{text} is no number of seconds")
    return round(number)
