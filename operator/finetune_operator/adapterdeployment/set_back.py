"""The times in the status, once the clock was set back. Pure.

What is said to have happened later than now counts as having happened now, and what was to follow it moves along.
Otherwise a pause, or the time for which pods are kept, would last longer by as much as the clock was set back; and
until then a crash of what serves would be taken for one from before it served.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from finetune_api.serving_status import CanaryStatus, RevisionStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.turns import is_queued
from finetune_operator.framework.conditions import parse_timestamp, timestamp

_HAPPENED: Final = ("started_at", "reached_at", "stable_unready_since")
"""Times of a canary that lie in the past."""


def by_the_clock(observed: ObservedDeployment, now: datetime) -> ObservedDeployment:
    """What was observed, with a status in which nothing has happened later than now."""
    status = observed.resource.status
    known = {
        "stable": status.stable and _revision(status.stable, now),
        "candidate": status.candidate and _revision(status.candidate, now),
        "previous": status.previous and _revision(status.previous, now),
        "conditions": [
            each.model_copy(update={"last_transition_time": _past(each.last_transition_time, now)})
            for each in status.conditions
        ],
    }
    found = status.model_copy(update=known)
    if found == status:
        return observed
    return replace(observed, resource=observed.resource.model_copy(update={"status": found}))


def _revision(revision: RevisionStatus, now: datetime) -> RevisionStatus:
    if is_queued(revision):  # the time is its place in line, and no period
        return revision
    return revision.model_copy(
        update={
            "since": _past(revision.since, now),
            "gap_starts_at": _after(revision.gap_starts_at, revision.since, now),
            "canary": revision.canary and _canary(revision.canary, now),
        }
    )


def _canary(canary: CanaryStatus, now: datetime) -> CanaryStatus:
    happened = {name: _past(value, now) for name in _HAPPENED if (value := getattr(canary, name))}
    analysis = canary.analysis
    if analysis is not None:
        analysis = analysis.model_copy(update={"until": _after(analysis.until, canary.reached_at, now)})
    until = _after(canary.until, canary.reached_at, now)
    return canary.model_copy(update=happened | {"until": until, "analysis": analysis})


def _past(text: str, now: datetime) -> str:
    return timestamp(now) if parse_timestamp(text) > now else text


def _after(text: str | None, since: str | None, now: datetime) -> str | None:
    """When something is to be that follows a time: as long after it as before."""
    ahead = parse_timestamp(since) - now if since else timedelta()
    return timestamp(parse_timestamp(text) - ahead) if text and ahead > timedelta() else text
