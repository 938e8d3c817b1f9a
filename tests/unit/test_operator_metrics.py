"""The operator's own metrics: what a request is called, and that the page is one that Prometheus reads."""

from __future__ import annotations

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_operator.framework import metrics
from finetune_operator.framework.metrics import (
    Degraded,
    PhaseAndReason,
    Request,
    Snapshot,
    degraded,
    phase_and_reason,
    request_of,
)
from finetune_operator.framework.workqueue import QueueState
from hack.cluster.layout import REPOSITORY

pytestmark = pytest.mark.unit

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", f"{JOBS}/mine", Request("get", "finetunejobs")),
        ("GET", f"{JOBS}?limit=500", Request("list", "finetunejobs")),
        ("GET", "/apis/batch/v1/jobs?limit=500&labelSelector=a%3Db", Request("list", "jobs")),
        ("GET", "/api/v1/pods?watch=true&resourceVersion=5", Request("watch", "pods")),
        ("GET", "/api/v1/namespaces/team", Request("get", "namespaces")),
        ("POST", "/api/v1/namespaces/namespaces/configmaps", Request("create", "configmaps")),
        ("PATCH", f"{JOBS}/mine/status", Request("patch", "finetunejobs/status")),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/b?fieldManager=x&force=true",
            Request("apply", "deployments"),
        ),
        ("DELETE", "/apis/batch/v1/namespaces/team/jobs/one", Request("delete", "jobs")),
    ],
)
def test_a_request_in_the_words_of_rbac(method: str, path: str, expected: Request) -> None:
    assert request_of(method, path) == expected


def test_what_a_resource_says_of_itself() -> None:
    said = phase_and_reason("FineTuneJob")
    status = {"phase": "Succeeded", "conditions": [{"type": "Ready", "reason": "RunSucceeded"}]}
    assert said({"status": status}) == PhaseAndReason("FineTuneJob", "Succeeded", "RunSucceeded")
    assert said({"status": {"phase": "Pending"}}) == PhaseAndReason("FineTuneJob", "Pending", "")
    assert said({}) == PhaseAndReason("FineTuneJob", "", "")


@pytest.mark.parametrize(
    ("conditions", "counts"),
    [
        ([], False),
        ([{"type": "Ready", "status": "True"}], False),
        ([{"type": "Degraded", "status": "False"}], False),
        ([{"type": "Ready", "status": "True"}, {"type": "Degraded", "status": "True"}], True),
    ],
)
def test_who_is_degraded(conditions: list[dict[str, str]], counts: bool) -> None:
    said = degraded("AdapterDeployment")
    assert said({"status": {"conditions": conditions}}) == (Degraded("AdapterDeployment") if counts else None)
    assert said({}) is None


def test_the_page_of_metrics_names_all_that_the_guide_explains() -> None:
    """And nothing else: a metric without a word in the guide is one that nobody finds."""
    counted = {PhaseAndReason("K", "P", "R"): 4}
    snapshot = Snapshot("1.2.3", lambda: QueueState(3, 1, 2.5, 9.0), lambda: counted, lambda: 2, lambda: True)
    metrics.REGISTRY.register(snapshot)
    try:
        page = generate_latest(metrics.REGISTRY).decode()
    finally:
        metrics.REGISTRY.unregister(snapshot)
    families = {family.name: family for family in text_string_to_metric_families(page)}
    values = {name: [sample.value for sample in family.samples] for name, family in families.items()}
    assert values["finetune_operator_leader"] == [1]
    assert values["finetune_operator_queue_depth"] == [3]
    assert values["finetune_operator_queue_wait_seconds"] == [2.5]
    assert values["finetune_operator_unreconciled_seconds"] == [9]
    assert values["finetune_operator_degraded_endpoints"] == [2]
    [resources] = families["finetune_operator_resources"].samples
    assert (resources.labels, resources.value) == ({"kind": "K", "phase": "P", "reason": "R"}, 4)
    own = {name for name in families if name.startswith("finetune_operator")}
    guide = (REPOSITORY / "docs" / "how-to" / "operate.md").read_text()
    table = set(re.findall(r"^\| `(finetune_operator_\w+?)(?:_total)?[`{]", guide, re.MULTILINE))
    assert table == own
