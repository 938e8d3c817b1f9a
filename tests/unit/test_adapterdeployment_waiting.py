"""Waiting is no failure: a candidate waits for hardware as long as it takes, and holds none for ever itself."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus, ServingPhase
from finetune_operator.adapterdeployment.candidate import PAUSE_SECONDS
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.framework.actions import Action, Apply, Create
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS, NETWORK_POLICIES, Object, Resource
from tests.support.played_pods import BETTER, GOOD, UNSCHEDULABLE
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, assert_looked_at_ever_more_rarely, condition, serving, shown
from tests.support.serving_specs import pinned, start_seconds

pytestmark = pytest.mark.unit

LIMIT = start_seconds("tgi-cpu")
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": ""}
FULL = 'Error creating: pods "v-x" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2'
QUOTA = {"type": "ReplicaFailure", "status": "True", "message": 'pods "x" is forbidden: exceeded quota: gpus'}


def run(cluster: ServingCluster, seconds: float, step: float = 300) -> None:
    """Time passes, and everybody does their part."""
    end = cluster.now + timedelta(seconds=seconds)
    while cluster.now < end:
        cluster.reconcile()
        cluster.run_controllers()
        _say_late(cluster)
        cluster.now = min(end, cluster.now + timedelta(seconds=step))
    cluster.reconcile()


def _say_late(cluster: ServingCluster) -> None:
    """What the controller of Deployments says of one that is not available after its deadline."""
    for deployment in cluster.objects.get(DEPLOYMENTS, {}).values():
        if deployment["status"].get("availableReplicas", 0) < deployment["spec"]["replicas"]:
            deployment["status"]["conditions"] = [LATE]


def candidate(cluster: ServingCluster) -> RevisionStatus:
    found = cluster.status.candidate
    assert found is not None
    return found


def phase(cluster: ServingCluster) -> ServingPhase | None:
    return cluster.status.phase


def updating(room: int, **spec: Any) -> ServingCluster:
    """One pod serves; an update has been asked for, and so many pods find a node in all."""
    cluster = serving(replicas=spec.get("replicas", 1))
    cluster.room = room
    cluster.spec = pinned(BETTER, **spec)
    cluster.generation += 1
    return cluster


class TestNoHardware:
    @pytest.mark.slow
    @pytest.mark.parametrize("served", [True, False])
    def test_no_node_for_two_days(self, served: bool) -> None:
        cluster = updating(room=1) if served else ServingCluster(room=0)
        run(cluster, 2 * 86400, step=3600)
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.STARTING, Reason.UNSCHEDULABLE)
        assert phase(cluster) is (ServingPhase.DEGRADED if served else ServingPhase.PENDING)
        assert shown(cluster.status) == {"Ready": str(served), "Reconciling": "False", "Stalled": "True"}
        stalled = next(each for each in cluster.status.conditions if each.type == "Stalled")
        assert_says(stalled.message, candidate(cluster).revision, "insufficient GPU", "add a node")
        assert [event.reason for event in cluster.events][-1] == Reason.UNSCHEDULABLE
        cluster.room = 2
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == (BETTER if served else GOOD)

    def test_it_is_said_after_ten_minutes_and_once(self) -> None:
        cluster = updating(room=1)
        cluster.reconcile()
        cluster.run_controllers()
        made = cluster.reconcile()
        assert shown(cluster.status)["Stalled"] == "False"
        assert phase(cluster) is ServingPhase.PROGRESSING
        assert made.requeue_after == LONG_WAIT_SECONDS
        cluster.now += timedelta(seconds=LONG_WAIT_SECONDS)
        cluster.reconcile()
        assert condition(cluster.status, "Stalled") == ("True", Reason.UNSCHEDULABLE)
        told = [event for event in cluster.events if event.reason == Reason.UNSCHEDULABLE]
        assert len(told) == 1

    @pytest.mark.slow
    def test_a_quota_for_two_days(self) -> None:
        cluster = ServingCluster(room=0)
        cluster.reconcile()
        for _ in range(48):
            for deployment in cluster.objects[DEPLOYMENTS].values():
                deployment["status"] = {"conditions": [QUOTA, LATE]}
            cluster.now += timedelta(hours=1)
            cluster.reconcile()
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.STARTING, Reason.QUOTA_EXCEEDED)
        cluster.room = 1
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY

    @pytest.mark.slow
    def test_a_node_that_comes_late_gives_the_model_its_time(self) -> None:
        cluster = updating(room=1)
        cluster.loading.add(BETTER)
        run(cluster, 86400, step=3600)
        cluster.room = 2
        run(cluster, LIMIT - 600)
        assert candidate(cluster).state is RevisionState.STARTING
        run(cluster, 900)
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.FAILED, Reason.DEADLINE_EXCEEDED)
        assert cluster.held() == 1


class TestPromoting:
    """The first pod is verified and holds a GPU; the others find none."""

    @pytest.mark.slow
    def test_its_hardware_is_given_back_and_it_is_tried_again(self) -> None:
        cluster = updating(room=3, replicas=2)
        old = cluster.traffic()
        run(cluster, LIMIT - 600)
        assert candidate(cluster).state is RevisionState.PROMOTING
        assert cluster.held() == 3
        run(cluster, 1500)
        waiting = candidate(cluster)
        assert (waiting.state, waiting.reason) == (RevisionState.WAITING, Reason.UNSCHEDULABLE)
        assert_says(waiting.message, "2 pods", f"{LIMIT} s", "insufficient GPU", "tried again at", "spec changes")
        assert cluster.held() == 2
        assert cluster.revisions(DEPLOYMENTS) == {old} == {cluster.traffic()}
        assert phase(cluster) is ServingPhase.DEGRADED
        assert shown(cluster.status) == {"Ready": "True", "Reconciling": "False", "Stalled": "True"}
        assert [event.reason for event in cluster.events][-1] == Reason.UNSCHEDULABLE
        cluster.room = 4
        run(cluster, PAUSE_SECONDS - 900)
        assert cluster.held() == 2
        run(cluster, 1800, step=60)
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY
        assert cluster.traffic() == waiting.revision

    def test_it_wakes_at_the_end_of_its_pause(self) -> None:
        cluster = updating(room=3, replicas=2)
        run(cluster, LIMIT + 900)
        left = cluster.plan().requeue_after
        assert left is not None
        cluster.now += timedelta(seconds=left)
        cluster.reconcile()
        assert candidate(cluster).state is RevisionState.STARTING

    @pytest.mark.parametrize("spec", [{"replicas": 1}, {"replicas": 2, "rerun": "now"}])
    def test_a_change_of_the_spec_ends_the_pause(self, spec: dict[str, Any]) -> None:
        cluster = updating(room=3, replicas=2)
        run(cluster, LIMIT + 900)
        cluster.spec |= spec
        cluster.generation += 1
        cluster.reconcile()
        assert candidate(cluster).state is RevisionState.STARTING

    def test_where_nothing_serves_what_was_verified_does(self) -> None:
        """Fewer pods than were asked for are better than none."""
        cluster = ServingCluster(spec=pinned(GOOD, replicas=3), room=2)
        run(cluster, LIMIT - 600)
        assert cluster.traffic() == ""
        run(cluster, 1500)
        assert cluster.traffic() != ""
        assert phase(cluster) is ServingPhase.DEGRADED
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
        assert condition(cluster.status, "Reconciling") == ("True", Reason.UNSCHEDULABLE)

    def test_where_what_served_is_down_too(self) -> None:
        cluster = updating(room=3, replicas=2)
        old = cluster.traffic()
        run(cluster, LIMIT - 600)
        for pod in cluster.pods[f"demo-{old}"]:
            pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        run(cluster, 1500)
        assert cluster.traffic() not in ("", old)


class TestVerifying:
    @pytest.mark.slow
    def test_a_verification_that_never_runs_holds_no_hardware_for_ever(self) -> None:
        cluster = updating(room=2)
        _verify(cluster)
        _until_given_back(cluster)
        assert_says(candidate(cluster).message, "verification", "The Job has no pod yet", "tried again at")
        assert cluster.held() == 1
        assert not [job for job in _jobs(cluster) if not job.get("status")]
        run(cluster, PAUSE_SECONDS + 1200, step=60)
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY
        assert cluster.traffic() == cluster.status.last_good_revision

    def test_a_job_without_a_pod_is_looked_at_soon(self) -> None:
        """Nothing tells of it."""
        cluster = updating(room=2)
        _verify(cluster)
        assert_looked_at_ever_more_rarely(cluster)

    @pytest.mark.slow
    def test_a_quota_without_room_for_its_pod(self) -> None:
        """It says which, and what to do; it waits, and gives its hardware to others meanwhile."""
        cluster = updating(room=2)
        old = cluster.traffic()
        _verify(cluster)
        [job] = [job for job in _jobs(cluster) if not job.get("status")]
        cluster.job_events[job["metadata"]["name"]] = [
            {"reason": "FailedCreate", "message": FULL, "lastTimestamp": "2026-01-01T00:00:00Z"}
        ]
        made = cluster.reconcile()
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.VERIFYING, Reason.QUOTA_EXCEEDED)
        assert_says(candidate(cluster).message, "verification", "exceeded quota: few", "used: pods=2")
        assert condition(cluster.status, "Reconciling") == ("True", Reason.QUOTA_EXCEEDED)
        said = {each.type: each.message for each in cluster.status.conditions}
        assert_says(said["Reconciling"], "exceeded quota: few", "Raise the ResourceQuota")
        assert cluster.events[-1].reason == Reason.QUOTA_EXCEEDED
        assert made.blocked  # an event of the quota wakes it
        assert phase(cluster) is ServingPhase.PROGRESSING
        cluster.now += timedelta(seconds=made.requeue_after or 0)
        cluster.reconcile()
        assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
        _until_given_back(cluster)
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.WAITING, Reason.QUOTA_EXCEEDED)
        assert_says(candidate(cluster).message, "exceeded quota: few", "tried again at")
        assert (cluster.held(), cluster.traffic()) == (1, old)
        assert [each.reason for each in cluster.events].count(Reason.QUOTA_EXCEEDED) == 2
        cluster.job_events.clear()
        run(cluster, PAUSE_SECONDS + 600, step=60)
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY
        assert cluster.traffic() != old

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (UNSCHEDULABLE, Reason.UNSCHEDULABLE),
            ({"phase": "Pending"}, Reason.VERIFYING),
            ({"phase": "Running"}, Reason.VERIFYING),
        ],
    )
    def test_what_its_pod_waits_for(self, status: Object, reason: Reason) -> None:
        cluster = updating(room=2)
        _verify(cluster)
        _pod_of_verification(cluster, status)
        assert not cluster.reconcile().blocked  # the pod's own events tell
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.VERIFYING, reason)

    def test_a_pod_whose_node_is_lost_says_so(self) -> None:
        """It was starting there, which no condition of it takes back: Kubernetes deletes it, and nobody ends it."""
        cluster = updating(room=2)
        _verify(cluster)
        _pod_of_verification(cluster, {"phase": "Pending"})
        [pod] = cluster.pods[_jobs(cluster)[-1]["metadata"]["name"]]
        pod["metadata"]["deletionTimestamp"] = timestamp(cluster.now - timedelta(minutes=2))
        pod["spec"] = {"nodeName": "gpu-7"}
        cluster.reconcile()
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.VERIFYING, Reason.NODE_LOST)
        assert_says(candidate(cluster).message, "gpu-7", "does not answer")

    @pytest.mark.slow
    def test_a_pod_without_a_node_holds_the_candidate_s_for_ten_minutes(self) -> None:
        """As long as a node may take to appear, however long the verification itself may take."""
        cluster = updating(room=2, verification={"detectDrop": "0.1"})
        old = cluster.traffic()
        _verify(cluster)
        _pod_of_verification(cluster, UNSCHEDULABLE)
        assert cluster.reconcile().requeue_after == LONG_WAIT_SECONDS
        assert cluster.held() == 2
        cluster.now += timedelta(seconds=LONG_WAIT_SECONDS)
        cluster.reconcile()
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.WAITING, Reason.UNSCHEDULABLE)
        assert_says(
            candidate(cluster).message, "verification has not run within 600 s", "insufficient GPU", "tried again at"
        )
        assert condition(cluster.status, "Stalled") == ("True", Reason.UNSCHEDULABLE)
        assert (cluster.held(), cluster.traffic()) == (1, old)
        run(cluster, PAUSE_SECONDS + 600, step=60)
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY
        assert cluster.traffic() != old

    def test_a_verification_that_has_run_may_take_its_time_to_run_again(self) -> None:
        """Its pod was lost after half an hour: the ten minutes are those of the pod that replaces it."""
        cluster = updating(room=2)
        _verify(cluster)
        _jobs(cluster)[-1]["status"] = {"failed": 1}
        cluster.now += timedelta(seconds=1800)
        assert cluster.reconcile().requeue_after
        assert candidate(cluster).state is RevisionState.VERIFYING
        _pod_of_verification(cluster, UNSCHEDULABLE)
        assert cluster.reconcile().requeue_after == LONG_WAIT_SECONDS
        assert candidate(cluster).state is RevisionState.VERIFYING


class TestRefused:
    """The API server does not take an object of the rollout, while the candidate's first pod holds hardware."""

    @pytest.mark.slow
    @pytest.mark.parametrize("resource", [JOBS, NETWORK_POLICIES])
    def test_the_hardware_is_given_back(self, resource: Resource) -> None:
        cluster = updating(room=2)
        seen: list[str] = []

        def refuse(_: ServingCluster, action: Action) -> str:
            """The Job of the verification, or the policy that opens the verified pods to everybody."""
            opens = isinstance(action, Apply) and action.resource == NETWORK_POLICIES
            hit = opens if resource == NETWORK_POLICIES else isinstance(action, Create) and action.resource == JOBS
            seen.extend(["refused"] if hit else [])
            return f'{resource.plural} "x" is forbidden: exceeded quota: few' if hit else ""

        cluster.refuse = refuse
        run(cluster, LIMIT - 600)
        assert seen
        assert cluster.held() == 2
        run(cluster, 1500)
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.WAITING, Reason.QUOTA_EXCEEDED)
        assert_says(candidate(cluster).message, "exceeded quota: few", "tried again at")
        assert cluster.held() == 1
        cluster.refuse = lambda _cluster, _action: ""
        run(cluster, PAUSE_SECONDS)
        cluster.settle()
        assert phase(cluster) is ServingPhase.READY


def _verify(cluster: ServingCluster) -> None:
    """Go on until the candidate's verification has a Job, for which nobody creates a pod."""
    for _ in range(2):
        cluster.reconcile()
        cluster.run_deployments()
    cluster.reconcile()
    assert candidate(cluster).state is RevisionState.VERIFYING


def _pod_of_verification(cluster: ServingCluster, status: Object) -> None:
    """The pod that the controller of Jobs has just created."""
    job = _jobs(cluster)[-1]
    owners = [{"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}]
    metadata = {"name": "v", "creationTimestamp": timestamp(cluster.now), "ownerReferences": owners}
    cluster.pods[job["metadata"]["name"]] = [{"metadata": metadata, "status": status}]


def _until_given_back(cluster: ServingCluster) -> None:
    while candidate(cluster).state is RevisionState.VERIFYING:
        cluster.now += timedelta(seconds=600)
        cluster.reconcile()


def _jobs(cluster: ServingCluster) -> list[Object]:
    return list(cluster.objects.get(JOBS, {}).values())
