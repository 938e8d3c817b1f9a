"""What the demo concludes from a resource's status, and how it retries a resource whose last attempt failed.

A status may still describe an earlier spec or an earlier artifact: that says nothing about what was just applied.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.base import Condition
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import ArtifactStatus, Phase
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus, ServingPhase
from finetune_operator.framework.conditions import timestamp
from hack.cluster.console import ClusterError

_UNPROVED: Final = (Reason.VERIFICATION_FAILED, Reason.ADAPTER_INACTIVE)
"""A server was asked, and did not answer like the evaluated artifact."""


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


def block_of(job: FineTuneJob) -> str:
    """What a gate said of the model that the FineTuneJob has trained, so that it published nothing; empty until then.

    Raises:
        ClusterError: it has published, or failed for another reason.
    """
    status = job.status
    if status.phase is Phase.SUCCEEDED:
        raise ClusterError("the FineTuneJob published a model that its goals should have blocked")
    ready = next((each for each in status.conditions if each.type == "Ready"), None)
    if status.phase is not Phase.FAILED or ready is None:
        return ""
    if ready.reason != Reason.GATE_FAILED:
        raise ClusterError(f"the FineTuneJob failed: {_why(status.conditions)}")
    return ready.message


def serves(deployment: AdapterDeployment, *digests: str) -> bool:
    """Whether the artifact with this digest, or the adapters with these, and nothing else, is served.

    Raises:
        ClusterError: this artifact, or the spec, cannot be served; with the operator's message.
    """
    status, stable, candidate = deployment.status, deployment.status.stable, deployment.status.candidate
    if candidate and _holds(candidate, digests) and candidate.state is RevisionState.FAILED:
        raise ClusterError(f"the AdapterDeployment failed: {candidate.reason}: {candidate.message}")
    if candidate is None and status.phase is ServingPhase.FAILED:
        raise ClusterError(f"the AdapterDeployment failed: {_why(status.conditions)}")
    current = stable is not None and _holds(stable, digests)
    return current and candidate is None and status.phase is ServingPhase.READY


def refusal_of(deployment: AdapterDeployment, digest: str) -> str:
    """What the artifact with this digest could not prove, while another one keeps the traffic; empty until that is so.

    Raises:
        ClusterError: it is served, or nothing is; or it has failed for another reason, with the operator's message.
    """
    status = deployment.status
    if status.stable is None or _holds(status.stable, [digest]):
        raise ClusterError("the AdapterDeployment serves an artifact with wrong weights, or nothing")
    candidate = status.candidate
    if candidate is None or not _holds(candidate, [digest]) or candidate.state is not RevisionState.FAILED:
        return ""
    if candidate.reason not in _UNPROVED:
        raise ClusterError(f"the AdapterDeployment failed: {candidate.reason}: {candidate.message}")
    return f"{candidate.reason}: {candidate.message}"


def rerun_of(resource: FineTuneJob | AdapterDeployment, now: datetime) -> str:
    """The ``spec.rerun`` to apply to an existing resource: a new value if its last attempt failed.

    Otherwise its own value: another one would start a new run of a finished job, and is refused while a run is active.
    """
    status = resource.status
    failed = status.phase in (Phase.FAILED, ServingPhase.FAILED)
    if isinstance(resource, AdapterDeployment) and (candidate := resource.status.candidate):
        failed |= candidate.state is RevisionState.FAILED
    return timestamp(now) if failed else resource.spec.rerun


def _holds(revision: RevisionStatus, digests: Collection[str]) -> bool:
    """Whether the revision is of these artifacts."""
    held = [adapter.artifact_digest for adapter in revision.adapters] or [revision.artifact_digest]
    return sorted(held) == sorted(digests)


def _why(conditions: list[Condition]) -> str:
    return next((f"{each.reason}: {each.message}" for each in conditions if each.type == "Ready"), "no reason given")
