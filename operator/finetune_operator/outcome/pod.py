"""The outcome of one pod: the result that it left, why it failed, what keeps it from running. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pydantic import ValidationError

from finetune_api import meta
from finetune_api.base import MAX_INTEGER
from finetune_api.reasons import Reason, remedy
from finetune_api.stages import PIPELINE, Outcome, Stage, StageResult, kind_of
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.resources.metric_containers import METRIC_PREFIX
from finetune_operator.resources.stage_job import STAGE_CONTAINER

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE_PROBLEMS: Final = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG_PROBLEMS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError"})
_NOT_STARTED: Final = frozenset({"StartError", "ContainerCannotRun"})
"""The kubelet's reasons for a container whose program never ran: the runtime on the node could not start it."""
_OWN_LIMIT: Final = re.compile(
    r"EmptyDir volume .* exceeds|local storage usage exceeds|exceeded its local ephemeral storage"
)
"""The kubelet's message for a pod that it evicts because of the pod's own limits, not because its node lacks space."""
_LOW: Final = re.compile(r"^The node was low on resource: ([\w./-]+)\.")
"""And for one that it evicts because its node lacks something."""
_NEW_POD: Final = re.compile(r'^pods "[^"]*" is forbidden: ')
"""How the API server begins when it refuses a pod. A controller tries again with another name, and the status would
change with each try."""
_LONGEST_WORDS: Final = 300
"""How much is shown of a message that a metric container, or the node's container runtime, leaves; in characters."""
_SLOW_END: Final = timedelta(seconds=60)
"""How long after its grace a pod on a busy node may still be there."""
TOO_LATE: Final = "DeadlineExceeded"
"""The reason of a pod that ran for as long as it may, and of a Job that reached its own deadline."""


class Failure(NamedTuple):
    """Why a pod failed."""

    reason: Reason
    message: str
    reported: bool = False
    """By the stage itself, in its result."""
    result: StageResult | None = None
    """That result."""


def read_result(pod: Object) -> StageResult | None:
    """The result in the termination message of the stage's container; None without a valid one."""
    if failed_metric(pod):
        return None  # a foreign image's message is no result
    result = parse_result((terminated(pod) or {}).get("message"))
    if result is None:
        return None
    addresses = [found.output_digest for found in result.found]
    waits = result.stage is Stage.PUBLISH and result.reason is Reason.AWAITING_REVIEW  # it has made nothing yet
    if result.outcome is Outcome.SUCCEEDED and result.stage in (*PIPELINE, Stage.FOLLOW) and not waits:
        addresses.append(result.output_digest)
    return result if all(map(_DIGEST.fullmatch, addresses)) else None


def parse_result(message: str | None) -> StageResult | None:
    """A termination message as a StageResult; None for anything else, e.g. of a container that was killed."""
    if not message:
        return None
    try:
        result = StageResult.model_validate_json(message)
    except ValidationError:
        return None
    return _without_remedy(result) if result.outcome is Outcome.FAILED else result


def count_of(scalars: Mapping[str, str], name: str) -> int | None:
    """A number of things that a result has; None if the pod reports none. It is not trusted to be one that can be
    stored."""
    text = scalars.get(name, "")
    count = int(text) if text.isdecimal() else None
    return count if count is None or count <= MAX_INTEGER else None


def _without_remedy(result: StageResult) -> StageResult:
    """The result without its reason's remedy, which the conditions append.

    Images of earlier versions appended it too. It is recognised by its words, as long as they are the same.
    """
    advice = remedy(result.reason, kind_of(result.stage))
    if not advice:
        return result
    return result.model_copy(update={"message": result.message.replace(f" {advice}", "", 1)})


