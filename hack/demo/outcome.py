"""What the demo concludes from a resource's status, and how it retries a resource whose last attempt failed.

A status may still describe an earlier spec or an earlier artifact: that says nothing about what was just applied.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.adapterdeployment import AdapterDeployment, RevisionState, ServingPhase
from finetune_api.base import Condition
from finetune_api.finetunejob import ArtifactStatus, FineTuneJob, Phase
from finetune_operator.framework.conditions import timestamp
from hack.cluster.console import ClusterError


def is_current(resource: FineTuneJob | AdapterDeployment) -> bool:
    """Whether the status describes the current spec; only then are the other functions meaningful."""
    return resource.status.observed_generation >= resource.metadata.generation


def artifact_of(job: FineTuneJob) -> ArtifactStatus | None:
    """What the FineTuneJob has published; None until then.

    Raises:
        ClusterError: its run has failed; with its message.
    """
    status = job.status
    if status.phase is Phase.FAILED:
        raise ClusterError(f"the FineTuneJob failed: {_why(status.conditions)}")
    return status.artifact if status.phase is Phase.SUCCEEDED else None


def serves(deployment: AdapterDeployment, digest: str) -> bool:
    """Whether the artifact with this digest, and nothing else, is served.

    Raises:
        ClusterError: this artifact, or the spec, cannot be served; with the operator's message.
    """
    status, stable, candidate = deployment.status, deployment.status.stable, deployment.status.candidate
    if candidate and candidate.artifact_digest == digest and candidate.state is RevisionState.FAILED:
        raise ClusterError(f"the AdapterDeployment failed: {candidate.reason}: {candidate.message}")
    if candidate is None and status.phase is ServingPhase.FAILED:
        raise ClusterError(f"the AdapterDeployment failed: {_why(status.conditions)}")
    current = stable is not None and stable.artifact_digest == digest
    return current and candidate is None and status.phase is ServingPhase.READY


def rerun_of(resource: FineTuneJob | AdapterDeployment, now: datetime) -> str:
    """The ``spec.rerun`` to apply to an existing resource: a new value if its last attempt failed.

    Otherwise its own value: another one would start a new run of a finished job, and is refused while a run is active.
    """
    status = resource.status
    failed = status.phase in (Phase.FAILED, ServingPhase.FAILED)
    if isinstance(resource, AdapterDeployment) and (candidate := resource.status.candidate):
        failed |= candidate.state is RevisionState.FAILED
    return timestamp(now) if failed else resource.spec.rerun


def _why(conditions: list[Condition]) -> str:
    return next((f"{each.reason}: {each.message}" for each in conditions if each.type == "Ready"), "no reason given")
