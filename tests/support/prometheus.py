"""A real Prometheus on loopback, which scrapes what a test names and evaluates the chart's rules."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client import CollectorRegistry, start_http_server

from hack.cluster import toolchain
from hack.cluster.layout import REPOSITORY, free_port

CHART_FILES: Final = REPOSITORY / "charts" / "finetune-operator" / "files"
ENDPOINT_RULES: Final = (CHART_FILES / "endpoints.yaml").read_text()
"""Which make the servers' metrics one vocabulary."""


@dataclass(frozen=True)
class Target:
    """What is scraped every second: ``host:port``, the labels that a PodMonitor would add, and the path."""

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    path: str = "/metrics"


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API; raises OSError while it does not answer."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """The one value of an expression; None if it has none yet, or while the server starts."""
        try:
            found = self.ask("query", query=expression)["result"]
        except OSError:
            return None
        return float(found[0]["value"][1]) if found else None

    def alert(self, name: str) -> str:
        """State of an alert: inactive, pending or firing."""
        rules = (rule for group in self.ask("rules")["groups"] for rule in group["rules"])
        return next(str(rule["state"]) for rule in rules if rule["name"] == name)


@contextmanager
def prometheus(directory: Path, rules: str, targets: Sequence[Target]) -> Iterator[Prometheus]:
    """A server that scrapes the targets, and evaluates ``rules`` (YAML), once a second."""
    (directory / "rules.yaml").write_text(rules)
    scraped = [
        {"targets": [target.address], "labels": {**target.labels, "__metrics_path__": target.path}}
        for target in targets
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "test", "static_configs": scraped}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(toolchain.program("prometheus")),
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    with (directory / "prometheus.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield Prometheus(f"http://{address}")
        finally:
            server.terminate()


@contextmanager
def reporting(registry: CollectorRegistry) -> Iterator[str]:
    """Address of a server that answers with the metrics of a registry."""
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Every panel's title with each of its queries, for all values of the dashboard's variables."""
    board = json.loads(dashboard.read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for variable in board["templating"]["list"]:
                query = query.replace(f"${variable['name']}", ".*")
            yield panel["title"], query
