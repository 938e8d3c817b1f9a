"""The outcome of a stage: its state and root cause, from its Job, the Job's pods and the Job's events. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from finetune_api import meta
from finetune_api.reasons import Reason, with_remedy
from finetune_api.stages import Outcome, StageResult
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.pod import (
    TOO_LATE,
    Failure,
    find_condition,
    index_of,
    is_alive,
    is_first,
    is_late,
    is_overdue,
    is_silent,
    is_working,
    late_message,
    node_of,
    pod_blocker,
    pod_failure,
    read_result,
    refusal,
    refused_by_node,
    terminated,
    unscheduled_since,
)


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
    """What its pod reported: of a Job that succeeded, or of one that failed and says why."""
    attempts: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    pod_ip: str = ""
    """Address of the running pod."""
    unschedulable_since: str | None = None
    """Since when no node takes its pod; None if that is not what it waits for."""
    needs_events: bool = False
    """There is no pod, or no further one: only the Job's events show why."""
    tries_again: bool = False
    """The stage has failed for good, but its Job does not know and would start another pod."""


NOT_STARTED: Final = Verdict(State.WAITING, Reason.WAITING, "The Job has no pod yet.", needs_events=True)
"""Of a Job that was just created."""
SUSPENDED: Final = Verdict(State.SUSPENDED, Reason.SUSPENDED, "The Job is suspended.")
"""Also of a Job that was just created for a queue of Kueue, which suspends it."""


def judge(job: Object, pods: Sequence[Object], events: Sequence[Object] = (), now: datetime | None = None) -> Verdict:
    """The verdict on a Job. ``pods`` are the Job's own, in any order. ``now``: to tell pods that are being deleted from
    those whose node does not do it; None: nothing is said of that."""
    status = job.get("status") or {}
    ordered = sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
    facts: dict[str, Any] = {
        "attempts": _attempts(job, ordered),
        "started_at": _started(status, ordered),
    }
    if find_condition(status, "Complete"):
        return _completed(job, ordered, facts | {"finished_at": status.get("completionTime")})
    if failed := find_condition(status, "Failed"):
        return _failed(failed, ordered, facts | {"finished_at": failed.get("lastTransitionTime")})
    if job["metadata"].get("deletionTimestamp"):
        return Verdict(State.TERMINATING, Reason.WAITING, f"Job {job['metadata']['name']} is being deleted.", **facts)
    if late := next(filter(is_late, reversed(ordered)), None):
        facts |= {"finished_at": (terminated(late) or {}).get("finishedAt"), "tries_again": True}
        return Verdict(State.FAILED, Reason.DEADLINE_EXCEEDED, late_message([late]), **facts)
    if job["spec"].get("suspend"):
        stopped = {} if any(map(is_alive, ordered)) else {"started_at": None}
        return replace(SUSPENDED, **facts | stopped)
    return _verdict_from_pod(job, ordered, facts) or _unfinished(job, ordered, events, now, facts)


def _attempts(job: Object, pods: Sequence[Object]) -> int:
    """How often the stage was started: its pods, or in an Indexed Job the pods with number 0."""
    status = job.get("status") or {}
    if job["spec"].get("completionMode") == "Indexed":
        return sum(is_first(pod) for pod in pods)
    counted: int = sum(status.get(count, 0) for count in ("active", "succeeded", "failed"))
    return max(counted, len(pods))  # some pods may be gone, and the newest one may not be counted yet


def _cause(pods: Sequence[Object]) -> Failure | None:
    """Why the newest pod failed that did not fail because it lost a peer; if all did, why the newest failed."""
    failures = [found for pod in reversed(pods) if (found := pod_failure(pod) or refused_by_node(pod))]
    return min(failures, key=lambda failure: failure.reason is Reason.PEER_LOST, default=None)


def _while_retrying(said: str, job: Object, earlier: Failure) -> str:
    """What an earlier attempt reported, with its remedy: the conditions have another reason until the Job fails."""
    kind = job["metadata"]["labels"].get(meta.LABEL_OWNER_KIND, meta.FINETUNEJOB)
    message = f"{said}: {earlier.message}"
    return with_remedy(earlier.reason, message, kind) if earlier.reported else message


def _started(status: Object, pods: Sequence[Object]) -> str | None:
    """When the first pod got a node, None while none has; for an ended Job whose pods are gone, when the Job started.

    A Job that is resumed starts anew: earlier pods do not count.
    """
    began: str | None = status.get("startTime")
    starts = [start for pod in pods if (start := pod["status"].get("startTime")) and start >= (began or "")]
    ended = find_condition(status, "Complete") or find_condition(status, "Failed")
    waiting = not ended and all(pod["status"].get("phase") in ("Pending", None) for pod in pods)
    return min(starts) if starts else None if waiting else began


