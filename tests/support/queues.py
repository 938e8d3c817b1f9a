"""Waiting requests, as many as a test says: a server reports them under vLLM's name, and a real Prometheus knows them
under the name that autoscalers ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from tests.support.prometheus import ENDPOINT_RULES, Prometheus, Target, prometheus, reporting


@dataclass(frozen=True)
class Queue:
    """The queue of a pod of an endpoint."""

    prometheus: Prometheus
    gauge: Gauge

    def has(self, requests: int) -> None:
        """From now on so many requests wait."""
        self.gauge.set(requests)


@contextmanager
def queue(directory: Path, namespace: str, endpoint: str) -> Iterator[Queue]:
    """Nobody waits yet. The labels are what the chart's PodMonitor makes of a pod's."""
    registry = CollectorRegistry()
    gauge = Gauge("vllm:num_requests_waiting", "waiting", ["model_name", "engine"], registry=registry)
    labels = {"namespace": namespace, "adapterdeployment": endpoint, "revision": "1", "pod": f"{endpoint}-1-x"}
    with (
        reporting(registry) as address,
        prometheus(directory, ENDPOINT_RULES, [Target(address, labels)]) as server,
    ):
        queue = Queue(server, gauge.labels("base", "0"))
        queue.has(0)
        yield queue
