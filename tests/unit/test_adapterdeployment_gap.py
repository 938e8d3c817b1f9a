"""In place: the gap in service is announced, nothing unverified serves, and the old revision comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.adapterdeployment.gap import STALE_SECONDS, remains
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.adapterdeployment.verification import Verification
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS, SERVICES, Object
from finetune_operator.framework.reading import Unplanned
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.resources.deployment import SERVER
from tests.support.played_pods import BETTER, CRASHING, GOOD, INACTIVE
from tests.support.sentences import assert_says
from tests.support.serving import Quota, ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, following, pinned, published
from tests.unit.test_adapterdeployment_walk import IN_PLACE, Safety, wanted

pytestmark = pytest.mark.unit


def in_place(digest: str = BETTER, **spec: Any) -> dict[str, Any]:
    return pinned(digest, strategy=IN_PLACE, **spec)


def passes(cluster: ServingCluster, number: int, seconds: float = 1) -> None:
    for _ in range(number):
        cluster.reconcile()
        cluster.run_controllers()
        cluster.now += timedelta(seconds=seconds)


def watched(cluster: ServingCluster) -> ServingCluster:
    """The same, with an eye on what must always hold."""
    safety = Safety(proved={cluster.traffic()})
    safety.forget(cluster)
    cluster.watch = safety
    return cluster


def announced(**spec: Any) -> tuple[ServingCluster, str]:
    """An endpoint whose gap is announced, and the revision that serves."""
    cluster = watched(serving(**spec))
    cluster.spec = in_place(**spec)
    cluster.reconcile()
    return cluster, cluster.traffic()


def begun(**spec: Any) -> tuple[ServingCluster, str]:
    """The same in the gap, with the candidate's pod about to start."""
    cluster, old = announced(**spec)
    cluster.now += timedelta(seconds=31)
    passes(cluster, 1)
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.STARTING
    return cluster, old


def messages(cluster: ServingCluster) -> dict[str, str]:
    return {each.type: each.message for each in cluster.status.conditions}


def test_the_gap_is_announced_before_it_begins_and_said_while_it_lasts() -> None:
    cluster, old = announced(replicas=2)
    candidate = cluster.status.candidate
    assert candidate is not None
    assert (candidate.state, candidate.reason) == (RevisionState.STOPPING, Reason.GAP_ANNOUNCED)
    assert candidate.gap_starts_at == timestamp(cluster.now + timedelta(seconds=31))
    assert condition(cluster.status, "ServiceGap") == ("False", Reason.GAP_ANNOUNCED)
    assert_says(messages(cluster)["ServiceGap"], old, candidate.gap_starts_at, "until", candidate.revision)
    assert cluster.events[-1].reason is Reason.GAP_ANNOUNCED
    passes(cluster, 3, seconds=10)
    assert wanted(cluster) == {old: 2}
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    passes(cluster, 1)
    assert wanted(cluster) == {old: 2}, "a second before it"
    passes(cluster, 1)
    assert wanted(cluster) == {old: 0}
    passes(cluster, 1)
    assert wanted(cluster) == {old: 0, candidate.revision: 1}
    for kind in ("Ready", "ServiceGap"):
        assert condition(cluster.status, kind)[1] == Reason.GAP_IN_SERVICE
        assert_says(messages(cluster)[kind], candidate.gap_starts_at, old, candidate.revision)
    assert cluster.status.phase is ServingPhase.PROGRESSING
    cluster.settle()
    assert cluster.traffic() == candidate.revision
    assert wanted(cluster) == {candidate.revision: 2}
    assert "ServiceGap" not in messages(cluster)
    assert cluster.status.stable is not None
    assert cluster.status.stable.gap_starts_at is None


@pytest.mark.slow
def test_a_first_pod_that_is_verified_ends_the_gap() -> None:
    cluster, _ = begun(replicas=3)
    cluster.room = 1
    passes(cluster, 30)
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)


@pytest.mark.parametrize("digest", [INACTIVE, CRASHING])
def test_what_fails_gives_way_to_what_served_and_is_not_tried_again(digest: str) -> None:
    cluster = watched(serving(replicas=2))
    old, cluster.spec = cluster.traffic(), in_place(digest, replicas=2)
    cluster.settle()
    assert (cluster.traffic(), wanted(cluster)) == (old, {old: 2})
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert cluster.status.candidate is not None
    assert (cluster.status.candidate.state, cluster.status.candidate.gap_starts_at) == (RevisionState.FAILED, None)
    failed, again = cluster.events[-2:]
    assert f"Revision {old} comes back." in failed.message
    assert (again.type, again.reason) == ("Normal", Reason.SERVING)
    cluster.now += timedelta(days=1)
    cluster.generation += 1
    cluster.spec = in_place(digest, replicas=3)
    cluster.settle()
    assert wanted(cluster) == {old: 3}


