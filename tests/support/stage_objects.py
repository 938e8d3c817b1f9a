"""Jobs, pods and events of stages as the API shows them, for tables of what was observed."""

from __future__ import annotations

from typing import Any

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.framework.objects import Object

CREATED = "2026-01-01T00:00:00Z"
ENDED = "2026-01-01T00:10:00Z"


def job(stage: Stage = Stage.TRAIN, *, spec: Object | None = None, **status: Any) -> Object:
    """A stage's Job."""
    metadata = {
        "name": f"ft-{stage}-0123456789",
        "namespace": "team",
        "uid": "job-uid",
        "creationTimestamp": CREATED,
        "labels": {meta.LABEL_STAGE: stage.value, meta.LABEL_RUN: "run"},
    }
    return {"metadata": metadata, "spec": spec or {}, "status": {"startTime": CREATED} | status}


def ended(kind: str, reason: str = "", message: str = "") -> Object:
    """The part of a Job's status that says that it has ended."""
    condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": ENDED}
    return {"conditions": [condition], "completionTime": ENDED}


def pod(phase: str = "Pending", *, name: str = "pod-1", created: str = CREATED, **status: Any) -> Object:
    """A stage's pod."""
    return {"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": phase} | status}


def terminated(exit_code: int, reason: str = "Error", message: str = "") -> Object:
    """Container statuses of a pod that has ended."""
    state = {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "stage", "state": state}]}


def waiting(reason: str, message: str = "") -> Object:
    """Container statuses of a pod that waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "stage", "image": "example/jobs:1", "state": state}]}


def unschedulable(message: str) -> Object:
    """Conditions of a pod that no node takes."""
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


def disrupted(message: str) -> Object:
    """Conditions of a pod that a drain or preemption ended."""
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "message": message}]}


def failed_create(message: str, when: str = CREATED) -> Object:
    """An event of a Job that could not create its pod."""
    return {"reason": "FailedCreate", "message": f"Error creating: {message}", "lastTimestamp": when}


def success(stage: Stage = Stage.TRAIN, output: str = "a" * 64, **more: Any) -> str:
    """Termination message of a stage that did its work."""
    result = StageResult(
        stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, output_digest=output, **more
    )
    return result.model_dump_json(by_alias=True)


def failure(reason: Reason, message: str, stage: Stage = Stage.TRAIN) -> str:
    """Termination message of a stage that failed."""
    return StageResult(stage=stage, outcome=Outcome.FAILED, reason=reason, message=message).model_dump_json()
