"""An AdapterDeployment that is deleted and made again at once, while pods of the first are still there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api.serving_status import RevisionState
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS
from tests.support.played_pods import GOOD
from tests.support.promoted import crash
from tests.support.serving import ServingCluster
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.unit


def test_pods_of_the_one_before_do_not_fail_its_candidate() -> None:
    """Its revision has the same name, and so have its Deployment and the labels of its pods."""
    first = ServingCluster(spec=pinned(GOOD))
    first.settle()
    revision = first.traffic()
    crash(first, revision)
    [left] = first.pods[f"demo-{revision}"]
    left["metadata"]["creationTimestamp"] = timestamp(first.now - timedelta(seconds=60))

    again = ServingCluster(spec=pinned(GOOD), uid="uid-of-the-next", created=timestamp(first.now), now=first.now)
    again.reconcile()
    assert again.revisions(DEPLOYMENTS) == {revision}
    again.pods[f"demo-{revision}"] = [left]
    again.reconcile()
    candidate = again.status.candidate
    assert candidate is not None
    assert (candidate.revision, candidate.state) == (revision, RevisionState.STARTING), candidate.message


def test_pods_that_its_next_deployment_has_adopted_count() -> None:
    """Somebody has deleted the Deployment and left the pods, which are older than the one that takes its place."""
    cluster = ServingCluster(spec=pinned(GOOD), created="2020-01-01T00:00:00Z")
    cluster.settle()
    revision = cluster.traffic()
    [pod] = cluster.pods[f"demo-{revision}"]
    cluster.objects[DEPLOYMENTS][f"demo-{revision}"]["metadata"]["creationTimestamp"] = timestamp(cluster.now)
    assert cluster.observe().server_pods(revision) == [pod]
