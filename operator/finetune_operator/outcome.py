"""What became of a stage: the root cause, read from its Job, the Job's pods and the Job's events. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

from finetune_api import meta
from finetune_api.reasons import Reason, remedy
from finetune_api.stages import PIPELINE, Outcome, StageResult
from finetune_operator.framework.objects import Object
from finetune_operator.resources.pods import STAGE_CONTAINER

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE_PROBLEMS: Final = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG_PROBLEMS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError"})
_OWN_LIMIT: Final = re.compile(
    r"EmptyDir volume .* exceeds|local storage usage exceeds|exceeded its local ephemeral storage"
)
"""What the kubelet says of a pod that it evicts for the pod's own limits, not for what its node lacks."""
_TOO_LATE: Final = "DeadlineExceeded"
"""What the kubelet says of a pod that had its node for as long as it may, and a Job that has a deadline of its own."""


class State(StrEnum):
    """Where a stage's Job stands."""

    WAITING = "Waiting"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    TERMINATING = "Terminating"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    LOST = "Lost"
    """It completed, but the pod with the result is gone or the result cannot be read."""


UNFINISHED: Final = frozenset({State.WAITING, State.RUNNING, State.SUSPENDED, State.TERMINATING})


@dataclass(frozen=True)
class Verdict:
    """State of a stage's Job, and why."""

    state: State
    reason: Reason
    message: str = ""
    result: StageResult | None = None
    attempts: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    pod_ip: str = ""
    """Address of the running pod."""
    needs_events: bool = False
    """No pod was made: only the Job's events tell why."""
    tries_again: bool = False
    """The stage has failed for good, but its Job knows nothing of it and starts another pod."""


NOT_STARTED: Final = Verdict(State.WAITING, Reason.WAITING, "The Job has no pod yet.", needs_events=True)
"""Of a Job that was made just now."""


def judge(job: Object, pods: Sequence[Object], events: Sequence[Object] = ()) -> Verdict:
    """The verdict on a Job. ``pods`` are the Job's own, in any order."""
    status = job.get("status") or {}
    ordered = sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
    facts: dict[str, Any] = {
        "attempts": _attempts(job, ordered),
        "started_at": _started(status, ordered),
    }
    if _condition(status, "Complete"):
        return _completed(job, ordered, facts | {"finished_at": status.get("completionTime")})
    if failed := _condition(status, "Failed"):
        return _failed(failed, ordered, facts | {"finished_at": failed.get("lastTransitionTime")})
    if job["metadata"].get("deletionTimestamp"):
        return Verdict(State.TERMINATING, Reason.WAITING, f"Job {job['metadata']['name']} is being deleted.", **facts)
    if late := next(filter(_is_late, reversed(ordered)), None):
        facts |= {"finished_at": (_terminated(late) or {}).get("finishedAt"), "tries_again": True}
        return Verdict(State.FAILED, Reason.DEADLINE_EXCEEDED, _late_message([late]), **facts)
    if job["spec"].get("suspend"):
        stopped = {} if any(map(_alive, ordered)) else {"started_at": None}
        return Verdict(State.SUSPENDED, Reason.SUSPENDED, "The Job is suspended.", **facts | stopped)
    return _foretold(job, ordered, facts) or _unfinished(ordered, events, facts)


def read_result(pod: Object) -> StageResult | None:
    """The termination message of the stage's container, or None where there is no valid one."""
    result = parse_result((_terminated(pod) or {}).get("message"))
    if result is None:
        return None
    addresses = [found.output_digest for found in result.found]
    if result.outcome is Outcome.SUCCEEDED and result.stage in PIPELINE:
        addresses.append(result.output_digest)
    return result if all(map(_DIGEST.fullmatch, addresses)) else None


def parse_result(message: str | None) -> StageResult | None:
    """A termination message as a StageResult; None for anything else, e.g. of a container that was killed."""
    try:
        return StageResult.model_validate_json(message or "")
    except ValidationError:
        return None


def _attempts(job: Object, pods: Sequence[Object]) -> int:
    """How often the stage was begun: pods, of several that work together the first ones."""
    status = job.get("status") or {}
    if job["spec"].get("completionMode") == "Indexed":
        return sum(_is_first(pod) for pod in pods)
    counted: int = sum(status.get(count, 0) for count in ("active", "succeeded", "failed"))
    return max(counted, len(pods))  # of the pods some may be gone, and the newest not counted yet


def _is_first(pod: Object) -> bool:
    """Whether a pod has the number 0 among those that work together, or works alone: it speaks for all."""
    return _number(pod) == 0


