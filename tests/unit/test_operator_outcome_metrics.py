"""Root causes of an evaluation's pod: what its containers with the models' answers and the metrics together mean."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.job import State, judge
from finetune_operator.outcome.metric import within_time
from tests.support.sentences import assert_says
from tests.support.stage_objects import (
    failure,
    pod,
    success,
    waiting,
)
from tests.unit.test_operator_outcome import ACTIVE, EARLIER, FAILED

pytestmark = pytest.mark.unit


def measuring(phase: str, *statuses: Object, **more: Any) -> Object:
    """A pod of an evaluation with metric containers, whose last container has not started."""
    return pod(phase, initContainerStatuses=list(statuses), **waiting("PodInitializing"), **more)


def before(name: str, **state: Any) -> Object:
    """The status of a container before the last."""
    return {"name": name, "state": state}


DONE: Object = {"terminated": {"exitCode": 0, "message": success(Stage.EVALUATE)}}
REFUSED: Object = {"terminated": {"exitCode": 65, "message": failure(Reason.MODEL_UNSUPPORTED, "no template")}}
CRASHED: Object = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no\nsuch   task"}}
KILLED: Object = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
PRETENDS: Object = {"terminated": {"exitCode": 1, "message": failure(Reason.GATE_FAILED, "all is well")}}
MEASURING: dict[str, tuple[Object, Object, State, Reason, tuple[str, ...]]] = {
    "asks": (ACTIVE, measuring("Pending", before("answers", running={})), State.RUNNING, Reason.STAGE_STARTED, ()),
    "starts": (
        ACTIVE,
        measuring("Pending", before("answers", waiting={})),
        State.WAITING,
        Reason.WAITING,
        ("starting",),
    ),
    "measures": (
        ACTIVE,
        measuring("Pending", before("answers", **DONE), before("metric-brevity", running={})),
        State.RUNNING,
        Reason.STAGE_STARTED,
        (),
    ),
    "the answers failed": (
        ACTIVE,
        measuring("Failed", before("answers", **REFUSED), before("metric-brevity", waiting={})),
        State.FAILED,
        Reason.MODEL_UNSUPPORTED,
        ("no template",),
    ),
    "a metric crashed": (
        FAILED,
        measuring("Failed", before("answers", **DONE), before("metric-brevity", **CRASHED)),
        State.FAILED,
        Reason.METRIC_FAILED,
        ("Metric 'brevity' exited with code 3: no such task.", "kubectl logs pod-1 -c metric-brevity"),
    ),
    "a metric needs more memory": (
        FAILED,
        measuring("Failed", before("answers", **DONE), before("metric-brevity", **KILLED)),
        State.FAILED,
        Reason.METRIC_FAILED,
        ("'brevity' was killed for using more memory",),
    ),
    "a metric's word is no result": (
        FAILED,
        measuring("Failed", before("answers", **DONE), before("metric-brevity", **PRETENDS)),
        State.FAILED,
        Reason.METRIC_FAILED,
        ("exited with code 1",),
    ),
    "a metric was at work at the deadline": (
        ACTIVE,
        measuring("Failed", before("answers", **DONE), before("metric-brevity", **KILLED), reason="DeadlineExceeded"),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        ("Metric 'brevity' was running",),
    ),
}


@pytest.mark.parametrize("case", MEASURING.values(), ids=list(MEASURING))
def test_what_comes_before_the_last_container(case: tuple[Object, Object, State, Reason, tuple[str, ...]]) -> None:
    given_job, given_pod, state, reason, parts = case
    verdict = judge(given_job, [given_pod])
    assert (verdict.state, verdict.reason) == (state, reason)
    if parts:
        assert_says(verdict.message, *parts)


@pytest.mark.parametrize(("seconds", "late"), [(59, False), (61, True)])
def test_a_metric_has_its_time(seconds: int, late: bool) -> None:
    """Kubernetes has no deadline for one container of a pod: the Job is ended, since it would try again."""
    began = parse_timestamp(EARLIER)
    running = before("metric-brevity", running={"startedAt": EARLIER})
    given = measuring("Pending", before("answers", **DONE), running)
    given["metadata"]["annotations"] = {meta.ANNOTATION_METRIC_SECONDS: '{"brevity":60,"other":1}'}
    verdict = within_time(judge(ACTIVE, [given]), [given], began + timedelta(seconds=seconds))
    assert verdict.state is (State.FAILED if late else State.RUNNING)
    if late:
        assert (verdict.reason, verdict.tries_again) == (Reason.METRIC_FAILED, True)
        assert_says(verdict.message, "'brevity'", "60 s", "timeoutSeconds")
