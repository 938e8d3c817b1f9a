"""A real Prometheus reads the operator's metrics and evaluates the chart's alerts on them."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.finetunejob import Phase
from hack.cluster import toolchain
from hack.cluster.layout import REPOSITORY, free_port
from tests.controlplane.conftest import Team, wait

pytestmark = pytest.mark.controlplane

ALERTS = REPOSITORY / "charts" / "finetune-operator" / "files" / "alerts.yaml"


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API; raises OSError while it does not answer."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """The one value of an expression; None if it has none yet."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None


@contextmanager
def prometheus(directory: Path, target: str, namespace: str) -> Iterator[Prometheus]:
    """A server that scrapes one target every second and evaluates the chart's alerts."""
    (directory / "alerts.yaml").write_text(ALERTS.read_text().replace("RELEASE_NAMESPACE", namespace))
    jobs = [{"job_name": "operator", "static_configs": [{"targets": [target], "labels": {"namespace": namespace}}]}]
    interval = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": interval, "rule_files": ["alerts.yaml"], "scrape_configs": jobs}
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


def answers(server: Prometheus, expression: str) -> float | None:
    """As ``value``, and None while the server starts."""
    try:
        return server.value(expression)
    except OSError:
        return None


def test_prometheus_reads_the_metrics_and_evaluates_the_alerts(team: Team, tmp_path: Path) -> None:
    operator = team.start()
    operator.wait_ready()
    target = urllib.parse.urlsplit(operator.metrics).netloc
    with prometheus(tmp_path, target, "finetune-system") as server:
        wait(lambda: answers(server, 'up{job="operator"} == 1'), "a scrape", 60)
        team.create("counted")
        team.until("counted", Phase.SUCCEEDED)
        done = 'finetune_operator_resources{kind="FineTuneJob", phase="Succeeded", reason="RunSucceeded"}'
        wait(lambda: server.value(done) == 1, "the finished job to be scraped", 30)
        assert server.value("finetune_operator_leader") == 1
        turns = server.value('sum(finetune_operator_reconcile_duration_seconds_count{result="ok"})')
        assert turns is not None
        assert turns >= 6
        created = 'sum(finetune_operator_api_requests_total{verb="create", resource="jobs", code="201"})'
        assert server.value(created) == 6
        time.sleep(3)  # some evaluations more
        [group] = server.ask("rules")["groups"]
        states = {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]}
        assert states == dict.fromkeys(states, ("ok", "inactive"))
        assert len(states) == len(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])
        operator.stop()
        wait(lambda: alert_state(server, "FinetuneOperatorWithoutLeader") == "pending", "the alert", 60)


def alert_state(server: Prometheus, name: str) -> str:
    """inactive, pending or firing."""
    [group] = server.ask("rules")["groups"]
    return next(str(rule["state"]) for rule in group["rules"] if rule["name"] == name)
