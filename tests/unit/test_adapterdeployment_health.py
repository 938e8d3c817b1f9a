"""What keeps pods from serving, read from their Deployment and themselves: the root cause, and whether to wait."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.adapterdeployment.health import (
    PULL_PATIENCE_SECONDS,
    candidate_due_after,
    candidate_problem,
    is_available,
    serving_problem,
)
from finetune_operator.adapterdeployment.pod_problems import Outlook
from finetune_operator.framework.conditions import timestamp
from tests.support.sentences import Saying, assert_says

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMIT = 2700
LOADING = 1800
"""Seconds that a server may take to load."""
SERVER = {
    "name": "server",
    "startupProbe": {"periodSeconds": 2, "failureThreshold": LOADING // 2, "timeoutSeconds": 5},
}


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def deployment(*conditions: dict[str, Any], **status: int) -> dict[str, Any]:
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": 2, "progressDeadlineSeconds": LIMIT},
        "status": {"observedGeneration": 2, "conditions": list(conditions)} | status,
    }


def pod(
    name: str = "x",
    *,
    fetch: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    check: dict[str, Any] | None = None,
    created: float = 0,
    **status: Any,
) -> dict[str, Any]:
    """A pod that was created ``created`` seconds ago and has no node yet; of an earlier release without a ``check``."""
    sidecar = [] if check is None else [{"name": "self-check", "image": "data:1", "restartCount": 0} | check]
    fetched = {"name": "fetch", "image": "data:1", "restartCount": 0} | (fetch or {})
    return {
        "metadata": {"name": name, "creationTimestamp": ago(created)},
        "spec": {
            "nodeName": "gpu-7",
            "terminationGracePeriodSeconds": 60,
            "containers": [{"name": "self-check"}, SERVER],
        },
        "status": {
            "phase": "Pending",
            "initContainerStatuses": [fetched, *sidecar],
            "containerStatuses": [{"name": "server", "image": "tgi:1", "restartCount": 0} | (server or {})],
        }
        | status,
    }


def on_node(seconds: float, name: str = "x", *, ready: bool = False, since: float = 0, **how: Any) -> dict[str, Any]:
    """A pod that has had a node for so many seconds; it has been ready, or not, since then or for ``since``."""
    state = {"type": "Ready", "status": str(ready), "lastTransitionTime": ago(since or seconds)}
    more = {"phase": "Running", "startTime": ago(seconds), "conditions": [state]}
    return pod(name, created=how.pop("created", seconds), **(more | how))


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def report(reason: Reason, message: str) -> str:
    result = StageResult(stage=Stage.FETCH, outcome=Outcome.FAILED, reason=reason, message=message)
    return result.model_dump_json(by_alias=True)


def loaded_for(seconds: float, code: int = 137, reason: str = "Error", **server: Any) -> dict[str, Any]:
    """A server that ended after so many seconds, and loads again."""
    last: dict[str, Any] = ended(code, reason=reason)
    last["terminated"] |= {"startedAt": ago(60 + seconds), "finishedAt": ago(60)}
    return {"restartCount": 1, "state": {"running": {}}, "lastState": last} | server


RUNNING: dict[str, Any] = {"state": {"running": {}}}
UP: dict[str, Any] = RUNNING | {"started": True, "ready": True}
BACKOFF = {"waiting": {"reason": "CrashLoopBackOff"}}
PULLING = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
NO_SECRET = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}
CHECK = VerificationCheck(name="logProbabilities", expected="0.550", seen="0.9", outcome=CheckOutcome.FAILED)
"""What a self-check compared."""


def disproved(code: int = ExitCode.FATAL, reason: Reason = Reason.VERIFICATION_FAILED, **now: Any) -> dict[str, Any]:
    """A self-check that has failed, and what it does since."""
    result = StageResult(stage=Stage.VERIFY, outcome=Outcome.FAILED, reason=reason, message="Its server fails it.")
    told = result.model_copy(update={"checks": [CHECK]}).model_dump_json(by_alias=True)
    return {"restartCount": 1, "state": {"running": {}}, "lastState": ended(code, told), "ready": False} | now


UNREACHABLE = {"state": BACKOFF, "lastState": ended(ExitCode.RETRIABLE, report(Reason.S3_UNREACHABLE, "no route"))}
UNSCHEDULABLE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: insufficient GPU"}
]
FULL = "Usage of EmptyDir volume models exceeds the limit 20Gi."
LOW = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. Container fetch was "
    "using 52Gi, request is 0, has larger consumption of ephemeral-storage. "
)
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
"""What the Deployment's controller says after its deadline; it counts waits for a node too."""


