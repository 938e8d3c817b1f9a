"""The health of a revision's pods: available, waiting for something, or failed, and why. Pure.

A candidate that holds no hardware may wait for as long as it takes: no node fits, a quota is used up, a policy refuses
the pod. The clock runs for a pod that has a node: if it is not ready in time, the hardware is for others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, NamedTuple

from finetune_api.meta import ExitCode
from finetune_api.reasons import UNSCHEDULABLE_MINUTES, Reason
from finetune_api.stages import StageResult
from finetune_operator.adapterdeployment.pod_problems import (
    CRASHES,
    Outlook,
    ServerProblem,
    container_problem,
    containers,
    ending,
    is_ready,
    last_end,
    named,
    pod_problems,
    starting,
    unready_seconds,
    went_with_node,
)
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.pod import find_condition, parse_result, refusal, unscheduled_since, what_its_node_lacked
from finetune_operator.resources.deployment import FETCH, SERVER
from finetune_operator.resources.self_check import SELF_CHECK

PULL_PATIENCE_SECONDS: Final = 300.0
"""How long a node may try to pull an image."""
UNANSWERED_SECONDS: Final = 60.0
"""For how long none of a new revision's pods may answer before the traffic goes back."""
NEEDS_ROOM: Final = frozenset({Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED})
"""What a pod waits for that others can make room for by going."""
HOLDS_NOTHING: Final = NEEDS_ROOM | {Reason.POD_REJECTED, Reason.RUNNER_SERVICE_ACCOUNT_MISSING}
"""What a pod waits for before it has a node."""
LONG_WAIT_SECONDS: Final = 60.0 * UNSCHEDULABLE_MINUTES
"""For how long a wait for hardware is nothing special: an autoscaler may be adding a node."""
NEEDS_SOMEBODY: Final = HOLDS_NOTHING | {Reason.ANALYSIS_INCONCLUSIVE}
"""What somebody should look after once a candidate has waited for it for so long."""
PASSING: Final = HOLDS_NOTHING | {
    *(Reason.SECRET_MISSING, Reason.API_KEYS_MISSING, Reason.IMAGE_PULL_FAILED, Reason.S3_UNREACHABLE),
    Reason.CERTIFICATE_UNUSABLE,
    *(Reason.PREEMPTED, Reason.NODE_LOST),
}
"""What has its cause outside the revision: the same pods may start once it is gone."""


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
    ended = [found for pod in pods if (found := ending(pod))]
    problems = [found for pod in pods if not ending(pod) and (found := _in_time(pod, limit, now))]
    worst = max([*problems, *_refused(deployment), *ended], key=lambda problem: problem.outlook, default=None)
    if worst is not None and worst.outlook is Outlook.WAIT:
        own = [each for each in ended if each.reason not in (Reason.PREEMPTED, Reason.NODE_LOST)]
        return replace(own[-1], outlook=Outlook.FAIL) if len(own) >= CRASHES else _crowded_out(pods) or worst
    return worst


def candidate_due_after(deployment: Object | None, pods: Sequence[Object], now: datetime) -> float | None:
    """Seconds until one of a candidate's pods has had its node for as long as it may; None if none has one."""
    if deployment is None:
        return None
    limits = (PULL_PATIENCE_SECONDS, float(deployment["spec"]["progressDeadlineSeconds"]))
    waits = [seconds for pod in pods if (seconds := unready_seconds(pod, now)) is not None]
    return min((limit - seconds for seconds in waits for limit in limits if limit > seconds), default=None)


def serving_problem(deployment: Object | None, pods: Sequence[Object]) -> ServerProblem:
    """Why pods of what serves are not ready. ``pods`` include those that were lost."""
    missing = [pod for pod in pods if not ending(pod) and not is_ready(pod)]
    problems = [problem for pod in missing for problem in pod_problems(pod)] + list(_refused(deployment))
    worst = max(problems, key=lambda problem: problem.outlook, default=None)
    lost = _last_loss(pods)
    said = [worst.message] if worst else [starting(pod) for pod in missing[:1]]
    if lost:
        said.append(lost.message if not said else f"Before that: {lost.message}")
    cause = worst or lost
    if cause and cause.checks:
        return ServerProblem(Reason.SELF_CHECK_FAILED, " ".join(said))
    reason = cause.reason if cause and cause.reason is not Reason.CANDIDATE_FAILED else Reason.SERVER_UNAVAILABLE
    return ServerProblem(reason, " ".join(said) or "Its Deployment has no pod.")


class Sighting(NamedTuple):
    """What is seen of a revision that has taken over a short while ago."""

    problem: ServerProblem | None = None
    """Why it is not fit for traffic; given back rather than failed, if the cause is outside of it."""
    due_after: float | None = None
    """Seconds until it has not answered for too long, if it does not answer now."""


