"""Looking where a channel points: a Job from time to time, whose verdict goes into the status. Pure.

The operator holds no keys of any store, so it does not look itself. The Job has those of its namespace, reads a few
objects and ends (``finetune_jobs.follow``). Whatever comes of it, what serves keeps serving: a look that finds nothing
is a reason beside the artifact that the last one has found, and one that the API server refuses holds up nothing else.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from finetune_api import meta
from finetune_api.artifact_source import OutputRef
from finetune_api.endpoint_stages import PUBLISHED_AT, FollowParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import ChannelStatus
from finetune_api.stages import Params, Stage, StageInput
from finetune_operator.adapterdeployment.blockers import not_allowed
from finetune_operator.adapterdeployment.candidate import MESSAGE_LIMIT
from finetune_operator.adapterdeployment.channel import asked_of, identity_of, known_channel
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.side_jobs import is_blocked, look_again, stage_objects
from finetune_operator.blockers import choice_unknown
from finetune_operator.framework.actions import Action
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import JOBS, Object
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS
from finetune_operator.outcome.pod import count_of, refusal
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.settings import PodShape

LOOK: Final = "look"
"""The word for its actions, which are optional: what serves can do without them."""
DEADLINE_SECONDS: Final = 300
"""For how long a look may take, from when its pod has a node."""
_RETRIES: Final = 2
_SHAPE: Final = PodShape(
    requests={"cpu": "50m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"}, scratch_size="100Mi"
)


@dataclass(frozen=True)
class Look:
    """What is observed, with what is known of the channel by now in its status."""

    observed: ObservedDeployment
    actions: tuple[Action, ...] = ()
    due_after: float | None = None
    """Seconds until there is something to do for it, if nothing is heard of it."""
    under_way: str = ""
    """Name of the Job, if one looks or is to look."""


def look(observed: ObservedDeployment, now: datetime) -> Look:
    """Start a look that is due, or take in what one has found."""
    asked = observed.resource.spec.source.output
    if asked is None:
        return Look(_knowing(observed, None))
    known = known_channel(observed, asked)
    if choice_unknown(observed) or not_allowed(observed):  # nothing is read in the name of what is not allowed
        return Look(_knowing(observed, known))
    left = _left(observed, asked, known, now)
    if left is None or left > 0:
        return Look(_knowing(observed, known), due_after=left)
    request = _request(observed, asked, known)
    job = observed.child(JOBS, request.name)
    made = stage_objects(observed, request)
    begun = known or _nothing_known(asked)
    if said := observed.unmet.get(LOOK):
        waits = _waiting(begun, *refusal(said))
        return Look(_knowing(observed, waits), made, under_way=request.name)
    if job is None:
        return Look(_knowing(observed, begun), made, FIRST_LOOK_SECONDS, request.name)
    verdict = judge(job, observed.job_pods(job), observed.job_events.get(request.name, ()), now)
    if verdict.state in UNFINISHED:
        waits = _waiting(begun, verdict.reason, verdict.message) if is_blocked(verdict, now) else begun
        return Look(_knowing(observed, waits), made, look_again(job, verdict, now), request.name)
    looked = {"looked_at": _looked_at(begun, job, verdict, now), "asked": asked_of(observed)}
    found = _found(begun, verdict).model_copy(update=looked)
    return Look(_knowing(observed, found), due_after=_left(_knowing(observed, found), asked, found, now))


def is_of_look(child: Object) -> bool:
    """Whether a Job or ConfigMap is one of a look."""
    return (child["metadata"].get("labels") or {}).get(meta.LABEL_STAGE) == Stage.FOLLOW.value


def _left(observed: ObservedDeployment, asked: OutputRef, known: ChannelStatus | None, now: datetime) -> float | None:
    """Seconds until the next look; None: none is due by itself."""
    if known is None or known.looked_at is None or known.asked != asked_of(observed):
        return 0.0
    if not asked.interval_seconds:
        return None
    looked = parse_timestamp(known.looked_at)
    if looked > now:  # the clock was set back, by hours perhaps
        return 0.0
    return max(0.0, (looked + timedelta(seconds=asked.interval_seconds) - now).total_seconds())


def _knowing(observed: ObservedDeployment, known: ChannelStatus | None) -> ObservedDeployment:
    resource = observed.resource
    if known == resource.status.channel:
        return observed
    status = resource.status.model_copy(update={"channel": known})
    return replace(observed, resource=resource.model_copy(update={"status": status}))


def _nothing_known(asked: OutputRef) -> ChannelStatus:
    return ChannelStatus(name=asked.name, channel=asked.channel.value, source=identity_of(asked))


def _waiting(known: ChannelStatus, reason: Reason, said: str) -> ChannelStatus:
    message = f"The Job that looks up the channel is waiting. {said}"
    return known.model_copy(update={"reason": reason.value, "message": message[:MESSAGE_LIMIT]})


def _looked_at(known: ChannelStatus, job: Object, verdict: Verdict, now: datetime) -> str:
    """When a Job has looked: if nobody took in for hours what it has found, that is as old.

    It ended after it was created, whatever a node's clock says, and after the look before: by that time the next Job
    has another name.
    """
    times = [parse_timestamp(each) for each in (verdict.finished_at, job["metadata"]["creationTimestamp"]) if each]
    times += [parse_timestamp(known.looked_at) + timedelta(seconds=1)] if known.looked_at else []
    return timestamp(min(now, max(times)))


def _found(known: ChannelStatus, verdict: Verdict) -> ChannelStatus:
    """What a Job has found that has ended. One whose result is lost has found nothing."""
    result = verdict.result
    if verdict.state is State.SUCCEEDED and result is not None:
        published = result.scalars.get(PUBLISHED_AT)
        size = count_of(result.scalars, "sizeBytes")
        update = {"artifact_digest": result.output_digest, "published_at": _moment(published), "size_bytes": size}
        return known.model_copy(update=update | {"reason": "", "message": ""})
    reason = verdict.reason if verdict.state is State.FAILED else Reason.RESULT_LOST
    message = verdict.message if verdict.state is State.FAILED else "The result of the channel lookup is lost."
    if known.artifact_digest:
        message = (
            f"{message} Artifact {known.artifact_digest[:12]}, found by an earlier lookup, is still the one to serve."
        )
    return known.model_copy(update={"reason": reason.value, "message": message[:MESSAGE_LIMIT]})


def _moment(text: str | None) -> str | None:
    try:
        return timestamp(parse_timestamp(text)) if text else None
    except ValueError:
        return None


def _request(observed: ObservedDeployment, asked: OutputRef, known: ChannelStatus | None) -> StageRequest:
    """The Job of the next look: another one for each, and the same one until its verdict is in the status."""
    owner, settings, spec = observed.owner, observed.settings, observed.resource.spec
    params = FollowParams(uri=asked.uri, name=asked.name, channel=asked.channel, withdrawn=spec.policy.withdrawn)
    before = known.looked_at if known is not None else None
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.FOLLOW,
            run=run_ref(owner, asked.channel.value),
            storage=asked.storage.for_reading,
            params=Params(follow=params),
        ),
        identity=[owner.uid, identity_of(asked), asked_of(observed), before],
        image=settings.images.of(Stage.FOLLOW),
        images=settings.images,
        proxy=settings.proxy,
        shape=_SHAPE,
        service_account=settings.runtimes[spec.runtime].service_account_name,
        deadline_seconds=DEADLINE_SECONDS,
        retries=_RETRIES,
    )
