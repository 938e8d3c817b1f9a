"""What a stage says when its node refuses a pod, cannot start it, or is lost with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import PODS, Object
from finetune_operator.framework.stripped import pack, unpack
from finetune_operator.outcome.job import State, Verdict, judge
from tests.support.sentences import assert_says
from tests.support.stage_objects import CREATED, ended, job, pod, terminated, waiting

pytestmark = pytest.mark.unit

BACKOFF = ended("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
NO_GPU: Object = {
    "reason": "UnexpectedAdmissionError",
    "message": "Pod was rejected: Allocate failed due to no healthy devices present",
}
NO_DRIVER = "OCI runtime create failed: nvidia-container-cli: initialization error: load library failed"


def conditions(**values: str) -> Object:
    return {"conditions": [{"type": kind, "status": value} for kind, value in values.items()]}


SILENT = conditions(Ready="False", ContainersReady="True")
"""The node controller takes Ready away; nobody but the node speaks of its containers."""


def placed(phase: str = "Running", *, deleted: bool = False, **status: Any) -> Object:
    """A pod with a node, as the cache keeps it."""
    made = pod(phase, **status)
    made["spec"] = {"nodeName": "gpu-7"}
    made["metadata"] |= {"deletionTimestamp": CREATED} if deleted else {}
    return unpack(pack(PODS, made))


@pytest.mark.parametrize("over", [True, False], ids=["at every attempt", "at one"])
def test_a_pod_that_its_node_refuses_says_so(over: bool) -> None:
    """It never had a container, and the Job counts it as a failure. The status said that it had no pod, or was gone."""
    verdict = judge(job(**(BACKOFF if over else {"failed": 1})), (placed("Failed", **NO_GPU),))
    assert (verdict.state, verdict.reason) == (
        (State.FAILED, Reason.STAGE_CRASHED) if over else (State.WAITING, Reason.STAGE_RETRIED)
    )
    assert_says(verdict.message, "Pod pod-1", "refused by its node", "UnexpectedAdmissionError", "no healthy devices")


def test_a_container_that_the_node_cannot_start_says_why() -> None:
    verdict = judge(job(**BACKOFF), (placed("Failed", **terminated(128, "StartError", NO_DRIVER)),))
    assert (verdict.state, verdict.reason) == (State.FAILED, Reason.STAGE_CRASHED)
    assert_says(verdict.message, "could not start pod pod-1", "load library failed")


@pytest.mark.parametrize(("deleted", "state"), [(False, State.RUNNING), (True, State.WAITING)])
def test_a_stage_on_a_lost_node_says_so(deleted: bool, state: State) -> None:
    """The kubelet alone ends a pod and its deadline: on a node that is gone the pod runs for ever. When Kubernetes has
    given up waiting, the pod is to be deleted, and its Job waits for its end."""
    verdict = judge(job(active=1), (placed(deleted=deleted, podIP="10.0.0.1", **SILENT),))
    assert (verdict.state, verdict.reason, verdict.pod_ip) == (state, Reason.NODE_LOST, "")
    assert_says(verdict.message, "Node gpu-7 of pod pod-1", "does not answer")


BEGUN: Object = {"initContainerStatuses": [{"name": "evaluate", "state": {"running": {"startedAt": CREATED}}}]}
"""The phase of a pod is Pending until its last init container has ended."""


@pytest.mark.parametrize(
    ("phase", "status"),
    [
        pytest.param("Pending", {}, id="its containers were never created"),
        pytest.param("Pending", waiting("ImagePullBackOff"), id="its image was being pulled"),
        pytest.param("Pending", BEGUN, id="its init containers ran"),
        pytest.param(
            "Running", conditions(Ready="False", ContainersReady="False"), id="one of its containers had ended"
        ),
    ],
)
def test_a_pod_that_nobody_ends_was_on_a_node_that_is_lost(phase: str, status: Object) -> None:
    """No condition of such a pod changes. Kubernetes deletes it after some minutes, which only its node can complete:
    the status said that it was starting, for ever."""
    given, grace = placed(phase, deleted=True, **status), parse_timestamp(CREATED)
    before, after = (judge(job(active=1), (given,), (), grace + timedelta(seconds=wait)) for wait in (59, 61))
    assert before.reason is not Reason.NODE_LOST
    assert (after.state, after.reason) == (State.WAITING, Reason.NODE_LOST)
    assert_says(after.message, "Node gpu-7 does not answer", "cannot end pod pod-1")


@pytest.mark.parametrize(("deleted", "said"), [(False, "starting"), (True, "deleted before it has started")])
def test_a_pod_that_is_deleted_is_not_said_to_start(deleted: bool, said: str) -> None:
    verdict = judge(job(active=1), (placed("Pending", deleted=deleted),), (), parse_timestamp(CREATED))
    assert (verdict.state, verdict.reason) == (State.WAITING, Reason.WAITING)
    assert_says(verdict.message, "pod-1", said)


def test_a_pod_without_a_node_has_lost_none() -> None:
    """The API server removes it at once; what a finalizer keeps there is no node's."""
    given = placed("Pending", deleted=True)
    given["spec"] = {}
    verdict = judge(job(active=1), (given,), (), parse_timestamp(CREATED) + timedelta(hours=1))
    assert verdict.reason is Reason.WAITING


GATED = {"conditions": [{"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}]}
GATED["conditions"] += conditions(ContainersReady="True")["conditions"]


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({}, id="nothing is known"),
        pytest.param(conditions(Ready="True", ContainersReady="True"), id="ready"),
        pytest.param(conditions(Ready="False", ContainersReady="False"), id="a probe fails, or it ends"),
        pytest.param(GATED, id="a gate of somebody else's is closed"),
    ],
)
@pytest.mark.parametrize("deleted", [False, True])
def test_a_node_that_answers_is_not_lost(status: Object, deleted: bool) -> None:
    verdict: Verdict = judge(job(active=1), (placed(deleted=deleted, **status),))
    assert (verdict.state, verdict.reason) == (State.RUNNING, Reason.STAGE_STARTED)