def another_release(cluster: ServingCluster) -> None:
    images = SETTINGS.images.model_copy(update={"data": "images/data:2"})
    cluster.settings = cluster.settings.model_copy(update={"images": images})


def a_passing_blocker(cluster: ServingCluster) -> None:
    cluster.service_account = False
    cluster.settle()
    cluster.service_account = True


def the_source_gone_and_back(cluster: ServingCluster) -> None:
    source, cluster.source = cluster.source, None
    cluster.settle()
    cluster.source = source


@pytest.mark.parametrize("happens", [another_release, a_passing_blocker, the_source_gone_and_back])
def test_what_failed_in_place_is_not_tried_again_whatever_happens_meanwhile(
    happens: Callable[[ServingCluster], None],
) -> None:
    cluster = ServingCluster(spec=following(strategy=IN_PLACE), source=published(GOOD))
    cluster.settle()
    old, cluster.source = cluster.traffic(), published(CRASHING)
    cluster.settle()
    failed = cluster.status.candidate
    assert failed is not None
    assert failed.state is RevisionState.FAILED
    cluster = watched(cluster)
    told = len(cluster.events)
    happens(cluster)
    cluster.settle()
    assert cluster.status.candidate == failed
    assert wanted(cluster) == {old: 1}
    assert Reason.GAP_ANNOUNCED not in {event.reason for event in cluster.events[told:]}
    cluster.spec["rerun"] = "again"
    cluster.generation += 1
    cluster.reconcile()
    assert cluster.events[-1].reason is Reason.GAP_ANNOUNCED


@pytest.mark.parametrize("how", ["conflicts", "pending_deletion"])
def test_a_name_that_is_taken_ends_the_gap_for_good(how: str) -> None:
    """The conflict is known within one pass, as the reconciler does it."""
    cluster, old = announced()
    cluster.now += timedelta(seconds=31)
    passes(cluster, 1)
    assert wanted(cluster) == {old: 0}
    taken = dataclasses.replace(cluster.observe(), **{how: ("Deployment demo-x",)})  # type: ignore[arg-type]
    made = plan(taken, cluster.now)
    cluster.status = made.status
    assert made.requeue_after is not None, "nothing else brings the next pass"
    failed = cluster.status.candidate
    assert failed is not None
    assert failed.state is RevisionState.FAILED
    assert_says(failed.message, "not retried automatically: set spec.rerun to a new value", "Deployment demo-x")
    cluster.now += timedelta(days=1)
    cluster.settle()
    assert wanted(cluster) == {old: 1}
    assert cluster.status.candidate == failed


def test_while_what_served_starts_again_the_gap_lasts() -> None:
    cluster, old = begun()
    cluster.spec = in_place(CRASHING)
    passes(cluster, 3)
    cluster.room = 0
    while cluster.status.candidate and cluster.status.candidate.state is not RevisionState.FAILED:
        passes(cluster, 1)
        cluster.room = 1
    assert condition(cluster.status, "ServiceGap") == ("True", Reason.GAP_IN_SERVICE)
    cluster.room = 0
    passes(cluster, 3)
    assert wanted(cluster) == {old: 1}
    assert condition(cluster.status, "ServiceGap") == ("True", Reason.GAP_IN_SERVICE)
    assert condition(cluster.status, "Ready") == ("False", Reason.UNSCHEDULABLE), "the cause, where there is one"
    cluster.room = 1
    cluster.settle()
    assert "ServiceGap" not in messages(cluster)


def hold_up(cluster: ServingCluster, how: str) -> None:
    match how:
        case "no node":
            cluster.room = 0
        case "no verification":
            cluster.run_controllers = lambda: (cluster.run_deployments(), cluster.run_endpoints())[0]  # type: ignore
        case "a refusal":
            cluster.refuse = Quota(DEPLOYMENTS, 1)
        case "no Job":
            cluster.refuse = Quota(JOBS, 0)
        case "no Service":
            cluster.refuse = Quota(SERVICES, 1)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no node", Reason.UNSCHEDULABLE),
        ("no verification", Reason.DEADLINE_EXCEEDED),
        ("a refusal", Reason.QUOTA_EXCEEDED),
        ("no Job", Reason.QUOTA_EXCEEDED),
        ("no Service", Reason.QUOTA_EXCEEDED),
    ],
)
def test_nothing_is_waited_for_as_long_as_it_takes(how: str, reason: Reason) -> None:
    """Ten minutes; beside what serves, all of these would wait for ever or for an hour."""
    cluster, old = announced()
    cluster.objects[JOBS].clear()
    hold_up(cluster, how)
    cluster.now += timedelta(seconds=31)
    passes(cluster, 4)
    passes(cluster, 1, STALE_SECONDS - 60)
    assert wanted(cluster)[old] == 0
    passes(cluster, 5, 60)
    candidate = cluster.status.candidate
    assert candidate is not None
    assert (candidate.state, candidate.reason) == (RevisionState.FAILED, reason)
    assert "It made no progress, and meanwhile requests were not answered." in candidate.message
    assert wanted(cluster) == {old: 1}


