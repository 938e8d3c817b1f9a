"""The health of a revision's pods: available, waiting for something, or failed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.pod import parse_result, pod_blocker, refusal
from finetune_operator.resources.deployment import FETCH

CRASHES: Final = 3
"""Restarts after which a crashing container counts as failed."""
PULL_PATIENCE_SECONDS: Final = 300.0
"""How long a failing image pull may be a passing fault of the registry."""


@dataclass(frozen=True)
class CandidateProblem:
    """Why a candidate does not become available."""

    reason: Reason
    message: str
    fatal: bool = False
    """True: waiting does not help."""


def is_available(deployment: Object | None, replicas: int) -> bool:
    """Whether the Deployment asks for at least so many pods, and all of its pods are up to date and available."""
    if deployment is None:
        return False
    status, wanted = deployment.get("status") or {}, int(deployment["spec"].get("replicas", 1))
    return bool(
        wanted >= replicas
        and status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 1)
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("availableReplicas", 0) >= wanted
    )


def candidate_problem(deployment: Object | None, pods: Sequence[Object], age_seconds: float) -> CandidateProblem | None:
    """The worst problem that keeps a candidate from becoming available; None if none is known."""
    refused = [condition.get("message", "") for condition in _conditions(deployment, "ReplicaFailure", "True")]
    problems = [problem for pod in pods for problem in _pod_problems(pod)]
    problems += [CandidateProblem(*refusal(message)) for message in refused]
    worst = min(problems, key=lambda problem: not problem.fatal, default=None)
    if worst is not None and worst.fatal:
        return worst
    if worst is not None and worst.reason is Reason.IMAGE_PULL_FAILED and age_seconds >= PULL_PATIENCE_SECONDS:
        return replace(worst, fatal=True)
    if deployment is not None and any(
        condition.get("reason") == "ProgressDeadlineExceeded"
        for condition in _conditions(deployment, "Progressing", "False")
    ):
        seconds = deployment["spec"]["progressDeadlineSeconds"]
        root = worst or CandidateProblem(Reason.DEADLINE_EXCEEDED, "The server did not become ready.")
        return CandidateProblem(root.reason, f"Not available after {seconds} s. {root.message}", fatal=True)
    return worst


def _pod_problems(pod: Object) -> Iterator[CandidateProblem]:
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        ended = _last_end(container)
        if ended is not None and ended["exitCode"] != ExitCode.OK:
            yield _container_problem(container, ended)
    blocker = pod_blocker(pod)
    if blocker is not None:
        yield CandidateProblem(*blocker)


def _container_problem(container: Object, ended: Object) -> CandidateProblem:
    """Why a container ended; the kubelet keeps restarting it."""
    name, restarts = container["name"], container.get("restartCount", 0)
    result = parse_result(ended.get("message")) if name == FETCH else None
    fatal = restarts >= CRASHES and ended["exitCode"] != ExitCode.RETRIABLE
    if result is not None:
        return CandidateProblem(result.reason, result.message, fatal or ended["exitCode"] == ExitCode.FATAL)
    if ended.get("reason") == "OOMKilled":
        return CandidateProblem(Reason.OUT_OF_MEMORY, f"Container {name!r} used more memory than its limit.", fatal)
    reason = Reason.STAGE_CRASHED if name == FETCH else Reason.CANDIDATE_FAILED
    return CandidateProblem(
        reason, f"Container {name!r} exited with code {ended['exitCode']} after {restarts} restarts.", fatal
    )


def _last_end(container: Object) -> Object | None:
    """How a container ended; for one that was restarted, how it ended before."""
    for state in ("state", "lastState"):
        ended: Object | None = (container.get(state) or {}).get("terminated")
        if ended is not None:
            return ended
    return None


def _conditions(deployment: Object | None, kind: str, status: str) -> list[Object]:
    conditions = ((deployment or {}).get("status") or {}).get("conditions") or []
    return [condition for condition in conditions if condition["type"] == kind and condition["status"] == status]