def refused(message: str) -> dict[str, Any]:
    return {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}


def disrupted(when: float, reason: str, message: str) -> list[dict[str, Any]]:
    at = ago(when)
    return [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": at,
        }
    ]


def evicted(name: str, when: float, message: str = "The node was low on resource: memory.") -> dict[str, Any]:
    conditions = disrupted(when, "TerminationByKubelet", message)
    return pod(name, created=9000, phase="Failed", reason="Evicted", message=message, conditions=conditions)


def silent(name: str) -> dict[str, Any]:
    """A pod whose node does not answer: its readiness was taken away, that of the container is the last known."""
    return on_node(9000, name, since=60, server={"ready": True, "state": {"running": {}}})


def deleted(found: dict[str, Any]) -> dict[str, Any]:
    return found | {"metadata": found["metadata"] | {"deletionTimestamp": ago(5)}}


WAIT, GIVE_BACK, FAIL = Outlook.WAIT, Outlook.GIVE_BACK, Outlook.FAIL
CANDIDATES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], tuple[Reason, Outlook] | None]] = {
    "nothing is known": (deployment(), [], None),
    "all is well": (deployment(), [on_node(LIMIT + 1, ready=True, server={"state": {"running": {}}})], None),
    "the artifact is damaged": (
        deployment(),
        [pod(fetch={"state": ended(ExitCode.FATAL, report(Reason.ARTIFACT_CORRUPT, "another hash"))})],
        (Reason.ARTIFACT_CORRUPT, FAIL),
    ),
    "its self-check failed": (
        deployment(),
        [on_node(60, server=UP, check=disproved(state=BACKOFF))],
        (Reason.VERIFICATION_FAILED, FAIL),
    ),
    "its self-check got no answers, and is tried again": (
        deployment(),
        [on_node(60, server=UP, check=disproved(ExitCode.RETRIABLE, Reason.CANDIDATE_FAILED, restartCount=9))],
        (Reason.CANDIDATE_FAILED, WAIT),
    ),
    "its self-check has passed since": (
        deployment(),
        [on_node(60, ready=True, server=UP, check=disproved(ready=True))],
        None,
    ),
    "its server crashed under the self-check": (
        deployment(),
        [
            on_node(
                60,
                server={"restartCount": 3, "state": BACKOFF, "lastState": ended(137, reason="OOMKilled")},
                check=disproved(ExitCode.RETRIABLE, Reason.CANDIDATE_FAILED),
            )
        ],
        (Reason.OUT_OF_MEMORY, FAIL),
    ),
    "the kubelet tries again, the reason is known from before": (
        deployment(),
        [pod(fetch={"state": BACKOFF, "lastState": ended(ExitCode.FATAL, report(Reason.ARTIFACT_NOT_FOUND, "404"))})],
        (Reason.ARTIFACT_NOT_FOUND, FAIL),
    ),
    "the store does not answer, again and again": (
        deployment(),
        [on_node(60, fetch={"restartCount": 9} | UNREACHABLE)],
        (Reason.S3_UNREACHABLE, WAIT),
    ),
    "the store does not answer for as long as the pod may have its node": (
        deployment(LATE),
        [on_node(LIMIT, fetch=UNREACHABLE)],
        (Reason.S3_UNREACHABLE, GIVE_BACK),
    ),
    "fetch was killed once": (
        deployment(),
        [on_node(60, fetch={"restartCount": 1, "state": {"running": {}}, "lastState": ended(137, reason="OOMKilled")})],
        (Reason.OUT_OF_MEMORY, WAIT),
    ),
    "fetch crashed too often": (
        deployment(),
        [on_node(60, fetch={"restartCount": 3, "state": BACKOFF, "lastState": ended(1)})],
        (Reason.STAGE_CRASHED, FAIL),
    ),
    "the server died once": (
        deployment(),
        [on_node(60, server={"restartCount": 1, "state": {"running": {}}, "lastState": ended(1)})],
        (Reason.CANDIDATE_FAILED, WAIT),
    ),
    "the server dies again and again": (
        deployment(),
        [on_node(60, server={"restartCount": 3, "state": BACKOFF, "lastState": ended(1)})],
        (Reason.CANDIDATE_FAILED, FAIL),
    ),
    "the server ends again and again, as vLLM does when its engine dies": (
        deployment(),
        [on_node(60, server={"restartCount": 3, "state": BACKOFF, "lastState": ended(0, reason="Completed")})],
        (Reason.CANDIDATE_FAILED, FAIL),
    ),
    "the server needs more memory": (
        deployment(),
        [on_node(60, server={"restartCount": 3, "state": BACKOFF, "lastState": ended(137, reason="OOMKilled")})],
        (Reason.OUT_OF_MEMORY, FAIL),
    ),
    "a server that printed JSON is no stage": (
        deployment(),
        [on_node(60, server={"restartCount": 3, "lastState": ended(65, report(Reason.ARTIFACT_CORRUPT, "-"))})],
        (Reason.CANDIDATE_FAILED, FAIL),
    ),
    "the registry does not answer for a moment": (
        deployment(),
        [on_node(10, server={"state": PULLING})],
        (Reason.IMAGE_PULL_FAILED, WAIT),
    ),
    "the registry does not answer for five minutes": (
        deployment(),
        [on_node(PULL_PATIENCE_SECONDS, server={"state": PULLING})],
        (Reason.IMAGE_PULL_FAILED, GIVE_BACK),
    ),
    "the init container's image is missing": (
        deployment(),
        [on_node(PULL_PATIENCE_SECONDS, fetch={"state": PULLING})],
        (Reason.IMAGE_PULL_FAILED, GIVE_BACK),
    ),
    "a pod that waited long for its node has just begun to pull": (
        deployment(LATE),
        [on_node(10, server={"state": PULLING}, created=9000)],
        (Reason.IMAGE_PULL_FAILED, WAIT),
    ),
    "a Secret is missing": (
        deployment(),
        [on_node(60, fetch={"state": NO_SECRET})],
        (Reason.SECRET_MISSING, WAIT),
    ),
    "a Secret is missing for as long as the pod may have its node": (
        deployment(),
        [on_node(LIMIT, fetch={"state": NO_SECRET})],
        (Reason.SECRET_MISSING, GIVE_BACK),
    ),
    "no node fits": (deployment(), [pod(conditions=UNSCHEDULABLE)], (Reason.UNSCHEDULABLE, WAIT)),
    "no node fits for days": (
        deployment(LATE),
        [pod(conditions=UNSCHEDULABLE, created=200_000)],
        (Reason.UNSCHEDULABLE, WAIT),
    ),
    "the quota is used up": (
        deployment(refused('pods "x" is forbidden: exceeded quota: gpus')),
        [],
        (Reason.QUOTA_EXCEEDED, WAIT),
    ),
    "the quota is used up for days": (
        deployment(refused('pods "x" is forbidden: exceeded quota: gpus'), LATE),
        [],
        (Reason.QUOTA_EXCEEDED, WAIT),
    ),
    "admission refuses the pod": (
        deployment(refused('pods "x" is forbidden: violates PodSecurity "restricted"'), LATE),
        [],
        (Reason.POD_REJECTED, WAIT),
    ),
    "the model takes too long to load": (deployment(), [on_node(LIMIT)], (Reason.DEADLINE_EXCEEDED, FAIL)),
    "its node stops a server that loads for too long": (
        deployment(),
        [on_node(LOADING + 99, server=loaded_for(LOADING))],
        (Reason.DEADLINE_EXCEEDED, WAIT),
    ),
    "its node stops it, and its pod has had that for as long as it may": (
        deployment(),
        [on_node(LIMIT, server=loaded_for(LOADING))],
        (Reason.DEADLINE_EXCEEDED, FAIL),
    ),
    "its node stops it again and again": (
        deployment(),
        [on_node(60, server=loaded_for(LOADING, restartCount=3))],
        (Reason.DEADLINE_EXCEEDED, FAIL),
    ),
    "a node that came late gives the model its time": (deployment(LATE), [on_node(60, created=9000)], None),
    "only the binding tells since when it has its node": (
        deployment(),
        [pod(conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(LIMIT)}])],
        (Reason.DEADLINE_EXCEEDED, FAIL),
    ),
    "a server that was ready until now has time to come back": (deployment(), [on_node(9 * LIMIT, since=5)], None),
    "its node does not answer": (deployment(), [silent("x")], (Reason.NODE_LOST, WAIT)),
    "it was evicted": (deployment(), [evicted("x", 60), pod("y")], (Reason.PREEMPTED, WAIT)),
    "its nodes lack memory twice": (
        deployment(),
        [*(evicted(f"x{number}", 60) for number in range(2)), pod("y")],
        (Reason.PREEMPTED, WAIT),
    ),
    "its nodes lack memory each time": (
        deployment(),
        [*(evicted(f"x{number}", 60) for number in range(3)), pod("y")],
        (Reason.PREEMPTED, GIVE_BACK),
    ),
    "its nodes lack disk, and the next pod keeps away from them": (
        deployment(),
        [*(evicted(f"x{number}", 60, LOW) for number in range(3)), pod("y", conditions=UNSCHEDULABLE)],
        (Reason.PREEMPTED, GIVE_BACK),
    ),
    "its nodes lack disk, but one of its pods stays": (
        deployment(),
        [*(evicted(f"x{number}", 60, LOW) for number in range(3)), on_node(90, "y", ready=True)],
        (Reason.PREEMPTED, WAIT),
    ),
    "it makes room for others many times": (
        deployment(),
        [evicted(f"x{number}", 60, "Preempted in order to admit critical pod") for number in range(9)],
        (Reason.PREEMPTED, WAIT),
    ),
    "it fills its disk once": (deployment(), [evicted("x", 60, FULL)], (Reason.SCRATCH_FULL, WAIT)),
    "it fills its disk each time": (
        deployment(),
        [evicted(f"x{number}", 60, FULL) for number in range(3)],
        (Reason.SCRATCH_FULL, FAIL),
    ),
    "the fatal cause of one pod counts more than another's wait": (
        deployment(),
        [
            pod(conditions=UNSCHEDULABLE),
            pod(fetch={"state": ended(ExitCode.FATAL, report(Reason.S3_ACCESS_DENIED, "403"))}),
        ],
        (Reason.S3_ACCESS_DENIED, FAIL),
    ),
}


