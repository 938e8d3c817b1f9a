"""An AdapterDeployment that is deleted and made again at once, while pods of the first are still there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS
from tests.support.played_cluster import START
from tests.support.played_pods import GOOD
from tests.support.promoted import crash, until
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


@pytest.mark.parametrize("hours", [0, 3])
def test_a_clock_that_was_ahead_when_it_was_made_hides_no_pod(hours: int) -> None:
    """Its pods seem to be older than it is, until the clock has caught up."""
    first = START + timedelta(hours=3)
    cluster = ServingCluster(spec=pinned(GOOD), created=timestamp(first), now=first - timedelta(hours=hours))
    cluster.settle()
    revision = cluster.traffic()
    cluster.now = START
    [pod] = cluster.pods[f"demo-{revision}"]
    pod["metadata"]["creationTimestamp"] = timestamp(cluster.now)  # another node has it by now
    cluster.reconcile()
    assert cluster.status.phase is ServingPhase.READY


def test_a_clock_that_was_ahead_does_not_hide_that_the_first_candidate_crashes() -> None:
    cluster = ServingCluster(spec=pinned(GOOD), created=timestamp(START + timedelta(hours=3)))
    until(cluster, lambda: bool(cluster.pods))
    crash(cluster, next(iter(cluster.revisions(DEPLOYMENTS))))
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.FAILED
