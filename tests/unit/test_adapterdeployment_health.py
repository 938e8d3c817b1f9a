"""What keeps a candidate from serving, read from its Deployment and pods: the root cause, and whether to wait."""

from typing import Any

import pytest

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.adapterdeployment.health import PULL_PATIENCE_SECONDS, candidate_problem, is_available

pytestmark = pytest.mark.unit


def deployment(*conditions: dict[str, Any], **status: int) -> dict[str, Any]:
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": 2, "progressDeadlineSeconds": 2700},
        "status": {"observedGeneration": 2, "conditions": list(conditions)} | status,
    }


def pod(*, fetch: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "demo-1-x"},
        "status": {
            "initContainerStatuses": [{"name": "fetch", "image": "data:1", "restartCount": 0} | (fetch or {})],
            "containerStatuses": [{"name": "server", "image": "tgi:1", "restartCount": 0} | (server or {})],
        }
        | status,
    }


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def report(reason: Reason, message: str) -> str:
    result = StageResult(stage=Stage.FETCH, outcome=Outcome.FAILED, reason=reason, message=message)
    return result.model_dump_json(by_alias=True)


LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
BACKOFF = {"waiting": {"reason": "CrashLoopBackOff"}}
PULLING = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
UNSCHEDULABLE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: insufficient GPU"}
]


def refused(message: str) -> dict[str, Any]:
    return {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}


CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], float, tuple[Reason, bool] | None]] = {
    "nothing is known": (deployment(), [], 0, None),
    "all is well": (
        deployment(),
        [pod(fetch={"state": ended(0, reason="Completed")}, server={"state": {"running": {}}})],
        0,
        None,
    ),
    "the artifact is damaged": (
        deployment(),
        [pod(fetch={"state": ended(ExitCode.FATAL, report(Reason.ARTIFACT_CORRUPT, "another hash"))})],
        0,
        (Reason.ARTIFACT_CORRUPT, True),
    ),
    "the kubelet tries again, the reason is known from before": (
        deployment(),
        [pod(fetch={"state": BACKOFF, "lastState": ended(ExitCode.FATAL, report(Reason.ARTIFACT_NOT_FOUND, "404"))})],
        0,
        (Reason.ARTIFACT_NOT_FOUND, True),
    ),
    "the store does not answer, again and again": (
        deployment(),
        [
            pod(
                fetch={
                    "restartCount": 9,
                    "state": BACKOFF,
                    "lastState": ended(ExitCode.RETRIABLE, report(Reason.S3_UNREACHABLE, "no route")),
                }
            )
        ],
        0,
        (Reason.S3_UNREACHABLE, False),
    ),
    "the store does not answer until the deadline": (
        deployment(LATE),
        [pod(fetch={"state": BACKOFF, "lastState": ended(ExitCode.RETRIABLE, report(Reason.S3_UNREACHABLE, "-"))})],
        2800,
        (Reason.S3_UNREACHABLE, True),
    ),
    "fetch was killed once": (
        deployment(),
        [pod(fetch={"restartCount": 1, "state": {"running": {}}, "lastState": ended(137, reason="OOMKilled")})],
        0,
        (Reason.OUT_OF_MEMORY, False),
    ),
    "fetch fell over its own feet too often": (
        deployment(),
        [pod(fetch={"restartCount": 3, "state": BACKOFF, "lastState": ended(1)})],
        0,
        (Reason.STAGE_CRASHED, True),
    ),
    "the server died once": (
        deployment(),
        [pod(server={"restartCount": 1, "state": {"running": {}}, "lastState": ended(1)})],
        0,
        (Reason.CANDIDATE_FAILED, False),
    ),
    "the server dies again and again": (
        deployment(),
        [pod(server={"restartCount": 3, "state": BACKOFF, "lastState": ended(1)})],
        0,
        (Reason.CANDIDATE_FAILED, True),
    ),
    "the server needs more memory": (
        deployment(),
        [pod(server={"restartCount": 3, "state": BACKOFF, "lastState": ended(137, reason="OOMKilled")})],
        0,
        (Reason.OUT_OF_MEMORY, True),
    ),
    "a server that printed JSON is no stage": (
        deployment(),
        [pod(server={"restartCount": 3, "lastState": ended(65, report(Reason.ARTIFACT_CORRUPT, "-"))})],
        0,
        (Reason.CANDIDATE_FAILED, True),
    ),
    "the registry hiccups": (deployment(), [pod(server={"state": PULLING})], 10, (Reason.IMAGE_PULL_FAILED, False)),
    "the registry is out of patience": (
        deployment(),
        [pod(server={"state": PULLING})],
        PULL_PATIENCE_SECONDS,
        (Reason.IMAGE_PULL_FAILED, True),
    ),
    "the init container's image is missing": (
        deployment(),
        [pod(fetch={"state": PULLING})],
        PULL_PATIENCE_SECONDS,
        (Reason.IMAGE_PULL_FAILED, True),
    ),
    "a Secret is missing": (
        deployment(),
        [
            pod(
                fetch={
                    "state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}
                }
            )
        ],
        0,
        (Reason.SECRET_MISSING, False),
    ),
    "no node fits": (deployment(), [pod(conditions=UNSCHEDULABLE)], 0, (Reason.UNSCHEDULABLE, False)),
    "no node fits until the deadline": (
        deployment(LATE),
        [pod(conditions=UNSCHEDULABLE)],
        2800,
        (Reason.UNSCHEDULABLE, True),
    ),
    "the quota is used up": (
        deployment(refused('pods "x" is forbidden: exceeded quota: gpus')),
        [],
        0,
        (Reason.QUOTA_EXCEEDED, False),
    ),
    "admission refuses the pod": (
        deployment(refused('pods "x" is forbidden: violates PodSecurity "restricted"')),
        [],
        0,
        (Reason.POD_REJECTED, False),
    ),
    "the model takes too long to load": (deployment(LATE), [pod()], 2800, (Reason.DEADLINE_EXCEEDED, True)),
    "the fatal cause of one pod counts more than another's wait": (
        deployment(),
        [
            pod(conditions=UNSCHEDULABLE),
            pod(fetch={"state": ended(ExitCode.FATAL, report(Reason.S3_ACCESS_DENIED, "403"))}),
        ],
        0,
        (Reason.S3_ACCESS_DENIED, True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_root_cause(case: str) -> None:
    found, pods, age, expected = CASES[case]
    problem = candidate_problem(found, pods, age)
    assert (None if problem is None else (problem.reason, problem.fatal)) == expected


def test_a_deadline_names_what_was_waited_for() -> None:
    problem = candidate_problem(deployment(LATE), [pod(conditions=UNSCHEDULABLE)], 2800)
    assert problem is not None
    assert problem.message.startswith("Not available after 2700 s.")
    assert "insufficient GPU" in problem.message


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
