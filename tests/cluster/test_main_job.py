"""The main job with the real model: from a CSV file to a verified, answering endpoint, as `make demo` does it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import Phase, StageState
from finetune_api.meta import FINETUNEJOB, LABEL_OWNER_KIND, LABEL_OWNER_NAME, LABEL_STAGE
from finetune_jobs.evaluation.metrics import wilson
from hack.cluster.layout import REPOSITORY
from hack.platform.kubectl import Kubectl, wait_for
from tests.cluster.conftest import Demo

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

DEMO = "demo"
JOBS = f"{LABEL_OWNER_KIND}={FINETUNEJOB},{LABEL_OWNER_NAME}=transactions"
"""Selects the FineTuneJob's Jobs: the AdapterDeployment of the same name has a verification Job."""
SAMPLES = 50
"""spec.verification.samples of the example."""


@pytest.fixture(scope="module")
def report(demo_run: Demo) -> dict[str, Any]:
    """The demo's report, from an empty namespace and an empty store."""
    demo_run.wait()
    content: dict[str, Any] = json.loads((REPOSITORY / "build" / "demo" / "report.json").read_text())
    return content


@pytest.fixture
def demo(cluster: Kubectl, report: dict[str, Any]) -> Kubectl:
    """The demo's namespace after the main job."""
    return cluster.within(DEMO)


def test_tuning_makes_the_difference_and_what_is_served_is_what_was_evaluated(report: dict[str, Any]) -> None:
    accuracy = report["accuracy"]
    assert accuracy["base"] < 0.20
    assert accuracy["tuned"] >= 0.85
    assert accuracy["artifact"] >= accuracy["tuned"] - 0.05
    low, high = wilson(round(accuracy["servedExpected"] * SAMPLES), SAMPLES)
    assert low <= accuracy["served"] <= high
    assert accuracy["fewShot"] <= accuracy["artifact"] - 0.15, "a prompt with examples would nearly have done"
    assert [goal.split()[0] for goal in report["goals"]] == ["Met", "Met"]
    assert report["prompting"].startswith("Prompting would not have been enough: ")


def test_dirt_was_found_and_every_row_is_accounted_for(report: dict[str, Any]) -> None:
    rows = report["rows"]
    assert rows["invalid"] > 0
    assert rows["duplicates"] > 0
    kept = rows["train"] + rows["validation"] + rows["test"]
    assert rows["read"] == rows["invalid"] + rows["duplicates"] + kept


def test_status_reads_well(demo: Kubectl) -> None:
    table = demo("get", "ftj")
    assert "Succeeded" in table
    assert "5/5" in table
    assert "Ready" in demo("get", "adep")
    described = demo("describe", "ftj", "transactions")
    for word in ("Succeeded", "Accuracy", "Artifact", "RunSucceeded"):
        assert word in described


def test_pods_log_json_lines_only(demo: Kubectl) -> None:
    """What libraries print stands between no two lines of the stages and of the server."""
    pods = [pod["metadata"]["name"] for pod in demo.items("pods", f"{LABEL_OWNER_NAME}=transactions")]
    lines = [line for pod in pods for line in demo("logs", pod, "--all-containers").splitlines()]
    assert len(pods) >= 8, "six stages, fetch and server, verification"
    assert [line for line in lines if not line.startswith("{")] == []
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_deleted_and_applied_again_it_finishes_without_training(demo: Kubectl, report: dict[str, Any]) -> None:
    before = FineTuneJob.model_validate(demo.get("ftj", "transactions"))
    demo("delete", "ftj", "transactions", "--wait=true")
    wait_for("the old run's Jobs to go", lambda: not demo.items("jobs", JOBS), 180)
    demo.apply(REPOSITORY / "examples" / "transactions" / "finetunejob.yaml")
    after = wait_for("the second life", lambda: finished(demo, "transactions"), 400)
    assert before.status.artifact
    assert after.status.artifact == before.status.artifact
    assert after.status.evaluation == before.status.evaluation
    assert after.status.evaluation
    assert after.status.evaluation.prompting == report["prompting"], "the demo's report has it on a rerun too"
    assert {stage.state for stage in after.status.stages if stage.name != "resolve"} == {StageState.REUSED}
    jobs = demo.items("jobs", JOBS)
    assert {job["metadata"]["labels"][LABEL_STAGE] for job in jobs} == {"resolve"}


def test_serving_goes_on_meanwhile(demo: Kubectl) -> None:
    deployment = AdapterDeployment.model_validate(demo.get("adep", "transactions"))
    assert deployment.status.stable
    assert deployment.status.ready_replicas == 1
    assert deployment.status.candidate is None


def finished(kubectl: Kubectl, name: str) -> FineTuneJob | None:
    """The FineTuneJob once it has succeeded; fails the test when it has failed."""
    job = FineTuneJob.model_validate(kubectl.get("ftj", name))
    assert job.status.phase is not Phase.FAILED, [each.message for each in job.status.conditions]
    return job if job.status.phase is Phase.SUCCEEDED else None
