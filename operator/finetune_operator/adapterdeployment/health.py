"""The health of a revision's pods: available, waiting for something, or failed, and why. Pure.

A candidate that holds no hardware may wait for as long as it takes: no node fits, a quota is used up, a policy refuses
the pod. The clock runs for a pod that has a node: if it is not ready in time, the hardware is for others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple

from finetune_api.meta import ExitCode
from finetune_api.reasons import UNSCHEDULABLE_MINUTES, Reason
from finetune_api.serving_status import VerificationCheck
from finetune_api.stages import StageResult
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.pod import find_condition, parse_result, pod_blocker, pod_failure, refusal
from finetune_operator.resources.client_proxy import PROXY
from finetune_operator.resources.deployment import FETCH, SERVER
from finetune_operator.resources.self_check import SELF_CHECK

CRASHES: Final = 3
"""Restarts after which a crashing container counts as failed, and pods after which their own fault does. Also those of
a self-check after which a server that it gets no answers from counts as one that does not answer."""
PULL_PATIENCE_SECONDS: Final = 300.0
"""How long a node may try to pull an image."""
UNANSWERED_SECONDS: Final = 60.0
"""For how long none of a new revision's pods may answer before the traffic goes back."""
HOLDS_NOTHING: Final = frozenset(
    {Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED, Reason.POD_REJECTED, Reason.RUNNER_SERVICE_ACCOUNT_MISSING}
)
"""What a pod waits for before it has a node."""
LONG_WAIT_SECONDS: Final = 60.0 * UNSCHEDULABLE_MINUTES
"""For how long a wait for hardware is nothing special: an autoscaler may be adding a node."""
NEEDS_SOMEBODY: Final = HOLDS_NOTHING | {Reason.ANALYSIS_INCONCLUSIVE}
"""What somebody should look after once a candidate has waited for it for so long."""
_PASSING: Final = HOLDS_NOTHING | {
    *(Reason.SECRET_MISSING, Reason.API_KEYS_MISSING, Reason.IMAGE_PULL_FAILED, Reason.S3_UNREACHABLE),
    Reason.CERTIFICATE_UNUSABLE,
    *(Reason.PREEMPTED, Reason.NODE_LOST),
}
"""What has its cause outside the revision: the same pods may start once it is gone."""


_NOT_SEEN: Final = frozenset({"Unknown", "ContainerStatusUnknown"})
"""Reasons for the end of a container that was gone when the node came back: containerd's (exit code 255), and the
kubelet's (137)."""


_NO_MODULE: Final = 1
"""How Python ends when the program is not in the image; the self-check itself never ends so."""


class Outlook(IntEnum):
    """What waiting can do about a problem, from the best to the worst."""

    WAIT = 0
    """It may pass by itself."""
    GIVE_BACK = 1
    """The same, but the pod has held its node for as long as it may: it goes, and is tried again later."""
    FAIL = 2
    """Waiting does not help."""


@dataclass(frozen=True)
class ServerProblem:
    """Why pods are not ready."""

    reason: Reason
    message: str
    outlook: Outlook = Outlook.WAIT
    checks: tuple[VerificationCheck, ...] = ()
    """What a pod's self-check compared, if that failed."""


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


def candidate_problem(deployment: Object | None, pods: Sequence[Object], now: datetime) -> ServerProblem | None:
    """The worst problem that keeps a candidate from becoming available; None if none is known."""
    if deployment is None:
        return None
    limit = float(deployment["spec"]["progressDeadlineSeconds"])
    ended = [found for pod in pods if (found := _ending(pod))]
    problems = [found for pod in pods if not _ending(pod) and (found := _in_time(pod, limit, now))]
    worst = max([*problems, *_refused(deployment), *ended], key=lambda problem: problem.outlook, default=None)
    if worst is not None and worst.outlook is Outlook.WAIT:
        own = [each for each in ended if each.reason not in (Reason.PREEMPTED, Reason.NODE_LOST)]
        return replace(own[-1], outlook=Outlook.FAIL) if len(own) >= CRASHES else worst
    return worst


