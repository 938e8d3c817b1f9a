"""What is wrong with one serving pod, from what the kubelet and the control plane say of it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import VerificationCheck
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.pod import find_condition, parse_result, pod_blocker, pod_failure
from finetune_operator.resources.client_proxy import PROXY
from finetune_operator.resources.deployment import FETCH, SERVER
from finetune_operator.resources.self_check import SELF_CHECK

CRASHES: Final = 3
"""Restarts after which a crashing container counts as failed, and pods after which their own fault does. Also those of
a self-check after which a server that it gets no answers from counts as one that does not answer."""
_NOT_SEEN: Final = frozenset({"Unknown", "ContainerStatusUnknown"})
"""Reasons for the end of a container that was gone when the node came back: containerd's (exit code 255), and the
kubelet's (137)."""
_STOPPED: Final = frozenset({0, 137, 143})
"""How a server ends that is told to: by itself, or by a signal."""
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


def has_node(pod: Object) -> bool:
    """Whether a pod holds hardware."""
    return bool(_on_node_since(pod)) and not ending(pod)


def _on_node_since(pod: Object) -> str:
    """When a pod got its node; empty for one without."""
    status = pod.get("status") or {}
    bound = (find_condition(status, "PodScheduled") or {}).get("lastTransitionTime")
    return str(status.get("startTime") or bound or "")


def unready_seconds(pod: Object, now: datetime) -> float | None:
    """For how long a pod has had a node and not been ready; None for one without a node, or one that is ready."""
    if not has_node(pod) or is_ready(pod):
        return None
    began = parse_timestamp(_on_node_since(pod))
    fell = (find_condition(pod["status"], "Ready", "False") or {}).get("lastTransitionTime")
    return (now - max(began, parse_timestamp(fell) if fell else began)).total_seconds()


def pod_problems(pod: Object) -> Iterator[ServerProblem]:
    """What is wrong with a pod that has not ended."""
    if _node_is_silent(pod):
        name, node = pod["metadata"]["name"], (pod.get("spec") or {}).get("nodeName", "")
        yield ServerProblem(Reason.NODE_LOST, f"Node {node} of pod {name} does not answer.")
        return
    for container in containers(pod):
        ended = last_end(container)
        if container["name"] in (SELF_CHECK, PROXY) and container.get("ready"):
            continue  # it has passed since
        if ended is not None and ended_badly(container, ended):
            yield container_problem(pod, container, ended)
    if _has_lost_its_keys(pod):
        name = pod["metadata"]["name"]
        said = (
            f"The proxy of pod {name} lets no request in: the Secret of spec.access.apiKeys has no valid key, or the "
            "proxy does not answer."
        )
        yield ServerProblem(
            Reason.API_KEYS_MISSING, f"{said} `kubectl logs {name} -c {PROXY}` names the invalid entries."
        )
    blocker = pod_blocker(pod)
    if blocker is not None:
        yield ServerProblem(*blocker)


def _has_lost_its_keys(pod: Object) -> bool:
    """Whether a pod's proxy runs and is not ready, which it is with a key whatever the server does. While others still
    start it may just not have been asked."""
    proxy, others = named(pod, PROXY), [named(pod, SERVER), named(pod, SELF_CHECK)]
    runs = "running" in (proxy.get("state") or {})
    return runs and not proxy.get("ready") and all(each.get("ready") for each in others)


def ended_badly(container: Object, ended: Object) -> bool:
    """Whether a container's end is a failure. A server's always is, if its pod was not to end: vLLM exits with 0 when
    its engine has died (vllm-project/vllm#48966), and when it no longer answers its liveness probe."""
    return bool(container["name"] == SERVER or ended["exitCode"] != ExitCode.OK)


def container_problem(of: Object, container: Object, ended: Object) -> ServerProblem:
    """Why a container of a pod ended; the kubelet keeps restarting it."""
    pod, name, code = of["metadata"]["name"], container["name"], ended["exitCode"]
    restarts = container.get("restartCount", 0)
    result = parse_result(ended.get("message")) if name in (FETCH, SELF_CHECK, PROXY) else None
    outlook = Outlook.FAIL if restarts >= CRASHES and code != ExitCode.RETRIABLE else Outlook.WAIT
    if result is not None:
        said = f"Pod {pod}: {result.message}" if name == SELF_CHECK else result.message
        outlook = Outlook.FAIL if code == ExitCode.FATAL else outlook
        return ServerProblem(result.reason, said, outlook, tuple(result.checks))
    if went_with_node(ended):
        message = f"Container {name!r} of pod {pod} was lost, since its node or the container runtime there restarted."
        return ServerProblem(Reason.NODE_LOST, message)
    if ended.get("reason") == "OOMKilled":
        message = f"Container {name!r} of pod {pod} used more memory than its limit."
        return ServerProblem(Reason.OUT_OF_MEMORY, message, outlook)
    often = "1 restart" if restarts == 1 else f"{restarts} restarts"
    if name == SERVER and (slow := _stopped_while_loading(of, ended)):
        message = f"Container {name!r} of pod {pod} {slow}; {often} so far."
        return ServerProblem(Reason.DEADLINE_EXCEEDED, message, outlook)
    reason = Reason.STAGE_CRASHED if name == FETCH else Reason.CANDIDATE_FAILED
    message = f"Container {name!r} of pod {pod} exited with code {code} after {often}."
    if name == SERVER and code == ExitCode.OK:
        message += (
            f" A server never ends by itself: `kubectl logs {pod} -c {SERVER} --previous` shows whether its engine has "
            f"died, and `kubectl describe pod {pod}` whether it no longer answered its liveness probe."
        )
    if name == SELF_CHECK and code == _NO_MODULE:
        message += " Its image may be too old to have one. Set images.data to the image that was built with the chart."
    return ServerProblem(reason, message, outlook)