@pytest.mark.parametrize("case", CANDIDATES)
def test_root_cause_of_a_candidate(case: str) -> None:
    found, pods, expected = CANDIDATES[case]
    problem = candidate_problem(found, pods, NOW)
    assert (None if problem is None else (problem.reason, problem.outlook)) == expected


def test_who_is_crowded_out_of_its_nodes_is_told_of_what_they_lacked() -> None:
    pods = [*(evicted(f"x{number}", 60, LOW) for number in range(3)), evicted("newest", 5), pod("y")]
    problem = candidate_problem(deployment(), pods, NOW)
    assert problem is not None
    assert_says(problem.message, "Nodes that were low on ephemeral-storage and memory have evicted 4 of its pods.")
    assert_says(problem.message, "Pod newest was evicted: The node was low on resource: memory.")


@pytest.mark.parametrize(
    ("server", "slow"),
    [
        (loaded_for(LOADING - 2), True),  # asked at once for the first time
        (loaded_for(LOADING - 3), False),
        (loaded_for(LOADING / 2 * 5 + 60), True),  # each question lasted, and then its grace
        (loaded_for(LOADING / 2 * 5 + 61), False),
        (loaded_for(LOADING, 143), True),
        (loaded_for(LOADING, 0, "Completed"), True),
        (loaded_for(LOADING, 1), False),
        ({"restartCount": 1, "state": {"running": {}}, "lastState": ended(137)}, False),
    ],
)
def test_who_is_stopped_while_it_loads_is_told_from_who_crashes(server: dict[str, Any], slow: bool) -> None:
    problem = candidate_problem(deployment(), [on_node(60, server=server)], NOW)
    assert problem is not None
    assert problem.reason is (Reason.DEADLINE_EXCEEDED if slow else Reason.CANDIDATE_FAILED)