def watch(deployment: Object | None, pods: Sequence[Object], since: datetime, now: datetime) -> Sighting:
    """Whether the pods of a revision stand the traffic, which they have had since a time. A pod that is new and loads
    its model says nothing; one that is new and kept from loading it is as silent as one that was up."""
    if full := _fills_its_disk(pods, since):
        return Sighting(full)
    present = [pod for pod in pods if not ending(pod)]
    for pod in present:
        if crashed := _crash_loop(pod, since):
            return Sighting(replace(crashed, outlook=Outlook.FAIL))
    if any(map(is_ready, present)):
        return Sighting()
    wrong = disproved(present)
    if wrong and len(wrong) == len(present):
        said = f"Each of its pods fails its self-check. {wrong[-1].message}"
        return Sighting(replace(wrong[-1], message=said, outlook=Outlook.FAIL))
    silent = _silent_for(deployment, present, now)
    if not silent:
        return Sighting()
    if (left := UNANSWERED_SECONDS - min(silent)) > 0:
        return Sighting(due_after=left)
    problems = [*(problem for pod in present for problem in pod_problems(pod)), *_refused(deployment)]
    worst = max(problems, key=lambda problem: problem.outlook, default=None)
    said = f"None of its pods has answered for {UNANSWERED_SECONDS:.0f} s."
    if worst is None:
        return Sighting(ServerProblem(Reason.CANDIDATE_FAILED, said, Outlook.FAIL))
    if worst.reason in (Reason.API_KEYS_MISSING, Reason.CERTIFICATE_UNUSABLE):
        return Sighting()  # whatever could take over needs the same Secret
    outlook = Outlook.GIVE_BACK if worst.reason in PASSING else Outlook.FAIL
    return Sighting(ServerProblem(worst.reason, f"{said} {worst.message}", outlook))


def disproved(pods: Iterable[Object]) -> list[ServerProblem]:
    """Why pods fail their self-check, and get no requests. While it is being made again, the one before counts."""
    found = []
    for pod in pods:
        check = named(pod, SELF_CHECK)
        ended = last_end(check)
        failed = ended is not None and ended["exitCode"] == ExitCode.FATAL and not check.get("ready")
        if ended is not None and failed and not ending(pod):
            found.append(container_problem(pod, check, ended))
    return found


def _crowded_out(pods: Sequence[Object]) -> ServerProblem | None:
    """That nodes have evicted pod after pod because they had too little disk or memory for it, and none is ready: the
    next one would download as much, and go the same way. None if they have not."""
    lacked = {str(pod["metadata"]["name"]): lack for pod in pods if (lack := what_its_node_lacked(pod))}
    if len(lacked) < CRASHES or any(map(is_ready, pods)):
        return None
    last = max((pod for pod in pods if pod["metadata"]["name"] in lacked), key=_ended_at)
    resources = " and ".join(sorted(set(lacked.values())))
    said = f"Nodes that were low on {resources} have evicted {len(lacked)} of its pods."
    cause = ending(last)
    return ServerProblem(Reason.PREEMPTED, f"{said} {cause.message if cause else ''}".strip(), Outlook.GIVE_BACK)


def _fills_its_disk(pods: Iterable[Object], since: datetime) -> ServerProblem | None:
    """Why pods were evicted for the third time since a revision took over, each for more than it may write."""
    ended = [(pod, found) for pod in sorted(pods, key=_ended_at) if (found := ending(pod))]
    ours = [(pod, found) for pod, found in ended if found.reason is Reason.SCRATCH_FULL]
    full = [found for pod, found in ours if parse_timestamp(_ended_at(pod)) >= since]
    if len(full) < CRASHES:
        return None
    return replace(full[-1], message=f"{len(full)} of its pods were evicted. {full[-1].message}", outlook=Outlook.FAIL)


def _crash_loop(pod: Object, since: datetime) -> ServerProblem | None:
    """Why a pod's server has ended for the third time or more; None if it has not.

    The count is that of the pod's whole life, so that the pods of an earlier revision bring theirs along. It counts if
    the last run, which ended, was not the first since the revision took over.
    """
    for container in containers(pod):
        ended = last_end(container)
        if container["name"] != SERVER or ended is None or went_with_node(ended):
            continue
        times = [parse_timestamp(ended[field]) for field in ("startedAt", "finishedAt") if ended.get(field)]
        if any(time < since for time in times):
            continue
        if container.get("restartCount", 0) >= CRASHES:
            return container_problem(pod, container, ended)
    return None


def crash_since(pods: Sequence[Object], since: datetime) -> ServerProblem | None:
    """Why a server has ended since a time, be it once; None if none has. One that was lost with its node, or had to
    leave it, has not crashed; where its node has restarted, it is given back, unless another one has crashed."""
    return max(_ends_since(pods, since), key=lambda problem: problem.outlook, default=None)


def _ends_since(pods: Sequence[Object], since: datetime) -> Iterator[ServerProblem]:
    """Why servers have ended since a time, be it once."""
    for pod in pods:
        for container in containers(pod):
            ended = last_end(container)
            if container["name"] != SERVER or ending(pod) or ended is None:
                continue
            if ended.get("finishedAt") and parse_timestamp(ended["finishedAt"]) >= since:
                problem = container_problem(pod, container, ended)
                yield replace(problem, outlook=Outlook.GIVE_BACK if went_with_node(ended) else Outlook.FAIL)


