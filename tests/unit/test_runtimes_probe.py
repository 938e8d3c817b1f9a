"""The probe that asks a server over loopback, run by a real bash."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finetune_api.meta import SERVING_PORT
from finetune_operator.runtimes.plan import asked_inside, health_probe
from tests.support.closed_port import closed_port

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@contextmanager
def server(status: int, answers: threading.Event) -> Iterator[int]:
    """A server with this health, once it answers; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answers.wait()
            with suppress(OSError):  # the probe may have been ended
                self.send_response(status if self.path == "/health" else 404)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"well")

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield running.server_address[1]
    finally:
        answers.set()
        running.shutdown()
        running.server_close()


def healthy(port: int, seconds: float = 60) -> bool:
    command = asked_inside(health_probe(30, 10, timeout=15))["exec"]["command"]
    here = [each.replace(f"/{SERVING_PORT}", f"/{port}") for each in command]
    assert here != command
    return subprocess.run(here, timeout=seconds, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("status", "well"), [(200, True), (503, False), (404, False), (302, False)])
def test_a_server_says_whether_it_is_well(status: int, *, well: bool) -> None:
    answers = threading.Event()
    answers.set()
    with server(status, answers) as port:
        assert healthy(port) == well


def test_a_server_that_does_not_listen_is_not_well() -> None:
    with closed_port() as port:
        assert not healthy(port)


def test_one_that_hangs_keeps_the_probe_until_the_kubelet_ends_it() -> None:
    with server(200, threading.Event()) as port, pytest.raises(subprocess.TimeoutExpired):
        healthy(port, 0.5)