@pytest.mark.parametrize(
    "change",
    [{"source": {"artifact": {"uri": pinned(GOOD)["source"]["artifact"]["uri"]}}}, {"runtime": "unknown"}],
    ids=["the spec goes back", "something blocks it"],
)
def test_what_served_comes_back_once_nothing_else_is_asked_for(change: dict[str, Any]) -> None:
    cluster, old = begun()
    cluster.spec |= change
    passes(cluster, 4)
    assert (cluster.traffic(), wanted(cluster)) == (old, {old: 1})
    assert cluster.status.ready_replicas == 1


def test_what_served_waits_for_a_deployment_that_is_still_being_deleted() -> None:
    """Its pods have the hardware that the others need."""
    cluster, old = begun()
    [(name, other)] = [each for each in cluster.objects[DEPLOYMENTS].items() if each[0] != f"demo-{old}"]
    other["metadata"]["deletionTimestamp"] = timestamp(cluster.now)
    cluster.spec |= {"runtime": "unknown"}
    passes(cluster, 4)
    assert wanted(cluster)[old] == 0
    del cluster.objects[DEPLOYMENTS][name]
    passes(cluster, 2)
    assert wanted(cluster) == {old: 1}


def test_another_artifact_uses_the_same_gap() -> None:
    cluster, old = begun()
    before = cluster.status.candidate
    cluster.spec = in_place(INACTIVE)
    passes(cluster, 1)
    after = cluster.status.candidate
    assert before is not None
    assert after is not None
    assert (after.state, after.gap_starts_at) == (RevisionState.STOPPING, before.gap_starts_at)
    assert wanted(cluster) == {old: 0}
    passes(cluster, 1)
    assert wanted(cluster) == {old: 0, after.revision: 1}


def test_the_strategy_changes_before_the_gap_begins() -> None:
    cluster, old = announced()
    cluster.spec = pinned(BETTER)
    passes(cluster, 1)
    candidate = cluster.status.candidate
    assert candidate is not None
    assert (candidate.state, candidate.gap_starts_at) == (RevisionState.STARTING, None)
    assert wanted(cluster) == {old: 1, candidate.revision: 1}


def test_the_strategy_changes_in_the_gap() -> None:
    """What has begun in place ends in place."""
    cluster, old = begun()
    cluster.spec = pinned(INACTIVE)
    passes(cluster, 2)
    assert wanted(cluster)[old] == 0
    cluster.settle()
    assert wanted(cluster) == {old: 1}


def test_a_candidate_without_room_beside_is_put_in_place() -> None:
    cluster = serving()
    cluster.room, cluster.spec = 1, pinned(BETTER)
    passes(cluster, 3, 400)
    assert condition(cluster.status, "Stalled") == ("True", Reason.UNSCHEDULABLE)
    watched(cluster).spec = in_place()
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


def test_scaled_to_zero_there_is_no_gap() -> None:
    cluster, _ = announced(replicas=0)
    assert "ServiceGap" not in messages(cluster)
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert set(wanted(cluster).values()) == {0}


def test_nobody_misses_what_does_not_answer() -> None:
    cluster = serving()
    for live in cluster.objects[DEPLOYMENTS].values():
        live["status"]["readyReplicas"] = 0
    cluster.spec = in_place()
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.gap_starts_at == timestamp(cluster.now + timedelta(seconds=1))


def test_the_first_revision_has_nothing_to_stop() -> None:
    cluster = ServingCluster(spec=in_place(GOOD))
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert (cluster.status.candidate.state, cluster.status.candidate.gap_starts_at) == (RevisionState.STARTING, None)