def _silent_for(deployment: Object | None, pods: Sequence[Object], now: datetime) -> list[float]:
    """For how many seconds pods that should answer have not: those that were up; or, where there are none, those that
    something keeps from loading, unless another one loads, which may answer in a moment."""
    silent = [seconds for pod in pods if _has_served(pod) and (seconds := unready_seconds(pod, now)) is not None]
    if silent:
        return silent
    held = [_held_for(pod, now) for pod in pods]
    known = [seconds for seconds in held if seconds is not None]
    return [*known, *_refused_for(deployment, now)] if len(known) == len(held) else []


def _held_for(pod: Object, now: datetime) -> float | None:
    """For how many seconds something has kept a new pod from loading its model: it finds no node, its node finds no
    image, or the download has failed and is tried again. None for any other pod."""
    if "running" in (named(pod, SERVER).get("state") or {}) or not any(pod_problems(pod)):
        return None
    unready, since = unready_seconds(pod, now), unscheduled_since(pod)
    return _age(since, now) if unready is None and since else unready


def _refused_for(deployment: Object | None, now: datetime) -> list[float]:
    """For how many seconds the API server has refused a revision's pods; nothing if it does not."""
    failure = find_condition((deployment or {}).get("status") or {}, "ReplicaFailure")
    since = failure.get("lastTransitionTime") if failure else None
    return [_age(since, now)] if since else []


def _age(time: str, now: datetime) -> float:
    return (now - parse_timestamp(time)).total_seconds()


def _has_served(pod: Object) -> bool:
    """Whether a pod's server has been up in its time, and has been proved or disproved, or cannot be: what keeps it
    from being ready now is neither the loading nor the self-check."""
    server, check = named(pod, SERVER), named(pod, SELF_CHECK)
    if server.get("restartCount"):
        return True
    if not check or check.get("ready"):
        return bool(server.get("started"))
    ended = last_end(check)
    if ended is None or not server.get("started"):
        return False
    # A server that has not answered it time and again does not answer. If anything else ended it, it proves on.
    unanswered = ended["exitCode"] == ExitCode.RETRIABLE and check.get("restartCount", 0) >= CRASHES
    return unanswered or ended["exitCode"] in (ExitCode.OK, ExitCode.FATAL)  # OK: its server has ended


def fetched(pod: Object) -> StageResult | None:
    """What a pod's ``fetch`` has said at its end; None: it has not ended, or left nothing."""
    ended = last_end(named(pod, FETCH))
    return parse_result(ended.get("message")) if ended else None


def withdrawn(pods: Iterable[Object]) -> str:
    """What a pod was told of its artifact's withdrawal when it fetched it; empty: nothing."""
    told = (result.scalars.get("withdrawn", "") for pod in pods if (result := fetched(pod)) is not None)
    return next(filter(None, told), "")


def _in_time(pod: Object, limit: float, now: datetime) -> ServerProblem | None:
    """The worst problem of a candidate's pod, whose time is limited from when it has a node."""
    worst = max(pod_problems(pod), key=lambda problem: problem.outlook, default=None)
    pulls = worst is not None and worst.reason is Reason.IMAGE_PULL_FAILED
    patience, waited = PULL_PATIENCE_SECONDS if pulls else limit, unready_seconds(pod, now)
    if (worst and worst.outlook is Outlook.FAIL) or waited is None or waited < patience:
        return worst
    name = pod["metadata"]["name"]
    root = worst or ServerProblem(Reason.DEADLINE_EXCEEDED, f"The server of pod {name} did not become ready.")
    outlook = Outlook.GIVE_BACK if root.reason in PASSING else Outlook.FAIL
    return ServerProblem(root.reason, f"Not available after {patience:.0f} s. {root.message}", outlook)


def _refused(deployment: Object | None) -> Iterator[ServerProblem]:
    """Why the API server refuses more pods."""
    failure = find_condition((deployment or {}).get("status") or {}, "ReplicaFailure")
    if failure:
        yield ServerProblem(*refusal(failure.get("message", "")))


def _last_loss(pods: Iterable[Object]) -> ServerProblem | None:
    """Why the newest pod ended that no ready pod has replaced."""
    ended = [(_ended_at(pod), found) for pod in pods if (found := ending(pod))]
    replaced = max((pod["metadata"].get("creationTimestamp", "") for pod in pods if is_ready(pod)), default="")
    when, newest = max(ended, key=lambda each: each[0], default=("", None))
    return newest if when > replaced else None


def _ended_at(pod: Object) -> str:
    """When a pod ended; RFC 3339 in UTC, as everything here."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    times: list[str] = [each.get("lastTransitionTime") or "" for each in conditions]
    return max([*times, str(pod["metadata"].get("creationTimestamp", ""))])
