"""What the demo concludes from a resource's status, and what it asks of one whose last attempt has failed.

A status may still speak of an earlier spec, or of an earlier artifact: that is no answer to what was just applied.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.adapterdeployment import AdapterDeployment, RevisionState, ServingPhase
from finetune_api.base import Condition
from finetune_api.finetunejob import ArtifactStatus, FineTuneJob, Phase
from finetune_operator.conditions import timestamp
from hack.cluster.console import ClusterError


def is_current(resource: FineTuneJob | AdapterDeployment) -> bool:
    """Whether the status speaks of the present spec; only then do the other answers mean anything."""
    return resource.status.observed_generation >= resource.metadata.generation


def artifact_of(job: FineTuneJob) -> ArtifactStatus | None:
    """What the FineTuneJob has published; None until then.

    Raises:
        ClusterError: its run has failed; in its own words.
    """
    status = job.status
    if status.phase is Phase.FAILED:
        raise ClusterError(f"the FineTuneJob failed: {_why(status.conditions)}")
    return status.artifact if status.phase is Phase.SUCCEEDED else None


def serves(deployment: AdapterDeployment, digest: str) -> bool:
    """Whether the artifact of this digest, and nothing else, is served.

    Raises:
        ClusterError: this artifact, or the spec, cannot be served; in the operator's words.
    """
    status, stable, candidate = deployment.status, deployment.status.stable, deployment.status.candidate
    if candidate and candidate.artifact_digest == digest and candidate.state is RevisionState.FAILED:
        raise ClusterError(f"the AdapterDeployment failed: {candidate.reason}: {candidate.message}")
    if candidate is None and status.phase is ServingPhase.FAILED:
        raise ClusterError(f"the AdapterDeployment failed: {_why(status.conditions)}")
    current = stable is not None and stable.artifact_digest == digest
    return current and candidate is None and status.phase is ServingPhase.READY


def rerun_of(resource: FineTuneJob | AdapterDeployment, now: datetime) -> str:
    """The ``spec.rerun`` to apply to a resource that is there: a new one where its last attempt has failed.

    Otherwise its own, because another value would start a new run of a finished job, and is refused while one runs.
    """
    status = resource.status
    failed = status.phase in (Phase.FAILED, ServingPhase.FAILED)
    if isinstance(resource, AdapterDeployment) and (candidate := resource.status.candidate):
        failed |= candidate.state is RevisionState.FAILED
    return timestamp(now) if failed else resource.spec.rerun


def _why(conditions: list[Condition]) -> str:
    return next((f"{each.reason}: {each.message}" for each in conditions if each.type == "Ready"), "no reason given")
