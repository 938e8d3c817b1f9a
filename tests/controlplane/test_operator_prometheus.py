"""A real Prometheus reads the operator's metrics and evaluates the chart's alerts and dashboards on them."""

from __future__ import annotations

import time
import urllib.parse
from pathlib import Path

import pytest
import yaml

from finetune_api.job_status import Phase
from tests.controlplane.conftest import Team, wait
from tests.support.prometheus import CHART_FILES, Target, prometheus, queries

pytestmark = pytest.mark.controlplane


def test_prometheus_reads_the_metrics_and_evaluates_the_alerts(team: Team, tmp_path: Path) -> None:
    operator = team.start()
    operator.wait_ready()
    target = urllib.parse.urlsplit(operator.metrics).netloc
    alerts = (CHART_FILES / "alerts.yaml").read_text().replace("RELEASE_NAMESPACE", "finetune-system")
    alerts = alerts.replace("RELEASE_NAME-", "finetune-operator-")
    labels = {"namespace": "finetune-system", "pod": "finetune-operator-7c9d8b6f5-x2x7k"}
    with prometheus(tmp_path, alerts, [Target(target, labels)]) as server:
        wait(lambda: server.value("up == 1"), "a scrape")
        team.create("counted")
        team.until("counted", Phase.SUCCEEDED)
        done = 'finetune_operator_resources{kind="FineTuneJob", phase="Succeeded", reason="RunSucceeded"}'
        # A scrape that takes more than a second fails, and until the next one nothing has a value.
        wait(lambda: server.value(done) == 1, "the finished job to be scraped")
        wait(lambda: server.value("finetune_operator_leader") == 1, "the leader")
        turns = 'sum(finetune_operator_reconcile_duration_seconds_count{result="ok"})'
        wait(lambda: (server.value(turns) or 0) >= 6, "a turn for each stage")
        created = 'sum(finetune_operator_api_requests_total{verb="create", resource="jobs", code="201"})'
        wait(lambda: server.value(created) == 6, "the creation of each Job")
        time.sleep(3)  # some evaluations more

        def states() -> dict[str, tuple[str, str]]:
            [group] = server.ask("rules")["groups"]
            return {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]}

        wait(lambda: set(states().values()) == {("ok", "inactive")}, "silence", describe=lambda: str(states()))
        assert len(states()) == len(yaml.safe_load(alerts)["groups"][0]["rules"])
        for panel, query in queries(CHART_FILES / "dashboards" / "operator.json"):
            wait(lambda asked=query: server.ask("query", query=asked)["result"], f"data in {panel}: {query}")  # type: ignore[misc]
        operator.stop()
        wait(lambda: server.alert("FinetuneOperatorWithoutLeader") == "pending", "the alert")
