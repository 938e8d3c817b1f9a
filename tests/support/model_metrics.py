"""Metrics of model servers that answer requests as a test plans, as Prometheus and the analysis of a canary read them.

Time stands still between two readings: each of them is told what was counted so far, and then so many requests are
answered. So what a reader finds does not depend on how fast it is. vLLM's text is made by the client that vLLM uses,
Text Generation Inference's by the stand-in's module.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from finetune_api.compatibility import VLLM
from tgi_cpu.metrics import Metrics

_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0)
"""The first of vLLM's for whole requests (vllm/v1/metrics/loggers.py)."""


@dataclass
class Traffic:
    """What happens between two readings of one server."""

    answered: int = 0
    failed: int = 0
    """Requests that get no answer, by the server's fault."""
    refused: int = 0
    """Requests that the client asked wrongly."""
    aborted: int = 0
    """Requests that the client gave up."""
    seconds: float = 0.4
    """How long an answer takes."""
    restarts: bool = False
    """The server starts again once, after the third reading, and counts from 0."""


@dataclass
class MetricsServer:
    """One server. ``engine``: vllm or tgi."""

    engine: str
    traffic: Traffic = field(default_factory=Traffic)
    url: str = ""
    readings: int = 0
    _counted: VllmCounts | TgiCounts = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._counted = self._new()

    def read(self) -> bytes:
        """``/metrics``; then the next requests are answered."""
        with self._lock:
            text = self._counted.text()
            self.readings += 1
            if self.traffic.restarts and self.readings == 3:
                self._counted = self._new()
            self._counted.serve(self.traffic)
            return text

    def _new(self) -> VllmCounts | TgiCounts:
        return VllmCounts() if self.engine == VLLM else TgiCounts()


class VllmCounts:
    """vLLM 0.32. The middleware of its API counts by HTTP status, and the engine by how a request was finished."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels, own = ["model_name", "engine"], ("demo", "0")
        finished = Counter("vllm:request_success", "x", [*labels, "finished_reason"], registry=self._registry)
        self._finished = {why: finished.labels(*own, why) for why in ("stop", "length", "abort", "error")}
        http = Counter("http_requests", "x", ["handler", "method", "status"], registry=self._registry)
        self._http = {status: http.labels("/v1/chat/completions", "POST", status) for status in ("2xx", "4xx", "5xx")}
        self._times = [
            Histogram(f"vllm:{name}_seconds", "x", labels, registry=self._registry, buckets=_BUCKETS).labels(*own)
            for name in ("e2e_request_latency", "time_to_first_token")
        ]

    def serve(self, traffic: Traffic) -> None:
        for number in range(traffic.answered):
            self._finished["length" if number % 5 == 0 else "stop"].inc()
            self._http["2xx"].inc()
            for time in self._times:
                time.observe(traffic.seconds)
        self._finished["error"].inc(traffic.failed // 2)  # one in a stream is both, one without an answer a status only
        self._http["5xx"].inc(traffic.failed)
        self._http["4xx"].inc(traffic.refused)
        self._finished["abort"].inc(traffic.aborted)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class TgiCounts:
    """Text Generation Inference 3.3."""

    def __init__(self) -> None:
        self._metrics = Metrics(max_input_tokens=100, max_total_tokens=200)

    def serve(self, traffic: Traffic) -> None:
        for _ in range(traffic.answered):
            self._metrics.increment("tgi_request_success")
            self._metrics.observe("tgi_request_duration", traffic.seconds)
        for _ in range(traffic.failed):
            self._metrics.increment("tgi_request_failure", err="generation")
        for number in range(traffic.refused):
            self._metrics.increment("tgi_request_failure", err="validation" if number % 2 else "template")
        for _ in range(traffic.aborted):
            self._metrics.increment("tgi_request_failure", err="dropped")

    def text(self) -> bytes:
        return self._metrics.render().encode()


@contextmanager
def serving(*servers: MetricsServer) -> Iterator[None]:
    """The servers on loopback, each at its ``url``."""
    running = []
    for server in servers:

        class Handler(BaseHTTPRequestHandler):
            counted = server

            def do_GET(self) -> None:
                body = self.counted.read() if self.path == "/metrics" else b""
                self.send_response(200 if self.path == "/metrics" else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, args=(0.05,), daemon=True).start()
        server.url = f"http://127.0.0.1:{running[-1].server_address[1]}"
    try:
        yield
    finally:
        for each in running:
            each.shutdown()
            each.server_close()