def candidate_due_after(deployment: Object | None, pods: Sequence[Object], now: datetime) -> float | None:
    """Seconds until one of a candidate's pods has had its node for as long as it may; None if none has one."""
    if deployment is None:
        return None
    limits = (PULL_PATIENCE_SECONDS, float(deployment["spec"]["progressDeadlineSeconds"]))
    waits = [seconds for pod in pods if (seconds := _unready_seconds(pod, now)) is not None]
    return min((limit - seconds for seconds in waits for limit in limits if limit > seconds), default=None)


def serving_problem(deployment: Object | None, pods: Sequence[Object]) -> ServerProblem:
    """Why pods of what serves are not ready. ``pods`` include those that were lost."""
    missing = [pod for pod in pods if not _ending(pod) and not _is_ready(pod)]
    problems = [problem for pod in missing for problem in _pod_problems(pod)] + list(_refused(deployment))
    worst = max(problems, key=lambda problem: problem.outlook, default=None)
    lost = _last_loss(pods)
    said = [worst.message] if worst else [_starting(pod) for pod in missing[:1]]
    if lost:
        said.append(lost.message if not said else f"Before it: {lost.message}")
    cause = worst or lost
    if cause and cause.checks:
        return ServerProblem(Reason.SELF_CHECK_FAILED, " ".join(said))
    reason = cause.reason if cause and cause.reason is not Reason.CANDIDATE_FAILED else Reason.SERVER_UNAVAILABLE
    return ServerProblem(reason, " ".join(said) or "Its Deployment has no pod.")


class Sighting(NamedTuple):
    """What is seen of a revision that has taken over a short while ago."""

    problem: ServerProblem | None = None
    """Why it does not stand the traffic; given back rather than failed, if the cause is outside of it."""
    due_after: float | None = None
    """Seconds until it has not answered for too long, if it does not answer now."""


def watch(pods: Sequence[Object], since: datetime, now: datetime) -> Sighting:
    """Whether the pods of a revision stand the traffic, which they have had since a time. A pod that is new and loads
    its model says nothing."""
    present = [pod for pod in pods if not _ending(pod)]
    for pod in present:
        if crashed := _crash_loop(pod, since):
            return Sighting(replace(crashed, outlook=Outlook.FAIL))
    if any(map(_is_ready, present)):
        return Sighting()
    wrong = disproved(present)
    if wrong and len(wrong) == len(present):
        said = f"Each of its pods fails its self-check. {wrong[-1].message}"
        return Sighting(replace(wrong[-1], message=said, outlook=Outlook.FAIL))
    silent = [seconds for pod in present if _has_served(pod) and (seconds := _unready_seconds(pod, now)) is not None]
    if not silent:
        return Sighting()
    if (left := UNANSWERED_SECONDS - min(silent)) > 0:
        return Sighting(due_after=left)
    problems = [problem for pod in present for problem in _pod_problems(pod)]
    worst = max(problems, key=lambda problem: problem.outlook, default=None)
    said = f"None of its pods has answered for {UNANSWERED_SECONDS:.0f} s."
    if worst is None:
        return Sighting(ServerProblem(Reason.CANDIDATE_FAILED, said, Outlook.FAIL))
    if worst.reason in (Reason.API_KEYS_MISSING, Reason.CERTIFICATE_UNUSABLE):
        return Sighting()  # whatever could take over needs the same Secret
    outlook = Outlook.GIVE_BACK if worst.reason in _PASSING else Outlook.FAIL
    return Sighting(ServerProblem(worst.reason, f"{said} {worst.message}", outlook))


def disproved(pods: Iterable[Object]) -> list[ServerProblem]:
    """Why pods fail their self-check, and get no requests. While it is being made again, the one before counts."""
    found = []
    for pod in pods:
        check = _named(pod, SELF_CHECK)
        ended = _last_end(check)
        failed = ended is not None and ended["exitCode"] == ExitCode.FATAL and not check.get("ready")
        if ended is not None and failed and not _ending(pod):
            found.append(_container_problem(pod["metadata"]["name"], check, ended))
    return found