def pod_failure(pod: Object) -> Failure | None:
    """Why a pod failed; None if it did not."""
    name, status = pod["metadata"]["name"], pod["status"]
    if status.get("phase") == "Succeeded":
        return None
    if is_late(pod):
        return Failure(Reason.DEADLINE_EXCEEDED, late_message([pod]))
    result = read_result(pod)
    if result is not None and result.outcome is Outcome.FAILED:
        return Failure(result.reason, result.message, reported=True, result=result)
    said = status.get("message", "")
    if status.get("reason") == "Evicted" and _OWN_LIMIT.search(said):
        return Failure(Reason.SCRATCH_FULL, f"Pod {name} used more scratch space than its limit: {said}")
    disrupted = find_condition(status, "DisruptionTarget")
    if disrupted or status.get("reason") in ("Evicted", "Preempting"):
        said = said or (disrupted or {}).get("message") or "the node needed its resources"
        return Failure(Reason.PREEMPTED, f"Pod {name} was evicted: {said}")
    ended = terminated(pod)
    if ended is None:
        return None
    if metric := failed_metric(pod):
        return Failure(Reason.METRIC_FAILED, _of_metric(name, metric, ended))
    if ended.get("reason") == "OOMKilled":
        return Failure(Reason.OUT_OF_MEMORY, f"Pod {name} was killed for using more memory than its limit.")
    if ended.get("reason") in _NOT_STARTED:
        return Failure(Reason.STAGE_CRASHED, f"Its node could not start pod {name}: {_shown(ended)}")
    return Failure(Reason.STAGE_CRASHED, f"Pod {name} exited with code {ended.get('exitCode')} and left no result.")


def refused_by_node(pod: Object) -> Failure | None:
    """Why a pod failed before it had a container: its node refused it, for a GPU that is not healthy for example. None
    for any other."""
    status = pod["status"]
    if status.get("phase") != "Failed" or terminated(pod) or not status.get("reason"):
        return None
    said = " ".join(filter(None, [f"{status['reason']}.", status.get("message", "")]))
    return Failure(Reason.STAGE_CRASHED, f"Pod {pod['metadata']['name']} was refused by its node: {said}")


def is_silent(pod: Object) -> bool:
    """Whether the node of a running pod does not answer: the control plane took the pod's readiness away, while the
    node last said that all its containers are ready."""
    status = pod["status"]
    taken = find_condition(status, "Ready", "False") or find_condition(status, "Ready", "Unknown")
    gated = taken is not None and taken.get("reason") == "ReadinessGatesNotReady"
    return bool(taken and not gated and status.get("phase") == "Running" and find_condition(status, "ContainersReady"))


def node_of(pod: Object) -> str:
    """Name of a pod's node; empty while it has none."""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def is_overdue(pod: Object, now: datetime) -> bool:
    """Whether a pod that has a node should have been gone for a while, which only its node can complete. Of a pod that
    has not started yet, or that runs init containers, nothing else shows that the node is lost."""
    gone = pod["metadata"].get("deletionTimestamp")
    return bool(gone and node_of(pod) and now - parse_timestamp(gone) > _SLOW_END)