def old_pod(began: datetime, ends: float | None, phase: str, role: str) -> Object:
    """A pod of what served, that is to be gone so many seconds after the gap began."""
    metadata: Object = {"name": "old", "labels": {meta.LABEL_ROLE: role, meta.LABEL_REVISION: "00000000"}}
    if ends is not None:
        metadata["deletionTimestamp"] = timestamp(began + timedelta(seconds=ends))
    return {"metadata": metadata, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("ends", "phase", "role", "after", "left"),
    [
        (20.0, "Running", SERVER, 19, True),
        (20.0, "Running", SERVER, 20, False),
        (2000.0, "Running", SERVER, 1999, True),
        (None, "Running", SERVER, STALE_SECONDS - 1, True),
        (None, "Running", SERVER, STALE_SECONDS, False),
        (None, "Failed", SERVER, 1, False),
        (None, "Running", "stage", 1, False),
    ],
)
def test_the_candidate_starts_once_the_old_pods_are_gone(
    ends: float | None, phase: str, role: str, after: float, left: bool
) -> None:
    cluster, _ = announced()
    cluster.now += timedelta(seconds=31)
    passes(cluster, 1, seconds=0)
    began = cluster.now
    cluster.pods["elsewhere"] = [old_pod(began, ends, phase, role)]
    cluster.now = began + timedelta(seconds=after)
    candidate = cluster.status.candidate
    assert candidate is not None
    found = remains(cluster.observe(), candidate, cluster.now)
    assert found.left is left
    assert found.due_after == ((STALE_SECONDS if ends is None else ends) - after if left else None)
    cluster.reconcile()
    after_that = cluster.status.candidate
    assert after_that is not None
    assert (after_that.state is RevisionState.STOPPING) is left


def test_a_repair_takes_no_pod_more_than_there_is_room_for() -> None:
    cluster = serving()
    [before] = cluster.objects[DEPLOYMENTS].values()
    cluster.spec = in_place(GOOD)
    cluster.settle()
    [after] = cluster.objects[DEPLOYMENTS].values()
    for live, surge in ((before, 1), (after, 0)):
        assert live["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": 1 - surge}
    assert after["spec"]["template"] == before["spec"]["template"]


def test_without_the_api_nothing_is_said_to_serve_in_the_gap() -> None:
    cluster, _ = begun()
    metadata = cluster.observe().resource.metadata
    status = plan(Unplanned(metadata, cluster.status, Reason.API_CALLS_FAIL, "503"), cluster.now).status
    assert "no revision serves" in {each.type: each.message for each in status.conditions}["Ready"]


@pytest.mark.parametrize("reason", [Reason.SPEC_INVALID, Reason.API_CALLS_FAIL])
def test_what_cannot_be_planned_holds_up_nobody_with_an_announced_gap(reason: Reason) -> None:
    """Nor does it end one that has begun: the pods of what served are gone."""
    cluster, _ = announced()
    cluster.now += timedelta(hours=2)
    metadata = cluster.observe().resource.metadata
    status = plan(Unplanned(metadata, cluster.status, reason, "no"), cluster.now).status
    assert (status.candidate, status.stable) == (None, cluster.status.stable)
    running, _ = begun()
    status = plan(Unplanned(metadata, running.status, reason, "no"), running.now).status
    assert status.candidate == running.status.candidate


@pytest.mark.parametrize(
    ("state", "attempts", "begun"),
    [(State.WAITING, 0, False), (State.WAITING, 1, False), (State.WAITING, 2, True), (State.RUNNING, 1, True)],
)
def test_a_verification_whose_pod_is_replaced_has_begun(state: State, attempts: int, begun: bool) -> None:
    """Or its first ten minutes, which may be over, would end the gap while the next pod starts."""
    verdict = Verdict(state, Reason.WAITING, attempts=attempts)
    assert Verification(verdict, timedelta(seconds=900), timedelta(seconds=3000)).has_begun is begun


def test_what_can_be_kept_in_place() -> None:
    with pytest.raises(ValidationError, match="remove keepLastGood, or set it to 0s"):
        AdapterDeploymentSpec.model_validate(in_place(keepLastGood="5m"))
    stored_by_default = AdapterDeploymentSpec.model_validate(in_place(keepLastGood="10m"))
    assert stored_by_default.keep_seconds == 0
    unsaid = {name: value for name, value in pinned(GOOD).items() if name != "keepLastGood"}
    assert AdapterDeploymentSpec.model_validate(unsaid).keep_seconds == 600
    assert AdapterDeploymentSpec.model_validate(unsaid | {"strategy": IN_PLACE}).keep_seconds == 0


def test_another_strategy_is_no_other_try() -> None:
    beside, in_turn = (AdapterDeploymentSpec.model_validate(spec) for spec in (pinned(GOOD), in_place(GOOD)))
    assert spec_hash(beside) == spec_hash(in_turn)