def _crash_loop(pod: Object, since: datetime) -> ServerProblem | None:
    """Why a pod's server has ended for the third time or more; None if it has not.

    The count is that of the pod's whole life, so that the pods of an earlier revision bring theirs along. It counts if
    the last run, which ended, was not the first since the revision took over.
    """
    for container in _containers(pod):
        ended = _last_end(container)
        if container["name"] != SERVER or ended is None or ended["exitCode"] == ExitCode.OK or _went_with_node(ended):
            continue
        times = [parse_timestamp(ended[field]) for field in ("startedAt", "finishedAt") if ended.get(field)]
        if any(time < since for time in times):
            continue
        if container.get("restartCount", 0) >= CRASHES:
            return _container_problem(pod["metadata"]["name"], container, ended)
    return None


def crash_since(pods: Sequence[Object], since: datetime) -> ServerProblem | None:
    """Why a server has ended since a time, be it once; None if none has. One that was lost with its node, or had to
    leave it, has not crashed; where its node has restarted, it is given back, unless another one has crashed."""
    return max(_ends_since(pods, since), key=lambda problem: problem.outlook, default=None)


def _ends_since(pods: Sequence[Object], since: datetime) -> Iterator[ServerProblem]:
    """Why servers have ended since a time, be it once."""
    for pod in pods:
        for container in _containers(pod):
            ended = _last_end(container)
            if container["name"] != SERVER or _ending(pod) or ended is None or ended["exitCode"] == ExitCode.OK:
                continue
            if ended.get("finishedAt") and parse_timestamp(ended["finishedAt"]) >= since:
                problem = _container_problem(pod["metadata"]["name"], container, ended)
                yield replace(problem, outlook=Outlook.GIVE_BACK if _went_with_node(ended) else Outlook.FAIL)


def _has_served(pod: Object) -> bool:
    """Whether a pod's server has been up in its time, and has been proved or disproved, or cannot be: what keeps it
    from being ready now is neither the loading nor the self-check."""
    server, check = _named(pod, SERVER), _named(pod, SELF_CHECK)
    if server.get("restartCount"):
        return True
    if not check or check.get("ready"):
        return bool(server.get("started"))
    ended = _last_end(check)
    if ended is None or not server.get("started"):
        return False
    # A server that has not answered it time and again does not answer. If anything else ended it, it proves on.
    unanswered = ended["exitCode"] == ExitCode.RETRIABLE and check.get("restartCount", 0) >= CRASHES
    return unanswered or ended["exitCode"] in (ExitCode.OK, ExitCode.FATAL)  # OK: its server has ended


def fetched(pod: Object) -> StageResult | None:
    """What a pod's ``fetch`` has said at its end; None: it has not ended, or left nothing."""
    ended = _last_end(_named(pod, FETCH))
    return parse_result(ended.get("message")) if ended else None


def withdrawn(pods: Iterable[Object]) -> str:
    """What a pod was told of its artifact's withdrawal when it fetched it; empty: nothing."""
    told = (result.scalars.get("withdrawn", "") for pod in pods if (result := fetched(pod)) is not None)
    return next(filter(None, told), "")


def _in_time(pod: Object, limit: float, now: datetime) -> ServerProblem | None:
    """The worst problem of a candidate's pod, whose time is limited from when it has a node."""
    worst = max(_pod_problems(pod), key=lambda problem: problem.outlook, default=None)
    pulls = worst is not None and worst.reason is Reason.IMAGE_PULL_FAILED
    patience, waited = PULL_PATIENCE_SECONDS if pulls else limit, _unready_seconds(pod, now)
    if (worst and worst.outlook is Outlook.FAIL) or waited is None or waited < patience:
        return worst
    name = pod["metadata"]["name"]
    root = worst or ServerProblem(Reason.DEADLINE_EXCEEDED, f"The server of pod {name} did not become ready.")
    outlook = Outlook.GIVE_BACK if root.reason in _PASSING else Outlook.FAIL
    return ServerProblem(root.reason, f"Not available after {patience:.0f} s. {root.message}", outlook)