def test_a_server_that_is_stopped_while_it_loads_names_the_limit() -> None:
    problem = candidate_problem(deployment(), [on_node(LIMIT, server=loaded_for(LOADING + 9))], NOW)
    assert problem is not None
    said = ("Not available after 2700 s.", "'server' of pod x", "within 1800 s, the startupTimeoutSeconds")
    assert_says(problem.message, *said, "stopped by its node after 1809 s; 1 restart")


def test_a_deadline_names_what_was_waited_for() -> None:
    problem = candidate_problem(deployment(), [on_node(LIMIT, fetch={"state": NO_SECRET})], NOW)
    assert problem is not None
    assert_says(problem.message, "Not available after 2700 s.", "Pod x", 'secret "s3" not found')


@pytest.mark.parametrize(
    ("pods", "seconds"),
    [
        ([], None),
        ([pod(conditions=UNSCHEDULABLE)], None),
        ([on_node(100, ready=True)], None),
        ([on_node(100)], PULL_PATIENCE_SECONDS - 100),
        ([on_node(1000)], LIMIT - 1000),
        ([on_node(100), on_node(1000)], PULL_PATIENCE_SECONDS - 100),
    ],
)
def test_when_a_candidate_is_looked_at_again(pods: list[dict[str, Any]], seconds: float | None) -> None:
    assert candidate_due_after(deployment(), pods, NOW) == seconds


