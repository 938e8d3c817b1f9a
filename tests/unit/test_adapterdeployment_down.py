"""The alert FinetuneEndpointDown reads phase and reason: those of an endpoint without answers, and no others."""

from __future__ import annotations

import re

import pytest
import yaml

from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.framework.reading import Unplanned
from hack.cluster.layout import REPOSITORY
from tests.support.played_pods import INACTIVE
from tests.support.promoted import disprove, passes
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import pinned
from tests.unit.test_adapterdeployment_gap import begun

pytestmark = pytest.mark.unit

ALERTS = REPOSITORY / "charts" / "finetune-operator" / "files" / "alerts.yaml"


def counts(status: AdapterDeploymentStatus) -> bool:
    """Whether the alert's expression counts an endpoint with this status."""
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    [rule] = [rule for rule in group["rules"] if rule["alert"] == "FinetuneEndpointDown"]
    [phase], [others] = (re.findall(rf'{label}"(.+?)"', rule["expr"]) for label in ("phase=", "reason!~"))
    assert set(others.split("|")) <= set(Reason)
    [reason] = [each.reason for each in status.conditions if each.type == "Ready"]
    return status.phase == phase and reason not in others.split("|")


def disproved(pods: int | None = None) -> ServingCluster:
    cluster = serving(replicas=2)
    disprove(cluster, cluster.traffic(), pods)
    cluster.run_controllers()
    passes(cluster)
    return cluster


def test_an_endpoint_that_answers_nobody_counts() -> None:
    assert counts(disproved().status)


def test_one_that_answers_does_not() -> None:
    assert not counts(disproved(pods=1).status)
    cluster = serving()
    assert not counts(cluster.status)
    cluster.spec = pinned(INACTIVE)
    cluster.settle()
    assert cluster.status.phase == "Degraded", "the update failed, and the old revision serves"
    assert not counts(cluster.status)


@pytest.mark.parametrize("reason", [Reason.SPEC_INVALID, Reason.API_CALLS_FAIL])
def test_what_is_not_looked_at_does_not(reason: Reason) -> None:
    cluster = serving()
    metadata = cluster.observe().resource.metadata
    status = plan(Unplanned(metadata, cluster.status, reason, "no"), cluster.now).status
    assert status.phase == "Degraded"
    assert not counts(status)


def test_what_stops_as_announced_or_serves_nobody_by_choice_does_not() -> None:
    cluster, _ = begun()
    passes(cluster, 1)
    assert not counts(cluster.status)
    cluster = serving(replicas=2)
    cluster.spec = cluster.spec | {"replicas": 0}
    cluster.settle()
    assert not counts(cluster.status)
