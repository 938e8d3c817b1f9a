"""What every demo does with a resource: apply it and show its progress until it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from rich.text import Text

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import ArtifactStatus, Phase
from finetune_api.serving_status import ServingPhase
from hack.cluster.console import ClusterError, say
from hack.demo import display, outcome
from hack.platform.kubectl import Kubectl, Object

R = TypeVar("R", FineTuneJob, AdapterDeployment)
T = TypeVar("T")

JOB_TIMEOUT = 3600
ROLLOUT_TIMEOUT = 2400


def apply(kubectl: Kubectl, wanted: Object, model: type[FineTuneJob | AdapterDeployment]) -> str:
    """Create or update a resource and return its name; a failed one is retried."""
    kind, name = wanted["kind"].lower(), str(wanted["metadata"]["name"])
    if kubectl.exists(kind, name):
        before = model.model_validate(kubectl.get(kind, name))
        if rerun := outcome.rerun_of(before, datetime.now(UTC)):
            wanted = wanted | {"spec": wanted["spec"] | {"rerun": rerun}}
        if rerun != before.spec.rerun:
            say(f"  ! {model.__name__} {name} failed before: retrying with spec.rerun={rerun}; finished work is reused")
    kubectl.apply(wanted)
    return name


def follow_job(kubectl: Kubectl, name: str) -> tuple[FineTuneJob, ArtifactStatus]:
    """Show the FineTuneJob until it has published; raises ClusterError with its message if it fails."""

    def result(job: FineTuneJob) -> tuple[FineTuneJob, ArtifactStatus] | None:
        artifact = outcome.artifact_of(job)
        return (job, artifact) if artifact else None

    return _follow_job(kubectl, name, result)


def follow_block(kubectl: Kubectl, name: str) -> str:
    """Show the FineTuneJob until a gate has blocked what it trained; returns what the gate said. Raises ClusterError if
    it publishes, or fails for another reason."""
    return _follow_job(kubectl, name, outcome.block_of)


def follow_deployment(kubectl: Kubectl, name: str, *digests: str) -> AdapterDeployment:
    """Show the AdapterDeployment until it serves the artifact with this digest, or the adapters with these; raises
    ClusterError if it cannot."""
    return _follow_deployment(kubectl, name, lambda found: found if outcome.serves(found, *digests) else None)


def follow_refusal(kubectl: Kubectl, name: str, digest: str) -> str:
    """Show the AdapterDeployment until the artifact with this digest has failed its verification; returns why. Raises
    ClusterError if it is served."""
    return _follow_deployment(kubectl, name, lambda found: outcome.refusal_of(found, digest))


def _follow_job(kubectl: Kubectl, name: str, result: Callable[[FineTuneJob], T | None]) -> T:
    say(f"  … run FineTuneJob {name} (`kubectl -n {kubectl.namespace} get ftj -w` shows it too)")

    def show(screen: display.Screen, job: FineTuneJob) -> T | None:
        phase = job.status.phase or Phase.PENDING
        title = f"FineTuneJob {name}: {phase.value} {job.status.stages_done}"
        screen.show(title, lambda: display.job_table(job.status), display.job_lines(job.status))
        return result(job)

    return _follow(lambda: FineTuneJob.model_validate(kubectl.get("ftj", name)), show, JOB_TIMEOUT)


def _follow_deployment(kubectl: Kubectl, name: str, result: Callable[[AdapterDeployment], T | None]) -> T:
    say(f"  … roll out AdapterDeployment {name} (`kubectl -n {kubectl.namespace} get adep -w` shows it too)")

    def show(screen: display.Screen, deployment: AdapterDeployment) -> T | None:
        status = deployment.status
        phase = status.phase or ServingPhase.PENDING
        lines = display.deployment_lines(status)
        screen.show(f"AdapterDeployment {name}: {phase.value}", lambda: Text("\n".join(lines)), lines)
        return result(deployment)

    return _follow(lambda: AdapterDeployment.model_validate(kubectl.get("adep", name)), show, ROLLOUT_TIMEOUT)


def _follow(read: Callable[[], R], show: Callable[[display.Screen, R], T | None], timeout: float) -> T:
    """Show a resource, while its status describes its current spec, until ``show`` returns a result."""
    deadline = time.monotonic() + timeout
    with display.Screen() as screen:
        while True:
            current = read()
            if outcome.is_current(current) and (answer := show(screen, current)):
                return answer
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{current.kind} {current.metadata.name} did not finish within {timeout / 60:.0f} minutes"
                )
            time.sleep(1)
