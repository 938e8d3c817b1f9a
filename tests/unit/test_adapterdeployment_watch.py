"""What counts against a revision that has just taken over."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_operator.adapterdeployment.health import Sighting, watch
from finetune_operator.adapterdeployment.pod_problems import Outlook
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import Object
from tests.support.played_cluster import START
from tests.support.played_pods import UNSCHEDULABLE, pod_status, server_pod
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

FULL = 'Usage of EmptyDir volume "scratch" exceeds the limit "20Gi". '


def _ended(code: int, times: int = 1) -> Object:
    """A self-check that has ended so many times, and runs again."""
    return {"restartCount": times, "lastState": {"terminated": {"exitCode": code}}}


def _rebooted(reason: str, code: int, restarts: int = 1) -> Object:
    """A server that was lost with its node, and loads again."""
    return {"restartCount": restarts, "lastState": {"terminated": {"exitCode": code, "reason": reason}}}


def _since(seconds: int) -> Object:
    return {"lastTransitionTime": timestamp(START + timedelta(seconds=seconds))}


class TestWatch:
    def pod(self, ready: bool = False, fell: int = 100, check: Object | None = None, **server: Any) -> Object:
        sidecar = [] if check is None else [{"name": "self-check", "restartCount": 0, "state": {"running": {}}} | check]
        status = {
            "initContainerStatuses": sidecar,
            "phase": "Running",
            "startTime": timestamp(START),
            "conditions": [
                {
                    "type": "Ready",
                    "status": str(ready),
                    "lastTransitionTime": timestamp(START + timedelta(seconds=1000 - fell)),
                }
            ],
            "containerStatuses": [{"name": "server", "restartCount": 0, "state": {"running": {}}} | server],
        }
        return server_pod("demo-1", "demo-1-x", {}, status)

    @pytest.mark.parametrize(
        ("restarts", "began", "ended", "counts"),
        [
            pytest.param(3, 10, 20, False, id="all before it took over"),
            pytest.param(3, 10, 600, False, id="the first since it took over"),
            pytest.param(3, 590, 600, True, id="not the first since it took over"),
            pytest.param(2, 590, 600, False, id="too few"),
            pytest.param(3, None, None, True, id="times unknown"),
        ],
    )
    def test_crashes_count_since_it_took_over(
        self, restarts: int, began: int | None, ended: int | None, counts: bool
    ) -> None:
        times = {"startedAt": began, "finishedAt": ended}
        told = {name: timestamp(START + timedelta(seconds=at)) for name, at in times.items() if at is not None}
        pod = self.pod(ready=True, restartCount=restarts, lastState={"terminated": {"exitCode": 137} | told})
        seen = watch(None, [pod], START + timedelta(seconds=500), START + timedelta(seconds=1000))
        assert (seen.problem is not None) is counts

    @pytest.mark.parametrize(
        ("pods", "outlook"),
        [
            pytest.param([], None, id="no pod"),
            pytest.param([{"ready": True}], None, id="ready"),
            pytest.param([{"started": True}], Outlook.FAIL, id="silent"),
            pytest.param([{"started": True, "fell": 10}], None, id="silent for a moment"),
            pytest.param([{"started": True}, {"started": True, "fell": 10}], None, id="one fell a moment ago"),
            pytest.param([{"started": True}, {"ready": True}], None, id="one of two is silent"),
            pytest.param([{"started": False}], None, id="a new pod that loads the model"),
            pytest.param([{"restartCount": 1}], Outlook.FAIL, id="restarted, and not back"),
            pytest.param([{"started": True, "check": {}}], None, id="a new pod that proves itself"),
            pytest.param([{"started": True, "check": {"ready": True}}], Outlook.FAIL, id="proved, and silent"),
            pytest.param([{"started": True, "check": _ended(65)}], Outlook.FAIL, id="disproved"),
            pytest.param([{"started": True, "fell": 0, "check": _ended(65)}], Outlook.FAIL, id="disproved just now"),
            pytest.param(
                [{"started": True, "fell": 0, "check": _ended(65)}, {"ready": True}], None, id="one of two disproved"
            ),
            pytest.param(
                [{"started": True, "fell": 0, "check": _ended(65)}, {"started": False}],
                None,
                id="disproved just now, and a new pod that loads the model",
            ),
            pytest.param(
                [{"started": True, "fell": 0, "check": _ended(65) | {"ready": True}}], None, id="proved again just now"
            ),
            pytest.param(
                [{"started": True, "check": _ended(75)}], None, id="a new pod that was too slow to answer once"
            ),
            pytest.param(
                [{"started": True, "check": _ended(75, 2)}], None, id="a new pod that was too slow to answer twice"
            ),
            pytest.param(
                [{"started": True, "check": _ended(75, 3)}], Outlook.FAIL, id="a new pod that cannot prove itself"
            ),
            pytest.param(
                [{"started": True, "check": _ended(75, 3)}, {"ready": True}], None, id="one of two cannot prove itself"
            ),
            pytest.param([{"started": True, "check": _ended(137, 3)}], None, id="a new pod whose check was killed"),
            pytest.param([{"started": True, "check": _ended(0)}], Outlook.FAIL, id="proved before its server ended"),
            pytest.param(
                [{"restartCount": 1, "check": _ended(75)}], Outlook.FAIL, id="restarted, and not proved again"
            ),
            pytest.param([_rebooted("Unknown", 255)], Outlook.GIVE_BACK, id="its node restarted, and it is not back"),
        ],
    )
    def test_silence(self, pods: list[dict[str, Any]], outlook: Outlook | None) -> None:
        seen = watch(None, [self.pod(**pod) for pod in pods], START, START + timedelta(seconds=1000))
        assert (seen.problem.outlook if seen.problem else None) is outlook

    def test_one_pod_in_a_crash_loop_is_enough(self) -> None:
        ended: dict[str, Any] = {"lastState": {"terminated": {"exitCode": 1}}, "restartCount": 3}
        seen = watch(None, [self.pod(ready=True), self.pod(**ended)], START, START + timedelta(seconds=1000))
        assert seen.problem is not None
        assert (seen.problem.reason, seen.problem.outlook) == (Reason.CANDIDATE_FAILED, Outlook.FAIL)

    @pytest.mark.parametrize(
        ("ends", "message", "falls"),
        [
            ([600, 700, 800], FULL, True),
            ([600, 700], FULL, False),
            ([100, 600, 700], FULL, False),  # one before it took over
            ([600, 700, 800], "The node was low on resource: ephemeral-storage.", False),  # its node's matter
        ],
    )
    def test_pods_that_fill_their_disk_again_and_again_are_a_crash_loop(
        self, ends: list[int], message: str, falls: bool
    ) -> None:
        """Each is replaced by another one, which answers until its disk is full too."""
        pods = [self.pod(ready=True)]
        for number, end in enumerate(ends):
            status: Object = {"phase": "Failed", "reason": "Evicted", "message": message}
            status["conditions"] = [_since(end) | {"type": "DisruptionTarget", "status": "True"}]
            pods.append(server_pod("demo-1", f"demo-1-{number}", {}, status))
        seen = watch(None, pods, START + timedelta(seconds=500), START + timedelta(seconds=1000))
        assert (seen.problem is not None) is falls
        if seen.problem is not None:
            assert (seen.problem.reason, seen.problem.outlook) == (Reason.SCRATCH_FULL, Outlook.FAIL)
            assert_says(seen.problem.message, "3 of its pods were evicted", "Pod demo-1-2", "volume", "the limit")

    def test_a_node_that_restarts_is_no_crash(self) -> None:
        pod = self.pod(ready=True, **_rebooted("ContainerStatusUnknown", 137, restarts=3))
        assert watch(None, [pod], START, START + timedelta(seconds=1000)).problem is None

    @pytest.mark.parametrize(
        ("status", "reason", "outlook"),
        [
            pytest.param(pod_status(Reason.S3_UNREACHABLE), Reason.S3_UNREACHABLE, Outlook.GIVE_BACK, id="store down"),
            pytest.param(pod_status(Reason.IMAGE_PULL_FAILED), Reason.IMAGE_PULL_FAILED, Outlook.GIVE_BACK, id="image"),
            pytest.param(UNSCHEDULABLE, Reason.UNSCHEDULABLE, Outlook.GIVE_BACK, id="no node"),
            pytest.param(
                pod_status(Reason.ARTIFACT_CORRUPT), Reason.ARTIFACT_CORRUPT, Outlook.FAIL, id="artifact changed"
            ),
        ],
    )
    def test_a_new_pod_that_is_kept_from_loading(self, status: Object, reason: Reason, outlook: Outlook) -> None:
        """It replaces the one that answered, and nobody answers: the endpoint is down until it loads, or another
        revision answers."""
        pod = server_pod("demo-1", "demo-1-x", {}, copy.deepcopy(status))
        pod["metadata"]["creationTimestamp"] = timestamp(START)
        if status is not UNSCHEDULABLE:
            pod["status"]["startTime"] = timestamp(START)
        for seconds in (0, 59):
            early = watch(None, [pod], START, START + timedelta(seconds=seconds))
            assert (early.problem, early.due_after) == (None, 60 - seconds)
        seen = watch(None, [pod], START, START + timedelta(seconds=60))
        assert seen.problem is not None
        assert (seen.problem.reason, seen.problem.outlook) == (reason, outlook)
        assert_says(seen.problem.message, "None of its pods has answered for 60 s")
        assert watch(None, [pod, self.pod(ready=True)], START, START + timedelta(hours=1)) == Sighting()

    def test_a_new_pod_that_loads_after_a_failed_download_says_nothing(self) -> None:
        failed = {"exitCode": 75, "reason": "Error"}
        fetched = {"name": "fetch", "state": {"terminated": {"exitCode": 0}}, "lastState": {"terminated": failed}}
        pod = self.pod(started=False)
        pod["status"]["initContainerStatuses"] = [fetched | {"restartCount": 1}]
        assert watch(None, [pod], START, START + timedelta(seconds=1000)) == Sighting()

    @pytest.mark.parametrize("by", ["image", "quota"])
    def test_one_that_has_been_kept_for_long_says_nothing_beside_one_that_loads(self, by: str) -> None:
        """The last pod that answered has just been replaced."""
        pods = [self.pod(started=False)]
        stuck = server_pod("demo-1", "demo-1-x", {}, pod_status(Reason.IMAGE_PULL_FAILED))
        stuck["status"]["startTime"] = timestamp(START)
        failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: team"}
        refused: Object = {"status": {"conditions": [failure | {"lastTransitionTime": timestamp(START)}]}}
        live, present = (None, [*pods, stuck]) if by == "image" else (refused, pods)
        assert watch(live, present, START, START + timedelta(hours=1)) == Sighting()

    def test_a_deployment_that_may_make_no_pod(self) -> None:
        """A quota or a policy refuses the one that would replace the pod that answered."""
        said = 'pods "demo-1-x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2'
        failure = {"type": "ReplicaFailure", "status": "True", "message": said}
        live: Object = {"status": {"conditions": [failure | {"lastTransitionTime": timestamp(START)}]}}
        assert watch(live, [], START, START + timedelta(seconds=50)) == Sighting(due_after=10)
        seen = watch(live, [], START, START + timedelta(seconds=60))
        assert seen.problem is not None
        assert (seen.problem.reason, seen.problem.outlook) == (Reason.QUOTA_EXCEEDED, Outlook.GIVE_BACK)
