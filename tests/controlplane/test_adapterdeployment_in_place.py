"""A rollout in place on a real API server, with real Deployments and endpoints."""

from __future__ import annotations

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from tests.controlplane.conftest import wait
from tests.controlplane.serving import Serving
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane


def test_the_old_pods_go_first_and_come_back_if_the_new_revision_fails(serving: Serving) -> None:
    first = serving.start()
    old = serving.serve(GOOD)
    serving.servers.loading.add(INACTIVE)
    announced = {"type": "InPlace", "notice": "10s"}  # long enough to be seen on a busy machine
    serving.change(**pinned(INACTIVE, replicas=2, strategy=announced))
    status = wait(lambda: _in(serving, RevisionState.STOPPING), "the announcement")
    assert _said(status) == ("False", Reason.GAP_ANNOUNCED)
    assert serving.reached() == {old}
    status = wait(lambda: _in(serving, RevisionState.STARTING), "the candidate")
    assert status.candidate is not None
    assert _said(status) == ("True", Reason.GAP_IN_SERVICE)
    first.stop()
    serving.start()
    serving.servers.loading.add(GOOD)  # what comes back would be reached before the test has looked
    serving.servers.loading.remove(INACTIVE)
    wait(lambda: _in(serving, RevisionState.FAILED), "the verification", describe=lambda: str(serving.status()))
    assert serving.traffic() == old
    assert serving.reached() == set(), "nobody reaches what is not verified"
    serving.servers.loading.clear()
    status = serving.until(ServingPhase.DEGRADED)
    wait(lambda: serving.status().ready_replicas == 2, "what served before")
    wait(lambda: serving.reached() == {old}, "its endpoints")
    assert serving.wanted() == {old: 2}
    serving.change(**pinned(BETTER, replicas=2, strategy={"notice": "1s"}))
    wait(lambda: serving.traffic() != old, "the promotion")
    serving.until_only(serving.traffic())
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert status.stable.artifact_digest == BETTER
    assert _said(status) is None
    reasons = [reason for _, reason in serving.events()]
    assert reasons.count(Reason.GAP_ANNOUNCED) == 2
    lines = {line.artifact_digest: line.state for line in status.revisions}
    assert lines == {
        GOOD: RevisionState.SUPERSEDED,
        INACTIVE: RevisionState.FAILED,
        BETTER: RevisionState.SERVING,
    }


def _in(serving: Serving, state: RevisionState) -> AdapterDeploymentStatus | None:
    """The status once the candidate is in a state. No two revisions have pods at any time on the way."""
    assert sum(map(bool, serving.wanted().values())) <= 1
    status = serving.status()
    return status if status.candidate and status.candidate.state is state else None


def _said(status: AdapterDeploymentStatus) -> tuple[str, str] | None:
    """Status and reason of the condition ServiceGap."""
    return next(((each.status, each.reason) for each in status.conditions if each.type == "ServiceGap"), None)
