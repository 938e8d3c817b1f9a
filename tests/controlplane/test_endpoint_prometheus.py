"""A real Prometheus reads model servers and gives their metrics the names that alerts and dashboards use.

One server is the stand-in for Text Generation Inference, which answers real requests. The other only reports, under the
names of vLLM 0.32 (vllm/v1/metrics/loggers.py) and with the client library that vLLM uses. A real proxy has none behind
it, as while a model server starts anew.
"""

from __future__ import annotations

import collections
import itertools
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tests.controlplane.conftest import wait
from tests.support.closed_port import closed_port
from tests.support.prometheus import (
    CHART_FILES,
    ENDPOINT_RULES,
    Prometheus,
    Target,
    prometheus,
    queries,
    reporting,
)
from tests.support.proxy_door import FIRST, StandIn, started
from tests.support.tgi_process import tgi_cpu
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(1800)]

ONLY_VLLM = {"finetune_endpoint:first_token_seconds_bucket:rate5m"}
BUSY_S = 0.2


def labels(name: str) -> dict[str, str]:
    """What the chart's PodMonitor makes of a pod's labels."""
    return {"namespace": "team-a", "adapterdeployment": name, "revision": f"{name}-1", "pod": f"{name}-1-x"}


@contextmanager
def vllm_metrics() -> Iterator[str]:
    """Address of a server whose counters grow: each fifth request fails."""
    registry = CollectorRegistry()
    told, values = ["model_name", "engine"], ["transactions", "0"]
    finished = Counter("vllm:request_success", "finished", [*told, "finished_reason"], registry=registry)
    tokens = Counter("vllm:generation_tokens", "tokens", told, registry=registry).labels(*values)
    answers = Counter("http_requests", "answers", ["handler", "method", "status"], registry=registry)
    for name in ("num_requests_running", "num_requests_waiting"):
        Gauge(f"vllm:{name}", name, told, registry=registry).labels(*values).set(2)
    times = [
        Histogram(f"vllm:{name}_seconds", name, told, registry=registry).labels(*values)
        for name in ("e2e_request_latency", "request_queue_time", "time_to_first_token", "inter_token_latency")
    ]
    ended = threading.Event()

    def work() -> None:
        for number in itertools.count():
            if ended.wait(BUSY_S):
                return
            failed = number % 5 == 0
            finished.labels(*values, "error" if failed else ("stop", "length")[number % 2]).inc()
            answers.labels("/v1/completions", "POST", "5xx" if failed else ("2xx", "4xx")[number % 2]).inc()
            tokens.inc(20)
            for each in times:
                each.observe(0.3)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with reporting(registry) as address:
            yield address
    finally:
        ended.set()
        worker.join()


@contextmanager
def asking(ask: Callable[[int], object]) -> Iterator[None]:
    """Requests one after the other, each with its number."""
    ended = threading.Event()

    def work() -> None:
        for number in itertools.count():
            if ended.wait(BUSY_S):
                return
            ask(number)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            yield
        finally:
            ended.set()
    done.result()


@contextmanager
def load(url: str) -> Iterator[None]:
    """Requests of which each fourth has a parameter out of its range."""
    with httpx.Client(base_url=url, timeout=120) as client:

        def ask(number: int) -> None:
            asked = {"max_new_tokens": 4, "top_p": 0.5 if number % 4 else 2.0}
            client.post("/generate", json={"inputs": "the quick brown", "parameters": asked})

        with asking(ask):
            yield


@dataclass
class AskedInVain:
    """A proxy without a server behind it, and what it answers."""

    address: str
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)