def _stopped_while_loading(pod: Object, ended: Object) -> str:
    """For messages: that the kubelet stopped a server because its startup probe did not succeed in all its time. Only
    the length of its run and its exit code tell; empty: they tell something else."""
    spec = pod.get("spec") or {}
    server: Object = next((each for each in spec.get("containers") or [] if each["name"] == SERVER), {})
    probe, times = server.get("startupProbe"), [ended.get(field) for field in ("startedAt", "finishedAt")]
    if not probe or not all(times) or ended["exitCode"] not in _STOPPED:
        return ""
    began, end = map(parse_timestamp, filter(None, times))
    ran, period, failures = (end - began).total_seconds(), probe["periodSeconds"], probe["failureThreshold"]
    # The first question comes at once, and each may last longer than the time between two.
    least, most = period * (failures - 1), max(period, probe.get("timeoutSeconds", 1)) * failures
    if not least <= ran <= most + spec.get("terminationGracePeriodSeconds", 0):
        return ""
    return (
        f"did not answer within {period * failures} s, the startupTimeoutSeconds of its runtime, and was stopped by "
        f"its node after {ran:.0f} s"
    )


def ending(pod: Object) -> ServerProblem | None:
    """Why a pod has ended, or is being deleted although nobody asked for fewer; None for any other."""
    status = pod.get("status") or {}
    lost = "deletionTimestamp" in pod["metadata"]
    if lost and _node_is_silent(pod):
        return next(pod_problems(pod))
    if not lost and status.get("phase") != "Failed":
        return None
    if failure := pod_failure(pod):
        return ServerProblem(failure.reason, failure.message)
    said = " ".join(filter(None, [status.get("reason", ""), status.get("message", "")]))
    return ServerProblem(Reason.POD_REJECTED, f"Pod {pod['metadata']['name']} was terminated by its node: {said}")


def starting(pod: Object) -> str:
    name = pod["metadata"]["name"]
    server, check = named(pod, SERVER), named(pod, SELF_CHECK)
    if "running" not in (server.get("state") or {}):
        return f"Pod {name} is starting."
    if server.get("ready") and check and not check.get("ready"):
        return f"Pod {name} answers; its self-check is running."
    if server.get("started"):
        return f"Pod {name} runs, but its server does not answer the readiness probe."
    return f"Pod {name} is loading the model."


def is_ready(pod: Object) -> bool:
    """Whether a pod serves."""
    ready = find_condition(pod.get("status") or {}, "Ready") is not None
    return ready and not {"deletionTimestamp"} & pod["metadata"].keys()


def _node_is_silent(pod: Object) -> bool:
    """Whether the control plane took a pod's readiness away, while its node last said that its containers are ready."""
    status = pod.get("status") or {}
    server, check = named(pod, SERVER), named(pod, SELF_CHECK)
    taken = find_condition(status, "Ready", "False") or find_condition(status, "Ready", "Unknown")
    proxy = named(pod, PROXY)
    ready = server.get("ready") and all(not each or each.get("ready") for each in (check, proxy))
    return bool(taken and ready and status.get("phase") == "Running")


def containers(pod: Object) -> list[Object]:
    """In the order in which they explain each other: what the self-check says of a server that ended follows from its
    end."""
    status = pod.get("status") or {}
    found = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return sorted(found, key=lambda each: each["name"] == SELF_CHECK)


def named(pod: Object, name: str) -> Object:
    """The status of a container; empty for a pod without it."""
    return next((each for each in containers(pod) if each["name"] == name), {})


def went_with_node(ended: Object) -> bool:
    """Whether nobody knows how a container ended: its node, or the runtime there, restarted meanwhile."""
    return ended.get("reason") in _NOT_SEEN


def last_end(container: Object) -> Object | None:
    """How a container ended; for one that was restarted, how it ended before."""
    for state in ("state", "lastState"):
        ended: Object | None = (container.get(state) or {}).get("terminated")
        if ended is not None:
            return ended
    return None
