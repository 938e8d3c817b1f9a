"""Looking where channels point: a Job for each from time to time, whose verdict goes into the status. Pure.

The operator holds no keys of any store, so it does not look itself. A Job has those of its namespace, reads a few
objects and ends (``finetune_jobs.follow``). Whatever comes of it, what serves keeps serving: a look that finds nothing
is a reason beside the artifact that the last one has found, and one that the API server refuses holds up nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from finetune_api import meta
from finetune_api.artifact_source import OutputRef
from finetune_api.endpoint_stages import PUBLISHED_AT, FollowParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import ChannelStatus
from finetune_api.stages import Params, Stage, StageInput
from finetune_operator.adapterdeployment.blockers import not_allowed_to_look
from finetune_operator.adapterdeployment.candidate import MESSAGE_LIMIT
from finetune_operator.adapterdeployment.channel import (
    all_known,
    asked_of,
    facts_of,
    identity_of,
    knowing,
    known_channel,
    nothing_known,
)
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.side_jobs import is_blocked, look_again, stage_objects
from finetune_operator.blockers import choice_unknown
from finetune_operator.framework.actions import Action
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import JOBS, Object
from finetune_operator.outcome.artifact import artifact_of
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS
from finetune_operator.outcome.pod import refusal
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.settings import PodShape

_LOOK: Final = "look"
"""Begins the word for the actions of a look, which are optional: what serves can do without them."""
DEADLINE_SECONDS: Final = 300
"""For how long a look may take, from when its pod has a node."""
_RETRIES: Final = 2
_SHAPE: Final = PodShape(
    requests={"cpu": "50m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"}, scratch_size="100Mi"
)


@dataclass(frozen=True)
class Look:
    """What is observed, with what is known of the channels by now in its status."""

    observed: ObservedDeployment
    actions: Mapping[str, tuple[Action, ...]] = field(default_factory=dict)
    """By the word of each look."""
    due_after: float | None = None
    """Seconds until there is something to do for one, if nothing is heard of it."""
    under_way: Mapping[str, str] = field(default_factory=dict)
    """Names of the Jobs that look or are to look, by adapter."""


def look(observed: ObservedDeployment, now: datetime) -> Look:
    """Start the looks that are due, or take in what they have found."""
    channels = observed.resource.spec.source.channels
    # Nothing is read in the name of what is not allowed.
    idle = bool(channels) and (choice_unknown(observed) or not_allowed_to_look(observed)) is not None
    known = {adapter: known_channel(observed, asked, adapter) for adapter, asked in channels.items()}
    seen = {
        adapter: _Seen(known[adapter]) if idle else _look(_Channel(observed, adapter, asked, known[adapter], now))
        for adapter, asked in channels.items()
    }
    return Look(
        knowing(observed, {adapter: each.known for adapter, each in seen.items() if each.known is not None}),
        {_word(adapter): each.actions for adapter, each in seen.items()},
        min((each.due_after for each in seen.values() if each.due_after is not None), default=None),
        {adapter: each.under_way for adapter, each in seen.items() if each.under_way},
    )


def is_past(child: Object, observed: ObservedDeployment, under_way: Mapping[str, str]) -> bool:
    """Whether a look's Job or ConfigMap is of no use any more. The one of the newest look stays until the next one, for
    people who read its log."""
    metadata = child["metadata"]
    adapter = (metadata.get("labels") or {}).get(meta.LABEL_ADAPTER, "")
    looking = under_way.get(adapter, "")
    return bool(metadata["name"] != looking and (looking or adapter not in all_known(observed)))


def is_of_look(child: Object) -> bool:
    """Whether a Job or ConfigMap is one of a look."""
    return (child["metadata"].get("labels") or {}).get(meta.LABEL_STAGE) == Stage.FOLLOW.value


@dataclass(frozen=True)
class _Channel:
    """One of the channels, and what the status knows of it."""

    observed: ObservedDeployment
    adapter: str
    asked: OutputRef
    known: ChannelStatus | None
    now: datetime


@dataclass(frozen=True)
class _Seen:
    """What becomes of one of the looks."""

    known: ChannelStatus | None
    actions: tuple[Action, ...] = ()
    due_after: float | None = None
    under_way: str = ""


def _look(channel: _Channel) -> _Seen:
    observed, known, now = channel.observed, channel.known, channel.now
    left = _left(channel)
    if left is None or left > 0:
        return _Seen(known, due_after=left)
    request = _request(channel)
    job = observed.child(JOBS, request.name)
    made = stage_objects(observed, request)
    begun = known or nothing_known(channel.asked, channel.adapter)
    if said := observed.unmet.get(_word(channel.adapter)):
        return _Seen(_waiting(begun, *refusal(said)), made, under_way=request.name)
    if job is None:
        return _Seen(begun, made, FIRST_LOOK_SECONDS, request.name)
    verdict = judge(job, observed.job_pods(job), observed.job_events.get(request.name, ()), now)
    if verdict.state in UNFINISHED:
        waits = _waiting(begun, verdict.reason, verdict.message) if is_blocked(verdict, now) else begun
        return _Seen(waits, made, look_again(job, verdict, now), request.name)
    looked = {"looked_at": _looked_at(begun, job, verdict, now), "asked": asked_of(observed)}
    found = _found(channel.asked, begun, verdict).model_copy(update=looked)
    return _Seen(found, due_after=_left(replace(channel, known=found)))


def _word(adapter: str) -> str:
    return f"{_LOOK} {adapter}".strip()


def _left(channel: _Channel) -> float | None:
    """Seconds until the next look; None: none is due by itself."""
    known, asked, now = channel.known, channel.asked, channel.now
    if known is None or known.looked_at is None or known.asked != asked_of(channel.observed):
        return 0.0
    if not asked.interval_seconds:
        return None
    looked = parse_timestamp(known.looked_at)
    if looked > now:  # the clock was set back, by hours perhaps
        return 0.0
    return max(0.0, (looked + timedelta(seconds=asked.interval_seconds) - now).total_seconds())


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


def _found(asked: OutputRef, known: ChannelStatus, verdict: Verdict) -> ChannelStatus:
    """What a Job has found that has ended. One whose result is lost has found nothing."""
    result = verdict.result
    if verdict.state is State.SUCCEEDED and result is not None:
        digest = result.output_digest
        found = artifact_of(digest, asked.artifact_uri(digest), result.scalars)
        update = {
            "artifact_digest": digest,
            # What an earlier look has read is still so, and without it the same artifact would be another revision.
            "artifact": found if found.format else facts_of(known, digest),
            "published_at": _moment(result.scalars.get(PUBLISHED_AT)),
        }
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


def _request(channel: _Channel) -> StageRequest:
    """The Job of the next look: another one for each, and the same one until its verdict is in the status."""
    observed, asked, adapter = channel.observed, channel.asked, channel.adapter
    owner, settings, spec = observed.owner, observed.settings, observed.resource.spec
    params = FollowParams(uri=asked.uri, name=asked.name, channel=asked.channel, withdrawn=spec.policy.withdrawn)
    before = channel.known.looked_at if channel.known is not None else None
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.FOLLOW,
            run=run_ref(owner, asked.channel.value),
            storage=asked.storage.for_reading,
            params=Params(follow=params),
        ),
        identity=[owner.uid, identity_of(asked), asked_of(observed), before, *([adapter] if adapter else [])],
        labels={meta.LABEL_ADAPTER: adapter} if adapter else {},
        image=settings.images.of(Stage.FOLLOW),
        images=settings.images,
        proxy=settings.proxy,
        shape=_SHAPE,
        service_account=settings.runtimes[spec.runtime].service_account_name,
        deadline_seconds=DEADLINE_SECONDS,
        retries=_RETRIES,
    )