def has_node(pod: Object) -> bool:
    """Whether a pod holds hardware."""
    return bool(_on_node_since(pod)) and not _ending(pod)


def _on_node_since(pod: Object) -> str:
    """When a pod got its node; empty for one without."""
    status = pod.get("status") or {}
    bound = (find_condition(status, "PodScheduled") or {}).get("lastTransitionTime")
    return str(status.get("startTime") or bound or "")


def _unready_seconds(pod: Object, now: datetime) -> float | None:
    """For how long a pod has had a node and not been ready; None for one without a node, or one that is ready."""
    if not has_node(pod) or _is_ready(pod):
        return None
    began = parse_timestamp(_on_node_since(pod))
    fell = (find_condition(pod["status"], "Ready", "False") or {}).get("lastTransitionTime")
    return (now - max(began, parse_timestamp(fell) if fell else began)).total_seconds()


def _refused(deployment: Object | None) -> Iterator[ServerProblem]:
    """Why the API server refuses more pods."""
    failure = find_condition((deployment or {}).get("status") or {}, "ReplicaFailure")
    if failure:
        yield ServerProblem(*refusal(failure.get("message", "")))


def _pod_problems(pod: Object) -> Iterator[ServerProblem]:
    """What is wrong with a pod that has not ended."""
    if _node_is_silent(pod):
        name, node = pod["metadata"]["name"], (pod.get("spec") or {}).get("nodeName", "")
        yield ServerProblem(Reason.NODE_LOST, f"Node {node} of pod {name} does not answer.")
        return
    for container in _containers(pod):
        ended = _last_end(container)
        if container["name"] in (SELF_CHECK, PROXY) and container.get("ready"):
            continue  # it has passed since
        if ended is not None and ended["exitCode"] != ExitCode.OK:
            yield _container_problem(pod["metadata"]["name"], container, ended)
    if _has_lost_its_keys(pod):
        name = pod["metadata"]["name"]
        said = f"The proxy of pod {name} rejects all requests: the Secret of spec.access.apiKeys has no valid key."
        yield ServerProblem(
            Reason.API_KEYS_MISSING, f"{said} `kubectl logs {name} -c {PROXY}` names the invalid entries."
        )
    blocker = pod_blocker(pod)
    if blocker is not None:
        yield ServerProblem(*blocker)


def _has_lost_its_keys(pod: Object) -> bool:
    """Whether a pod's proxy runs and is not ready, which it is with a key whatever the server does. While others still
    start it may just not have been asked."""
    proxy, others = _named(pod, PROXY), [_named(pod, SERVER), _named(pod, SELF_CHECK)]
    runs = "running" in (proxy.get("state") or {})
    return runs and not proxy.get("ready") and all(each.get("ready") for each in others)


def _container_problem(pod: str, container: Object, ended: Object) -> ServerProblem:
    """Why a container ended; the kubelet keeps restarting it."""
    name, code, restarts = container["name"], ended["exitCode"], container.get("restartCount", 0)
    result = parse_result(ended.get("message")) if name in (FETCH, SELF_CHECK, PROXY) else None
    outlook = Outlook.FAIL if restarts >= CRASHES and code != ExitCode.RETRIABLE else Outlook.WAIT
    if result is not None:
        said = f"Pod {pod}: {result.message}" if name == SELF_CHECK else result.message
        outlook = Outlook.FAIL if code == ExitCode.FATAL else outlook
        return ServerProblem(result.reason, said, outlook, tuple(result.checks))
    if _went_with_node(ended):
        message = f"Container {name!r} of pod {pod} was lost, since its node or the container runtime there restarted."
        return ServerProblem(Reason.NODE_LOST, message)
    if ended.get("reason") == "OOMKilled":
        message = f"Container {name!r} of pod {pod} used more memory than its limit."
        return ServerProblem(Reason.OUT_OF_MEMORY, message, outlook)
    reason = Reason.STAGE_CRASHED if name == FETCH else Reason.CANDIDATE_FAILED
    message = f"Container {name!r} of pod {pod} exited with code {code} after {restarts} restarts."
    if name == SELF_CHECK and code == _NO_MODULE:
        message += " Its image may be too old to have one. Set images.data to the image that was built with the chart."
    return ServerProblem(reason, message, outlook)