def _number(pod: Object) -> int:
    return int((pod["metadata"].get("labels") or {}).get(meta.LABEL_INDEX, 0))


def _cause(pods: Sequence[Object]) -> tuple[Reason, str] | None:
    """Why the stage's newest pod failed that did not merely follow another; of all others, why the newest did."""
    failures = [found for pod in reversed(pods) if (found := _pod_failure(pod))]
    return min(failures, key=lambda failure: failure[0] is Reason.PEER_LOST, default=None)


def _started(status: Object, pods: Sequence[Object]) -> str | None:
    """When the first pod got a node, None while none has one; of an ended Job whose pods are gone, when it started.

    A Job that goes on after a suspension starts anew: pods from before do not count.
    """
    began: str | None = status.get("startTime")
    starts = [start for pod in pods if (start := pod["status"].get("startTime")) and start >= (began or "")]
    ended = _condition(status, "Complete") or _condition(status, "Failed")
    waiting = not ended and all(pod["status"].get("phase") in ("Pending", None) for pod in pods)
    return min(starts) if starts else None if waiting else began


def _foretold(job: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict | None:
    """What a Job with one pod at a time is going to say, as its pod has ended; None if the pod does not settle it.

    The Job's controller counts ended pods in batches and takes a second or more to say so.
    """
    ended = _terminated(pods[-1]) if pods else None
    if ended is None or job["spec"].get("completionMode") == "Indexed":
        return None
    newest, facts = pods[-1], facts | {"finished_at": ended.get("finishedAt")}
    if newest["status"].get("phase") == "Succeeded":
        return _succeeded(job, [newest], facts)
    fatal = ended.get("exitCode") == meta.ExitCode.FATAL and not _condition(newest["status"], "DisruptionTarget")
    if newest["status"].get("phase") == "Failed" and fatal and (cause := _pod_failure(newest)):
        return Verdict(State.FAILED, cause[0], cause[1], **facts)
    return None


def _completed(job: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    lost = Verdict(State.LOST, Reason.RESULT_LOST, "The Job completed, but the pod with its result is gone.", **facts)
    return _succeeded(job, pods, facts) or lost


def _succeeded(job: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict | None:
    """The newest result that a pod left; None if none did."""
    stage = job["metadata"]["labels"].get(meta.LABEL_STAGE)
    for pod in reversed(pods):
        result = read_result(pod)
        if result is not None and result.stage == stage and result.outcome is Outcome.SUCCEEDED:
            return Verdict(State.SUCCEEDED, result.reason, result.message, result, **facts)
    return None


def _failed(condition: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    cause = _cause(pods)
    if condition.get("reason") == _TOO_LATE:
        return Verdict(State.FAILED, Reason.DEADLINE_EXCEEDED, _late_message(pods), **facts)
    if cause is None:
        message = f"{condition.get('message') or condition.get('reason')}; its pods are gone."
        return Verdict(State.FAILED, Reason.STAGE_CRASHED, message, **facts)
    return Verdict(State.FAILED, cause[0], cause[1], **facts)


def _unfinished(pods: Sequence[Object], events: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    alive = [pod for pod in pods if _alive(pod)]
    if not alive:
        return _without_pod(pods, events, facts)
    newest = _newest_of_each(alive)
    if hindrance := next((found for pod in newest if (found := pod_hindrance(pod))), None):
        return Verdict(State.WAITING, hindrance[0], hindrance[1], **facts)
    if starting := next((pod for pod in newest if pod["status"].get("phase") != "Running"), None):
        return Verdict(State.WAITING, Reason.WAITING, f"Pod {starting['metadata']['name']} is starting.", **facts)
    message = ""
    if earlier := _cause(pods):
        message = f"An earlier attempt ended: {earlier[1]}"
    address = next((pod["status"].get("podIP", "") for pod in newest if _is_first(pod)), "")
    return Verdict(State.RUNNING, Reason.STAGE_STARTED, message, pod_ip=address, **facts)


def _alive(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Pending", "Running", None)


def _newest_of_each(pods: Sequence[Object]) -> list[Object]:
    """Of those that work together, the newest with each number, by number."""
    newest = {_number(pod): pod for pod in pods}
    return [newest[number] for number in sorted(newest)]


def _without_pod(pods: Sequence[Object], events: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    refusals = [event for event in events if event.get("reason") == "FailedCreate"]
    if refusals:
        newest = max(refusals, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        reason, message = refusal(newest.get("message") or "")
        return Verdict(State.WAITING, reason, message, needs_events=True, **facts)
    if earlier := _cause(pods):
        message = f"Trying again; the last attempt ended: {earlier[1]}"
        return Verdict(State.WAITING, Reason.STAGE_RETRIED, message, **facts)
    return replace(NOT_STARTED, **facts)


def refusal(message: str) -> tuple[Reason, str]:
    """Why the API server refused an object, in the words of its admission."""
    said = message.removeprefix("Error creating: ")
    lowered = said.lower()
    if "exceeded quota" in lowered or "must specify" in lowered:
        return Reason.QUOTA_EXCEEDED, f"Refused by the namespace's quota: {said}."
    if "serviceaccount" in lowered and "not found" in lowered:
        return Reason.RUNNER_SERVICE_ACCOUNT_MISSING, f"Refused by the API server: {said}."
    return Reason.POD_REJECTED, f"Refused by the API server: {said}."


def pod_hindrance(pod: Object) -> tuple[Reason, str] | None:
    """What keeps a pod from running that will not pass by itself soon."""
    name, status = pod["metadata"]["name"], pod["status"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_PROBLEMS:
            image = container.get("image", "")
            return Reason.IMAGE_PULL_FAILED, f"Pod {name} cannot get image {image} ({reason})."
        if reason in _CONFIG_PROBLEMS:
            secret = "secret" in said.lower() or "couldn't find key" in said.lower()
            return (Reason.SECRET_MISSING if secret else Reason.POD_REJECTED), f"Pod {name} cannot start: {said}."
    scheduled = _condition(status, "PodScheduled", "False")
    if scheduled and scheduled.get("reason") == "Unschedulable":
        return Reason.UNSCHEDULABLE, f"Pod {name} fits no node: {scheduled.get('message', '')}"
    return None


def _is_late(pod: Object) -> bool:
    """Whether a pod had its node for as long as it may: another attempt would take no less."""
    return (pod["status"].get("phase"), pod["status"].get("reason")) == ("Failed", _TOO_LATE)


def _late_message(pods: Sequence[Object]) -> str:
    """That it took too long, and what the pods waited for or said last."""
    hindrance = next((found[1] for pod in reversed(pods) if (found := pod_hindrance(pod))), "")
    return " ".join(filter(None, ["The stage took longer than its profile allows.", hindrance or _last_words(pods)]))


def _last_words(pods: Sequence[Object]) -> str:
    """What the newest pod left that failed. Told to stop, it advises as if it were to go on elsewhere."""
    for pod in reversed(pods):
        if (result := read_result(pod)) and result.outcome is Outcome.FAILED:
            kind = (pod["metadata"].get("labels") or {}).get(meta.LABEL_OWNER_KIND, meta.FINETUNEJOB)
            return result.message.replace(f" {remedy(result.reason, kind)}", "")
    return ""


def _pod_failure(pod: Object) -> tuple[Reason, str] | None:
    """Why a pod ended without success; None if it did not."""
    name, status = pod["metadata"]["name"], pod["status"]
    if status.get("phase") == "Succeeded":
        return None
    if _is_late(pod):
        return Reason.DEADLINE_EXCEEDED, _late_message([pod])
    result = read_result(pod)
    if result is not None and result.outcome is Outcome.FAILED:
        return result.reason, result.message
    said = status.get("message", "")
    if status.get("reason") == "Evicted" and _OWN_LIMIT.search(said):
        return Reason.SCRATCH_FULL, f"Pod {name} used more scratch space than its profile allows: {said}"
    disrupted = _condition(status, "DisruptionTarget")
    if disrupted or status.get("reason") in ("Evicted", "Preempting"):
        said = said or (disrupted or {}).get("message") or "the node needed its place"
        return Reason.PREEMPTED, f"Pod {name} was evicted: {said}"
    ended = _terminated(pod)
    if ended is None:
        return None
    if ended.get("reason") == "OOMKilled":
        return Reason.OUT_OF_MEMORY, f"Pod {name} was killed because it used more memory than its limit."
    return Reason.STAGE_CRASHED, f"Pod {name} ended with exit code {ended.get('exitCode')} and without a result."


def _terminated(pod: Object) -> Object | None:
    for container in pod["status"].get("containerStatuses") or []:
        if container["name"] == STAGE_CONTAINER:
            ended: Object | None = container.get("state", {}).get("terminated")
            return ended
    return None


def _condition(status: Object, kind: str, value: str = "True") -> Object | None:
    conditions: list[Object] = status.get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == value), None)
