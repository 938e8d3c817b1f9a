"""Jobs beside the serving pods: what makes one, and why one that no rollout waits for (a look at a channel, adapters on
pods that serve) does not run. Pure."""

from datetime import datetime

from finetune_api.meta import ADAPTERDEPLOYMENT
from finetune_api.reasons import remedy
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.actions import Action, Delete
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, Object
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.outcome.no_pod import look_after
from finetune_operator.resources.drift import ensure_exists, has_content
from finetune_operator.resources.stage_job import input_config_map, stage_job
from finetune_operator.resources.stage_request import StageRequest


def stage_objects(observed: ObservedDeployment, request: StageRequest) -> tuple[Action, ...]:
    """What makes a stage's Job and its input, as far as they are missing. An input that is there before the Job, and
    holds anything else, is removed first, whoever made it; the next pass goes on. The Job's pod would refuse it."""
    live, job = observed.child(CONFIG_MAPS, request.name), observed.child(JOBS, request.name)
    if job is None and live is not None and not has_content(live, input_config_map(request)):
        return (Delete(CONFIG_MAPS, request.name, live["metadata"]["uid"]),)
    return (
        *ensure_exists(CONFIG_MAPS, live, lambda: input_config_map(request)),
        *ensure_exists(JOBS, job, lambda: stage_job(request)),
    )


def is_blocked(verdict: Verdict, now: datetime) -> bool:
    """Whether its pod waits for something that a person can act on. A wait for a node is nothing special at first: an
    autoscaler may be adding one."""
    if verdict.state is not State.WAITING or _patience_left(verdict, now):
        return False
    return bool(remedy(verdict.reason, ADAPTERDEPLOYMENT))


def look_again(job: Object, verdict: Verdict, now: datetime) -> float | None:
    """Seconds after which to look at it if nothing is heard of it; None if whatever happens to it is told."""
    if verdict.needs_events:
        return look_after(now - parse_timestamp(job["metadata"]["creationTimestamp"]))
    return _patience_left(verdict, now)


def _patience_left(verdict: Verdict, now: datetime) -> float | None:
    """Seconds until a wait for a node counts as long; None if it does not wait for one, or already for long."""
    if verdict.unschedulable_since is None:
        return None
    left = LONG_WAIT_SECONDS - (now - parse_timestamp(verdict.unschedulable_since)).total_seconds()
    return left if left > 0 else None