def _verdict_from_pod(job: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict | None:
    """The verdict on a Job with one pod at a time, from a pod that has ended; None if the pod does not decide it.

    The Job's controller counts ended pods in batches, so its own condition comes a second or more later.
    """
    ended = terminated(pods[-1]) if pods else None
    if ended is None or job["spec"].get("completionMode") == "Indexed":
        return None
    newest, facts = pods[-1], facts | {"finished_at": ended.get("finishedAt")}
    if newest["status"].get("phase") == "Succeeded":
        return _succeeded(job, [newest], facts)
    fatal = ended.get("exitCode") == meta.ExitCode.FATAL and not find_condition(newest["status"], "DisruptionTarget")
    if newest["status"].get("phase") == "Failed" and fatal and (cause := pod_failure(newest)):
        return Verdict(State.FAILED, cause.reason, cause.message, cause.result, **facts)
    return None


def _completed(job: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    lost = Verdict(State.LOST, Reason.RESULT_LOST, "The Job completed, but the pod with its result is gone.", **facts)
    return _succeeded(job, pods, facts) or lost


def _succeeded(job: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict | None:
    """Success, with the newest result that a pod left; None if no pod left one."""
    stage = job["metadata"]["labels"].get(meta.LABEL_STAGE)
    for pod in reversed(pods):
        result = read_result(pod)
        if result is not None and result.stage == stage and result.outcome is Outcome.SUCCEEDED:
            return Verdict(State.SUCCEEDED, result.reason, result.message, result, **facts)
    return None


def _failed(condition: Object, pods: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    cause = _cause(pods)
    if condition.get("reason") == TOO_LATE:
        return Verdict(State.FAILED, Reason.DEADLINE_EXCEEDED, late_message(pods), **facts)
    if cause is None:
        message = f"{condition.get('message') or condition.get('reason')}; its pods are gone."
        return Verdict(State.FAILED, Reason.STAGE_CRASHED, message, **facts)
    return Verdict(State.FAILED, cause.reason, cause.message, cause.result, **facts)


def _unfinished(
    job: Object, pods: Sequence[Object], events: Sequence[Object], now: datetime | None, facts: dict[str, Any]
) -> Verdict:
    alive = [pod for pod in pods if is_alive(pod)]
    if not alive:
        return _without_pod(job, pods, events, facts)
    newest = _newest_of_each(alive)
    if overdue := next((pod for pod in newest if now and is_overdue(pod, now)), None):
        message = f"Node {node_of(overdue)} does not answer, or cannot end pod {overdue['metadata']['name']}."
        return Verdict(State.WAITING, Reason.NODE_LOST, message, **facts)
    if blocked := next((pod for pod in newest if pod_blocker(pod)), None):
        reason, message = pod_blocker(blocked) or (Reason.WAITING, "")
        since = unscheduled_since(blocked) if reason is Reason.UNSCHEDULABLE else None
        return Verdict(State.WAITING, reason, message, unschedulable_since=since, **facts)
    if starting := next((pod for pod in newest if not is_working(pod)), None):
        deleted = "deletionTimestamp" in starting["metadata"]
        message = (
            f"Pod {starting['metadata']['name']} is {'being deleted before it has started' if deleted else 'starting'}."
        )
        return Verdict(State.WAITING, Reason.WAITING, message, **facts)
    if silent := next(filter(is_silent, newest), None):
        return _on_lost_node(silent, facts)
    message = ""
    if earlier := _cause(pods):
        message = _while_retrying("An earlier attempt failed", job, earlier)
    address = next((pod["status"].get("podIP", "") for pod in newest if is_first(pod)), "")
    return Verdict(State.RUNNING, Reason.STAGE_STARTED, message, pod_ip=address, **facts)


def _on_lost_node(pod: Object, facts: dict[str, Any]) -> Verdict:
    """It may come back. Once its pods are being deleted, it has been away for minutes, and the Job starts no other pod
    before that one has ended for certain."""
    state = State.WAITING if "deletionTimestamp" in pod["metadata"] else State.RUNNING
    message = f"Node {node_of(pod)} of pod {pod['metadata']['name']} does not answer."
    return Verdict(state, Reason.NODE_LOST, message, **facts)


def _newest_of_each(pods: Sequence[Object]) -> list[Object]:
    """The newest pod with each number, by number."""
    newest = {index_of(pod): pod for pod in pods}
    return [newest[number] for number in sorted(newest)]


def _without_pod(job: Object, pods: Sequence[Object], events: Sequence[Object], facts: dict[str, Any]) -> Verdict:
    last = max((pod["metadata"]["creationTimestamp"] for pod in pods), default="")
    refusals = [event for event in events if event.get("reason") == "FailedCreate" and _time_of(event) > last]
    if refusals:
        reason, message = refusal(max(refusals, key=_time_of).get("message") or "")
        return Verdict(State.WAITING, reason, message, needs_events=True, **facts)
    if earlier := _cause(pods):
        message = _while_retrying("Retrying; the last attempt failed", job, earlier)
        return Verdict(State.WAITING, Reason.STAGE_RETRIED, message, needs_events=True, **facts)
    return replace(NOT_STARTED, **facts)


def _time_of(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
