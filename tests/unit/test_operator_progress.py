"""Progress of a stage's pod: what is read, how often, and that nothing can go wrong with it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from finetune_api import telemetry
from finetune_operator.finetunejob import progress
from finetune_operator.finetunejob.progress import (
    FAILURE_PAUSE,
    FORGET,
    READERS,
    TIMEOUT,
    ProgressReader,
    Readings,
    Sample,
    fetch,
    parse,
)
from hack.cluster.layout import free_port
from tests.support.closed_port import closed_port

pytestmark = pytest.mark.unit

INTERVAL = 10
"""Seconds."""
PATIENCE = 120.0
"""Seconds for what comes: a busy machine may be slow."""


def page(ratio: float | None, eta: float | None = None, message: str | None = None) -> str:
    """What a stage's pod really serves: written by the library that the jobs use."""
    registry = CollectorRegistry()
    Counter("finetune_train_tokens", "noise", registry=registry).inc(5)
    if ratio is not None:
        Gauge(telemetry.PROGRESS_RATIO, "done", registry=registry).set(ratio)
    if eta is not None:
        Gauge(telemetry.ETA_SECONDS, "left", registry=registry).set(eta)
    if message is not None:
        Gauge(telemetry.INFO, "words", ["message"], registry=registry).labels(message).set(1)
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (page(0.426, 61.5, "step 5 of 9"), Sample("train", 42, 62, "step 5 of 9")),
        (page(0.5), Sample("train", 50)),
        (page(1.7), Sample("train", 100)),
        (page(-1.0), Sample("train", 0)),
        (page(0.1, message='a "b"\\c\nd'), Sample("train", 10, None, 'a "b"\\c d')),
        (page(0.1, message="x" * 1000), Sample("train", 10, None, "x" * 256)),
        (page(None), None),
        ("", None),
    ],
)
def test_a_page_becomes_a_sample(served: str, expected: Sample | None) -> None:
    assert parse(served, "train") == expected


@pytest.mark.parametrize("eta", [float("inf"), float("-inf"), float("nan"), 1e300, 2.0**63])
def test_a_time_that_no_status_can_hold_is_no_number(eta: float) -> None:
    with pytest.raises(ValueError, match=r"seconds|NaN"):
        parse(page(0.5, eta), "train")


@given(st.text())
def test_any_page_is_survived(served: str) -> None:
    """By the parser, or by the reader that catches ValueError."""
    with contextlib.suppress(ValueError):
        parse(f"{served}\n{telemetry.PROGRESS_RATIO} 0.1\n", "train")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("ok ok ok", [0, 10, 20]),
        ("no ok ok", [0, 10, 20]),
        ("no no ok ok", [0, 10, 10 + 10 * FAILURE_PAUSE, 20 + 10 * FAILURE_PAUSE]),
        ("ok no ok no", [0, 10, 20, 30]),
    ],
    ids=["every turn", "a stage that starts", "out of reach", "now and then"],
)
def test_a_pod_is_not_asked_too_often(answers: str, expected: list[int]) -> None:
    """Asked every second; after two failures in a row it is left alone for a while."""
    asked: list[int] = []
    script = iter(answers.split())
    readings = Readings(INTERVAL)
    for second in range(expected[-1] + 1):
        if readings.begin("job", second):
            asked.append(second)
            readings.end("job", second, None, failed=next(script, "ok") == "no")
    assert asked == expected


def test_a_pod_that_is_being_read_is_not_read_again() -> None:
    readings = Readings(INTERVAL)
    assert readings.begin("job", 0)
    assert not readings.begin("job", 1000)
    readings.end("job", 0, None, failed=True)
    assert readings.begin("job", 1000)


def test_the_last_progress_stays_while_the_pod_is_silent() -> None:
    readings = Readings(INTERVAL)
    readings.begin("job", 0)
    readings.end("job", 0, Sample("train", 40), failed=False)
    readings.begin("job", 10)
    readings.end("job", 10, None, failed=True)
    assert readings.newest("job") == Sample("train", 40)
    assert readings.newest("another job") is None


def test_jobs_that_have_ended_are_forgotten() -> None:
    """One new Job a second, each asked about once: only those of the last intervals are kept."""
    readings = Readings(INTERVAL)
    for second in range(5000):
        readings.begin(f"job {second}", second)
        readings.end(f"job {second}", second, Sample("train", 1), failed=False)
    kept = [second for second in range(5000) if readings.newest(f"job {second}")]
    assert FORGET * INTERVAL <= len(kept) <= 4 * FORGET * INTERVAL
    assert kept[-1] == 4999


@contextlib.contextmanager
def silent(address: str, port: int) -> Iterator[None]:
    """A port that drops connections, as a network policy does: nothing accepts, and the backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as callers:
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex((address, port))
        yield


@contextlib.contextmanager
def dripping(address: str, port: int) -> Iterator[None]:
    """A server that sends a byte now and then, for as long as the client listens."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not stop.wait(0.2):
                    connection.sendall(b"x")

    with socket.socket() as listener:
        listener.bind((address, port))
        listener.listen(1)
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def serving(address: str, port: int, body: str) -> Iterator[None]:
    """A pod's metrics page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer((address, port), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def soon(reader: ProgressReader, job: str, address: str) -> Sample | None:
    """The sample of a Job as soon as there is one."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if sample := reader.read(job, "train", address):
            return sample
        time.sleep(0.02)
    return None


@pytest.mark.slow
def test_ports_that_are_dropped_cost_their_own_bar_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that asks about 200 pods behind a policy is not held up, and the one that answers is read meanwhile."""
    port, patient = free_port(), 8.0
    monkeypatch.setattr(progress, "TIMEOUT", patient)  # a busy machine takes more than two seconds for all of this
    with silent("127.0.0.2", port), serving("127.0.0.1", port, page(0.42)):
        reader = ProgressReader(INTERVAL, port)
        started = time.monotonic()
        answers = [reader.read(f"job {number}", "train", "127.0.0.2") for number in range(READERS - 1)]
        assert soon(reader, "good", "127.0.0.1") == Sample("train", 42)
        assert time.monotonic() - started < patient, "before any of the others has timed out"
        monkeypatch.setattr(progress, "TIMEOUT", TIMEOUT)
        started = time.monotonic()
        answers += [reader.read(f"more {number}", "train", "127.0.0.2") for number in range(170)]
        assert time.monotonic() - started < TIMEOUT, "none of them is waited for"
        assert set(answers) == {None}
        assert soon(reader, "last", "127.0.0.1") == Sample("train", 42), "its turn comes"


@pytest.mark.slow
@pytest.mark.parametrize("pod", [dripping, None], ids=["an answer without end", "a closed port"])
async def test_a_reading_ends(pod: Callable[[str, int], AbstractContextManager[None]] | None) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        port = free_port() if pod else stack.enter_context(closed_port())
        if pod:
            stack.enter_context(pod("127.0.0.1", port))
        with pytest.raises((OSError, aiohttp.ClientError)):
            await fetch("127.0.0.1", port)
    assert time.monotonic() - started < PATIENCE