SERVERS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], Reason, str]] = {
    "no pod": (deployment(), [], Reason.SERVER_UNAVAILABLE, Saying("no pod")),
    "it is new": (deployment(), [pod("new")], Reason.SERVER_UNAVAILABLE, Saying("Pod new is starting")),
    "it loads": (
        deployment(),
        [on_node(60, "new", server=RUNNING)],
        Reason.SERVER_UNAVAILABLE,
        Saying("Pod new", "model"),
    ),
    "it hangs": (
        deployment(),
        [on_node(60, "old", server=RUNNING | {"started": True})],
        Reason.SERVER_UNAVAILABLE,
        Saying("Pod old", "readiness probe"),
    ),
    "it proves itself": (
        deployment(),
        [on_node(60, "new", server=UP, check=RUNNING)],
        Reason.SERVER_UNAVAILABLE,
        Saying("Pod new", "self-check is running"),
    ),
    "its self-check failed": (
        deployment(),
        [on_node(60, "new", server=UP, check=disproved(state=BACKOFF))],
        Reason.SELF_CHECK_FAILED,
        "Pod new: Its server fails it.",
    ),
    "its self-check is not in its image": (
        deployment(),
        [on_node(60, "new", server=UP, check={"restartCount": 1, "state": BACKOFF, "lastState": ended(1)})],
        Reason.SERVER_UNAVAILABLE,
        Saying("'self-check' of pod new", "code 1", "Set images.data to the image that was built with the chart."),
    ),
    "it crashed": (
        deployment(),
        [on_node(60, "old", server=RUNNING | {"restartCount": 1, "lastState": ended(1)})],
        Reason.SERVER_UNAVAILABLE,
        Saying("pod old", "code 1"),
    ),
    "it ended by itself": (
        deployment(),
        [on_node(60, "old", server=RUNNING | {"restartCount": 1, "lastState": ended(0, reason="Completed")})],
        Reason.SERVER_UNAVAILABLE,
        Saying(
            "pod old", "code 0", "never ends by itself", "kubectl logs old -c server --previous", "describe pod old"
        ),
    ),
    "it was killed for its memory": (
        deployment(),
        [on_node(60, "old", server=RUNNING | {"restartCount": 1, "lastState": ended(137, reason="OOMKilled")})],
        Reason.OUT_OF_MEMORY,
        Saying("pod old", "memory"),
    ),
    "its image cannot be pulled": (
        deployment(),
        [on_node(60, "new", server={"state": PULLING})],
        Reason.IMAGE_PULL_FAILED,
        Saying("Pod new", "tgi:1"),
    ),
    "no node has room for it": (
        deployment(),
        [pod("new", conditions=UNSCHEDULABLE)],
        Reason.UNSCHEDULABLE,
        Saying("Pod new", "insufficient GPU"),
    ),
    "the quota has no room for it": (
        deployment(refused('pods "x" is forbidden: exceeded quota: gpus')),
        [],
        Reason.QUOTA_EXCEEDED,
        Saying("exceeded quota: gpus"),
    ),
    "its node does not answer": (deployment(), [silent("old")], Reason.NODE_LOST, Saying("Node gpu-7", "pod old")),
    "its node did not come back": (
        deployment(),
        [deleted(silent("old")), pod("new", created=5, conditions=UNSCHEDULABLE)],
        Reason.UNSCHEDULABLE,
        Saying("Pod new", "insufficient GPU", "Node gpu-7", "pod old"),
    ),
    "it was evicted, and another one starts": (
        deployment(),
        [evicted("old", 60), on_node(50, "new", server=RUNNING)],
        Reason.PREEMPTED,
        Saying("Pod new", "Pod old was evicted", "low on resource: memory"),
    ),
    "its node was drained": (
        deployment(),
        [
            deleted(on_node(9000, "old", conditions=disrupted(5, "EvictionByEvictionAPI", "Eviction API: evicting"))),
            pod("new"),
        ],
        Reason.PREEMPTED,
        Saying("Pod new", "Pod old was evicted", "Eviction API"),
    ),
    "another one was evicted long ago, and has been replaced": (
        deployment(),
        [evicted("old", 8000), on_node(7000, "next", ready=True), pod("new")],
        Reason.SERVER_UNAVAILABLE,
        "Pod new is starting.",
    ),
    "the store does not answer another pod": (
        deployment(),
        [on_node(9000, "old", ready=True), on_node(60, "new", fetch={"restartCount": 4} | UNREACHABLE)],
        Reason.S3_UNREACHABLE,
        "no route",
    ),
    "a healthy pod's old crash is no cause": (
        deployment(),
        [
            on_node(9000, "old", ready=True, server=RUNNING | {"restartCount": 1, "lastState": ended(1)}),
            pod("new"),
        ],
        Reason.SERVER_UNAVAILABLE,
        "Pod new is starting.",
    ),
    "the node rejected it": (
        deployment(),
        [pod("old", phase="Failed", reason="UnexpectedAdmissionError", message="no healthy devices")],
        Reason.POD_REJECTED,
        Saying("Pod old", "UnexpectedAdmissionError", "no healthy devices"),
    ),
}


@pytest.mark.parametrize("case", SERVERS)
def test_root_cause_of_what_serves(case: str) -> None:
    found, pods, reason, message = SERVERS[case]
    problem = serving_problem(found, pods)
    assert (problem.reason, problem.message) == (reason, message)


@pytest.mark.parametrize(
    ("found", "replicas", "available"),
    [
        (None, 1, False),
        (deployment(), 2, False),
        (deployment(updatedReplicas=2, availableReplicas=2), 2, True),
        (deployment(updatedReplicas=2, availableReplicas=2), 1, True),
        (deployment(updatedReplicas=2, availableReplicas=2), 3, False),
        (deployment(updatedReplicas=2, availableReplicas=1), 1, False),
        (deployment(updatedReplicas=1, availableReplicas=2), 2, False),
        (deployment(updatedReplicas=2, availableReplicas=2, observedGeneration=1), 2, False),
    ],
)
def test_available(found: dict[str, Any] | None, replicas: int, available: bool) -> None:
    assert is_available(found, replicas) is available