def pod_blocker(pod: Object) -> tuple[Reason, str] | None:
    """What keeps a pod from running and will not pass by itself soon."""
    name, status = pod["metadata"]["name"], pod["status"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_PROBLEMS:
            image = container.get("image", "")
            return Reason.IMAGE_PULL_FAILED, f"Pod {name} cannot pull image {image} ({reason})."
        if reason in _CONFIG_PROBLEMS:
            secret = "secret" in said.lower() or "couldn't find key" in said.lower()
            return (Reason.SECRET_MISSING if secret else Reason.POD_REJECTED), f"Pod {name} cannot start: {said}."
    scheduled = find_condition(status, "PodScheduled", "False")
    if scheduled and scheduled.get("reason") == "Unschedulable":
        return Reason.UNSCHEDULABLE, f"Pod {name} cannot be scheduled: {scheduled.get('message', '')}"
    return None


def unscheduled_since(pod: Object) -> str | None:
    """Since when the scheduler has found no node for the pod."""
    condition = find_condition(pod["status"], "PodScheduled", "False") or {}
    since: str | None = condition.get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
    return since


def refusal(message: str) -> tuple[Reason, str]:
    """Why the API server refused an object, in its own words. All tries to create a pod say the same."""
    said = _NEW_POD.sub("", message.removeprefix("Error creating: "))
    lowered = said.lower()
    if "exceeded quota" in lowered or "must specify" in lowered:
        return Reason.QUOTA_EXCEEDED, f"Refused by the namespace's quota: {said}."
    if "serviceaccount" in lowered and "not found" in lowered:
        return Reason.RUNNER_SERVICE_ACCOUNT_MISSING, f"Refused by the API server: {said}."
    return Reason.POD_REJECTED, f"Refused by the API server: {said}."


def late_message(pods: Sequence[Object]) -> str:
    """That the stage took too long, and what its pods waited for or reported last."""
    blocker = next((found[1] for pod in reversed(pods) if (found := pod_blocker(pod))), "")
    metric = next((f"Metric {name!r} was running." for pod in reversed(pods) if (name := failed_metric(pod))), "")
    said = blocker or metric or _last_words(pods)
    return " ".join(filter(None, ["The stage took longer than its profile allows.", said]))


def _last_words(pods: Sequence[Object]) -> str:
    """The message of the newest pod that failed with a result."""
    results = (read_result(pod) for pod in reversed(pods))
    return next((result.message for result in results if result and result.outcome is Outcome.FAILED), "")


def is_late(pod: Object) -> bool:
    """Whether a pod ran for as long as it may: another attempt would take as long."""
    return (pod["status"].get("phase"), pod["status"].get("reason")) == ("Failed", TOO_LATE)


def what_its_node_lacked(pod: Object) -> str:
    """The resource, e.g. ephemeral-storage, of which a pod's node had so little that it evicted the pod; empty for any
    other pod."""
    status = pod.get("status") or {}
    low = _LOW.match(status.get("message") or "") if status.get("reason") == "Evicted" else None
    return low[1] if low else ""


def is_disrupted(pod: Object) -> bool:
    """Whether something else than its own end or its owner stops a pod: a drain, a preemption, a lost node."""
    return find_condition(pod.get("status") or {}, "DisruptionTarget") is not None


def is_alive(pod: Object) -> bool:
    """Whether a pod has not ended."""
    return pod["status"].get("phase") in ("Pending", "Running", None)


def is_first(pod: Object) -> bool:
    """Whether a pod works alone, or has number 0 among those that work together: its result counts for all."""
    return index_of(pod) == 0


def index_of(pod: Object) -> int:
    """The pod's number among those that work together."""
    return int((pod["metadata"].get("labels") or {}).get(meta.LABEL_INDEX, 0))


def is_working(pod: Object) -> bool:
    """Whether one of a pod's containers runs, or has begun the work that the next one continues: the phase of a pod
    is Pending until its last container has started."""
    if pod["status"].get("phase") == "Running":
        return True
    states = [each.get("state", {}) for each in pod["status"].get("initContainerStatuses") or []]
    return any("running" in state or "terminated" in state for state in states)


def terminated(pod: Object) -> Object | None:
    """How the stage's container ended, or the one before it that failed; None if neither has."""
    for container in pod["status"].get("containerStatuses") or []:
        if container["name"] == STAGE_CONTAINER and (ended := container.get("state", {}).get("terminated")):
            return dict(ended)
    failed = _failed_before(pod)
    return failed["state"]["terminated"] if failed else None


def failed_metric(pod: Object) -> str:
    """Name of the metric whose container ended a pod; empty: none did."""
    name = (_failed_before(pod) or {}).get("name", "")
    return name.removeprefix(METRIC_PREFIX) if name.startswith(METRIC_PREFIX) else ""


def _failed_before(pod: Object) -> Object | None:
    """The init container that failed."""
    for container in pod["status"].get("initContainerStatuses") or []:
        if (container.get("state", {}).get("terminated") or {}).get("exitCode"):
            return dict(container)
    return None


def _of_metric(pod: str, metric: str, ended: Object) -> str:
    """How a metric container ended, with what it says itself."""
    killed = ended.get("reason") == "OOMKilled"
    how = "was killed for using more memory than its limit" if killed else f"exited with code {ended.get('exitCode')}"
    said = _shown(ended)
    log = f"kubectl logs {pod} -c {METRIC_PREFIX}{metric} shows its log."
    return f"Metric {metric!r} {how}{f': {said}' if said else ''}. {log}"


def _shown(ended: Object) -> str:
    """What was said of a container's end, on one line and cut."""
    return " ".join((ended.get("message") or "").split())[:_LONGEST_WORDS]


def find_condition(status: Object, kind: str, value: str = "True") -> Object | None:
    """The condition of a type, if it has the status ``value``."""
    conditions: list[Object] = status.get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == value), None)