def _ending(pod: Object) -> ServerProblem | None:
    """Why a pod has ended, or is being deleted although nobody asked for fewer; None for any other."""
    status = pod.get("status") or {}
    lost = "deletionTimestamp" in pod["metadata"]
    if lost and _node_is_silent(pod):
        return next(_pod_problems(pod))
    if not lost and status.get("phase") != "Failed":
        return None
    if failure := pod_failure(pod):
        return ServerProblem(failure.reason, failure.message)
    said = " ".join(filter(None, [status.get("reason", ""), status.get("message", "")]))
    return ServerProblem(Reason.POD_REJECTED, f"Pod {pod['metadata']['name']} was ended by its node: {said}")


def _last_loss(pods: Iterable[Object]) -> ServerProblem | None:
    """Why the newest pod ended that no ready pod has replaced."""
    ended = [(_ended_at(pod), found) for pod in pods if (found := _ending(pod))]
    replaced = max((pod["metadata"].get("creationTimestamp", "") for pod in pods if _is_ready(pod)), default="")
    when, newest = max(ended, key=lambda each: each[0], default=("", None))
    return newest if when > replaced else None


def _ended_at(pod: Object) -> str:
    """When a pod ended; RFC 3339 in UTC, as everything here."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    times: list[str] = [each.get("lastTransitionTime") or "" for each in conditions]
    return max([*times, str(pod["metadata"].get("creationTimestamp", ""))])


def _starting(pod: Object) -> str:
    name = pod["metadata"]["name"]
    server, check = _named(pod, SERVER), _named(pod, SELF_CHECK)
    if "running" not in (server.get("state") or {}):
        return f"Pod {name} is starting."
    if server.get("ready") and check and not check.get("ready"):
        return f"Pod {name} answers, and proves itself before it is ready."
    if server.get("started"):
        return f"Pod {name} runs, but its server does not answer the readiness probe."
    return f"Pod {name} is loading the model."


def _is_ready(pod: Object) -> bool:
    """Whether a pod serves."""
    ready = find_condition(pod.get("status") or {}, "Ready") is not None
    return ready and not {"deletionTimestamp"} & pod["metadata"].keys()


def _node_is_silent(pod: Object) -> bool:
    """Whether the control plane took a pod's readiness away, while its node last said that its containers are ready."""
    status = pod.get("status") or {}
    server, check = _named(pod, SERVER), _named(pod, SELF_CHECK)
    taken = find_condition(status, "Ready", "False") or find_condition(status, "Ready", "Unknown")
    proxy = _named(pod, PROXY)
    ready = server.get("ready") and all(not each or each.get("ready") for each in (check, proxy))
    return bool(taken and ready and status.get("phase") == "Running")


def _containers(pod: Object) -> list[Object]:
    """In the order in which they explain each other: what the self-check says of a server that ended follows from its
    end."""
    status = pod.get("status") or {}
    found = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return sorted(found, key=lambda each: each["name"] == SELF_CHECK)


def _named(pod: Object, name: str) -> Object:
    """The status of a container; empty for a pod without it."""
    return next((each for each in _containers(pod) if each["name"] == name), {})


def _went_with_node(ended: Object) -> bool:
    """Whether nobody knows how a container ended: its node, or the runtime there, restarted meanwhile."""
    return ended.get("reason") in _NOT_SEEN


def _last_end(container: Object) -> Object | None:
    """How a container ended; for one that was restarted, how it ended before."""
    for state in ("state", "lastState"):
        ended: Object | None = (container.get(state) or {}).get("terminated")
        if ended is not None:
            return ended
    return None