@contextmanager
def asked_in_vain(folder: Path) -> Iterator[AskedInVain]:
    """Each fourth request has no key."""
    folder.mkdir()
    with closed_port() as port, started(folder, StandIn(port)) as door:
        asked = AskedInVain(f"127.0.0.1:{door.inner}")

        def ask(number: int) -> None:
            asked.statuses[door.ask(key=FIRST if number % 4 else "")] += 1

        with asking(ask):
            yield asked


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedInVain]:
    with asked_in_vain(tmp_path_factory.mktemp("proxy") / "door") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def server(proxy: AskedInVain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("endpoints")
    model = build_tiny_llama(folder / "model")
    with tgi_cpu(model, folder, fresh=False) as tgi, vllm_metrics() as vllm:
        tgi.wait_until_ready()
        targets = [
            Target(urllib.parse.urlsplit(tgi.url).netloc, labels("tgi")),
            Target(vllm, labels("vllm")),
            Target(proxy.address, labels("proxy"), "/proxy/metrics"),
        ]
        with prometheus(folder, ENDPOINT_RULES, targets) as running, load(tgi.url):
            wait(lambda: running.value("sum(up)") == 3, "all of them to be scraped")
            failed = 'finetune_endpoint:requests:rate5m{outcome="failed"} > 0'
            refused = 'finetune_endpoint:requests:rate5m{adapterdeployment="tgi", outcome="refused"} > 0'
            wait(lambda: running.value(failed) and running.value(refused), "the rules to have data")
            yield running


def result(server: Prometheus, query: str, what: str) -> list[Any]:
    """What a query finds, as soon as it finds anything: a scrape fails that takes more than a second."""
    found: list[Any] = wait(lambda: server.ask("query", query=query)["result"], f"{what}: {query}")
    return found


def test_both_engines_have_the_same_metrics(server: Prometheus) -> None:
    recorded = {rule["record"] for rule in yaml.safe_load(ENDPOINT_RULES)["groups"][0]["rules"] if "record" in rule}
    for name in ("tgi", "vllm"):
        for metric in recorded - (ONLY_VLLM if name == "tgi" else set()):
            found = result(server, f'{metric}{{adapterdeployment="{name}"}}', f"{metric} of {name}")
            assert {key: found[0]["metric"][key] for key in labels(name)} == labels(name)


def test_what_only_the_proxy_answers_is_counted(server: Prometheus, proxy: AskedInVain) -> None:
    """Three of four find no server, and the fourth has no key."""
    both = 'finetune_endpoint:requests:rate5m{adapterdeployment="proxy"}'
    one = both.replace("}", ', outcome="%s"}')
    share = f"({one % 'failed'}) / on (pod) ({one % 'refused'})"
    wait(
        lambda: 2 < (server.value(share) or 0) < 4,
        "three times as many to have failed as were refused",
        describe=lambda: f"It answered {dict(proxy.statuses)}. Recorded: {server.ask('query', query=both)}",
    )
    (found,) = result(server, one % "failed", "what failed")
    assert {key: found["metric"][key] for key in labels("proxy")} == labels("proxy")
    wait(lambda: server.alert("FinetuneEndpointFails") != "inactive", "the alert")


def test_every_graph_has_data(server: Prometheus) -> None:
    """Numbers, once every server has answered a request between two looks at it."""

    def numbers(query: str) -> list[str]:
        return [each["value"][1] for each in server.ask("query", query=query)["result"]]

    for panel, query in queries(CHART_FILES / "dashboards" / "endpoints.json"):
        wait(
            lambda query=query: (found := numbers(query)) and "NaN" not in found,  # type: ignore[misc]
            f"numbers in {panel}: {query}",
            describe=lambda query=query: str(numbers(query)),  # type: ignore[misc]
        )


def test_a_request_counts_once_and_an_alert_follows(server: Prometheus) -> None:
    """One request in five fails: in vLLM's own words and by its HTTP status, which is the same request."""
    one = '{adapterdeployment="vllm", outcome="%s"}'
    rate = "finetune_endpoint:requests:rate5m" + one
    share = f"{rate % 'failed'} / on (pod) {rate % 'answered'}"
    wait(lambda: 0.2 < (server.value(share) or 0) < 0.32, "a quarter of what is answered to have failed")

    def rules() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.ask("rules")["groups"][0]["rules"]
        return found

    def alerts() -> list[str]:
        found = [alert for rule in rules() if rule["name"] == "FinetuneEndpointFails" for alert in rule["alerts"]]
        return sorted(alert["annotations"]["summary"] for alert in found)

    failing = [f"More than one request in twenty fails at team-a/{name}" for name in ("proxy", "vllm")]
    wait(lambda: alerts() == failing, "both alerts, and no other", describe=lambda: str(alerts()))
    assert {rule["health"] for rule in rules()} == {"ok"}
    assert server.alert("FinetuneEndpointQueues") == "inactive"
