"""A canary beside which nobody answers: it takes over, or says why not."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome, RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.health import UNANSWERED_SECONDS
from finetune_operator.framework.objects import DEPLOYMENTS
from tests.support.promoted import crash, disprove, falls_silent, prove
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.unit.test_adapterdeployment_canary import crash_once, has_share, one_pass, started, until
from tests.unit.test_adapterdeployment_route import shares
from tests.unit.test_adapterdeployment_route_weights import weighted
from tests.unit.test_adapterdeployment_walk import CANARY, wanted

pytestmark = pytest.mark.unit

LONG = {"type": "Canary", "canary": {"steps": [{"weight": 10, "pause": "2h"}, {"weight": 50, "pause": "2h"}]}}
WATCHED = {"type": "Canary", "canary": CANARY["canary"] | {"analysis": {}}}


def candidate_of(cluster: ServingCluster) -> RevisionStatus:
    assert cluster.status.candidate is not None
    return cluster.status.candidate


def goes_on(cluster: ServingCluster, seconds: float) -> None:
    """Passes of five seconds each."""
    for _ in range(int(seconds // 5)):
        one_pass(cluster, 5)


def alone(**spec: Any) -> tuple[ServingCluster, str, str]:
    """A canary by pods with its first share, beside which everything has just crashed."""
    cluster, old, new = started(strategy=LONG, **spec)
    falls_silent(cluster, old)
    cluster.run_controllers()
    return cluster, old, new


@pytest.mark.parametrize("replicas", [1, 3])
def test_it_takes_over_after_a_minute(replicas: int) -> None:
    cluster, old, new = alone(replicas=replicas)
    one_pass(cluster, 0)
    waiting = candidate_of(cluster)
    assert waiting.state is RevisionState.CANARY
    assert waiting.canary is not None
    assert waiting.canary.stable_unready_since is not None
    assert_says(waiting.message, f"No pod of revision {old} has been ready since", "If that lasts until", "takes over")
    assert (cluster.plan().requeue_after or 0) <= UNANSWERED_SECONDS
    goes_on(cluster, UNANSWERED_SECONDS - 5)
    assert cluster.traffic() == old
    goes_on(cluster, 10)
    assert (cluster.traffic(), cluster.shared()) == (new, False)
    stable = cluster.status.stable
    assert stable is not None
    assert (stable.revision, stable.accuracy, stable.canary) == (new, "0.9000", None)
    assert_says(stable.message, f"No pod of revision {old} had been ready since", "step 1 of 2 of its canary")
    told = [event for event in cluster.events if event.type == "Warning"]
    assert [event.reason for event in told] == [Reason.SERVER_UNAVAILABLE]
    assert_says(told[0].message, old, new, "takes over without the other steps")
    goes_on(cluster, 60)
    assert wanted(cluster)[new] == replicas
    assert cluster.traffic() == new, "nothing goes back to pods that do not answer"


def test_through_a_gateway_too() -> None:
    """Nine requests in ten went to a Service without endpoints."""
    cluster, old = weighted(strategy=LONG)
    new = until(cluster, has_share(1)).revision
    falls_silent(cluster, old)
    cluster.run_controllers()
    goes_on(cluster, UNANSWERED_SECONDS + 10)
    assert cluster.traffic() == new
    assert [each.service for each in shares(cluster)] == ["demo"]


def test_without_enough_requests_for_an_analysis() -> None:
    cluster, old, new = started(strategy=WATCHED)
    cluster.analysis = AnalysisOutcome.INCONCLUSIVE
    falls_silent(cluster, old)
    cluster.run_controllers()
    goes_on(cluster, UNANSWERED_SECONDS + 10)
    assert cluster.traffic() == new


def test_a_short_silence_changes_nothing() -> None:
    cluster, old, new = started(strategy=LONG)
    disprove(cluster, old)
    cluster.run_controllers()
    goes_on(cluster, UNANSWERED_SECONDS - 10)
    prove(cluster, old)
    cluster.run_controllers()
    one_pass(cluster, 5)
    canary = candidate_of(cluster).canary
    assert canary is not None
    assert canary.stable_unready_since is None
    assert_says(candidate_of(cluster).message, "Step 1 of 2")
    assert "No pod" not in candidate_of(cluster).message
    disprove(cluster, old)
    cluster.run_controllers()
    goes_on(cluster, UNANSWERED_SECONDS - 10)
    assert (cluster.traffic(), candidate_of(cluster).revision) == (old, new), "another silence, another minute"


def test_one_pod_of_several_is_enough_to_go_on() -> None:
    cluster, old, _ = started(strategy=LONG)
    crash(cluster, old)
    cluster.run_controllers()
    goes_on(cluster, 2 * UNANSWERED_SECONDS)
    assert cluster.traffic() == old
    assert candidate_of(cluster).state is RevisionState.CANARY


def test_one_that_does_not_answer_either_says_so_and_waits_for_its_own_pods() -> None:
    cluster, old, new = alone()
    goes_on(cluster, UNANSWERED_SECONDS - 10)
    for pod in cluster.pods[f"demo-{new}"]:  # another node, where it loads its model
        pod["status"] = {"phase": "Pending", "startTime": None}
        del pod["status"]["startTime"]
    cluster.room = cluster.held()
    cluster.run_controllers()
    goes_on(cluster, 20)
    assert cluster.traffic() == old
    assert_says(candidate_of(cluster).message, f"No pod of revision {old}", "as soon as one of its own pods can answer")
    cluster.room = 1000
    cluster.run_controllers()
    goes_on(cluster, 10)
    assert cluster.traffic() == new


def test_one_that_crashes_does_not_take_over() -> None:
    cluster, old, new = alone()
    goes_on(cluster, UNANSWERED_SECONDS - 10)
    crash_once(cluster, new)
    goes_on(cluster, 30)
    assert cluster.traffic() == old
    assert candidate_of(cluster).state is RevisionState.FAILED
    assert condition(cluster.status, "Stalled") == ("True", Reason.CANDIDATE_FAILED)
    assert cluster.objects[DEPLOYMENTS][f"demo-{old}"]
