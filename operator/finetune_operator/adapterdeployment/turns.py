"""Whose turn it is: a few endpoints are rolled out at once, the others wait in line and serve as before. Pure.

The line is in the statuses, as the cache has them, and nowhere else, so that a restart of the operator loses nothing:
a candidate that waits is recorded first, and starts in a later pass if its place is among the free ones. Everybody
reads the same line and has another place in it. The passes that may take a place do not overlap (``may_start``), so
that each sees who has started before it, however slow the API server is. Nobody blocks the line for ever: a candidate
takes a turn for ``TURN_SECONDS`` per state at most, for less if it waits for hardware, and one that failed, or has
given its hardware back, takes none.

One that has announced a gap in service (``gap.py``) takes none either until the gap begins: it serves as before, for as
long as the notice is. When the notice is over, it goes before all that wait in line.

Endpoints that serve nothing yet do not wait: nothing would be served meanwhile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.health import HOLDS_NOTHING, LONG_WAIT_SECONDS
from finetune_operator.framework.conditions import ConditionType, parse_timestamp
from finetune_operator.framework.objects import Object

ACTIVE: Final = frozenset(
    {
        *(RevisionState.STOPPING, RevisionState.STARTING, RevisionState.VERIFYING),
        *(RevisionState.CANARY, RevisionState.PROMOTING),
    }
)
"""States of a candidate that is under way: it has pods, or others stop for it."""
TURN_SECONDS: Final = 3600.0
"""How long a candidate counts as rolled out in one state; after that, something holds it up, and others go on."""
LOOK_SECONDS: Final = 20.0
"""How often those next in line look whether it is their turn; those behind look less often. A place that becomes free
by an event gives the next one a turn at once (``controller.py``); this is for places that become free by time."""
MOST_LOOK_SECONDS: Final = 600.0
SOON_SECONDS: Final = 2.0
"""So long before a gap begins nobody else is given the place that it needs."""
_NAMES: Final = 3
"""So many others are named in a message."""


@dataclass(frozen=True)
class Contender:
    """An endpoint that serves, with a candidate that is to take over."""

    namespace: str
    name: str
    uid: str
    state: RevisionState
    reason: str
    since: str
    patient: bool
    """Only the platform's settings have changed, and clients get answers: whoever changed a spec goes first."""
    gap_starts_at: str = ""
    """When its gap in service is to begin; empty for one that has announced none, or whose gap has begun."""

    @property
    def place(self) -> tuple[bool, bool, str, str]:
        """Those that wait, sorted: what is announced first, then what people ask for, then the oldest."""
        announced = bool(self.gap_starts_at)
        return not announced, self.patient and not announced, self.gap_starts_at or self.since, self.uid

    def takes_turn(self, now: datetime) -> bool:
        """Whether it counts as one that is rolled out."""
        if self.gap_starts_at:
            return False
        limit = LONG_WAIT_SECONDS if self.reason in HOLDS_NOTHING else TURN_SECONDS
        return self.state in ACTIVE and (now - parse_timestamp(self.since)).total_seconds() < limit

    def waits(self, now: datetime) -> bool:
        """Whether it would start if it had a turn: it is in line, or the notice of its gap is over."""
        return self.in_line or bool(self.gap_starts_at and parse_timestamp(self.gap_starts_at) <= now)

    @property
    def in_line(self) -> bool:
        """Whether it waits for its turn."""
        return self.state is RevisionState.WAITING and self.reason == Reason.ROLLOUT_QUEUED


@dataclass(frozen=True)
class Turn:
    """The place of an endpoint in the line."""

    limit: int
    """So many are rolled out at once."""
    running: tuple[Contender, ...] = ()
    ahead: tuple[Contender, ...] = ()

    @property
    def has_come(self) -> bool:
        """Whether it may start."""
        return len(self.running) + len(self.ahead) < self.limit

    @property
    def look_after(self) -> float:
        """Seconds until it should look again. A long line costs little: those far behind look rarely."""
        rounds = 1 + (len(self.running) + len(self.ahead) - self.limit) // self.limit
        return min(MOST_LOOK_SECONDS, LOOK_SECONDS * rounds)

    def message(self, namespace: str) -> str:
        """What it waits for. Another namespace may belong to another tenant: names in it are not disclosed."""
        return (
            f"Waiting for its turn: {_named(self.running, namespace)} being rolled out, and the platform allows "
            f"{self.limit} at once (operator.maxConcurrentRollouts); {_named(self.ahead, namespace)} ahead of it."
        )


def is_queued(revision: RevisionStatus) -> bool:
    """Whether a candidate waits for its turn."""
    return revision.state is RevisionState.WAITING and revision.reason == Reason.ROLLOUT_QUEUED


def is_announced(candidate: RevisionStatus | None) -> bool:
    """Whether the pods of what serves stop for a candidate, now or later."""
    return candidate is not None and candidate.state in ACTIVE and candidate.gap_starts_at is not None


def is_ahead(candidate: RevisionStatus | None) -> bool:
    """Whether a gap is announced, and what serves goes on serving: until the notice is over and it has a turn."""
    return is_announced(candidate) and candidate is not None and candidate.reason == Reason.GAP_ANNOUNCED


def contenders_for(candidate: RevisionStatus | None, resources: Iterable[Object]) -> tuple[Contender, ...]:
    """Those of the AdapterDeployments that are rolled out or wait for it, if a candidate has to know: one that waits,
    or whose gap in service has not begun."""
    waits = is_ahead(candidate) or (candidate is not None and candidate.state is RevisionState.WAITING)
    found = map(contender_of, resources) if waits else ()
    return tuple(contender for contender in found if contender is not None)


def contender_of(resource: Object) -> Contender | None:
    """An AdapterDeployment as one of those that are rolled out or wait for it; None if it is neither."""
    metadata, status = resource["metadata"], resource.get("status") or {}
    candidate, stable = status.get("candidate"), status.get("stable")
    if not candidate or not stable or metadata.get("deletionTimestamp"):
        return None
    state = next((each for each in (*ACTIVE, RevisionState.WAITING) if each == candidate.get("state")), None)
    if state is None:
        return None
    conditions = status.get("conditions") or []
    answers = any(each["type"] == ConditionType.READY and each["status"] == "True" for each in conditions)
    announced = state is RevisionState.STOPPING and candidate.get("reason") == Reason.GAP_ANNOUNCED
    same = all(candidate.get(field) == stable.get(field) for field in ("specHash", "artifactDigest"))
    return Contender(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        state=state,
        reason=candidate.get("reason", ""),
        since=candidate["since"],
        patient=same and answers,
        gap_starts_at=(candidate.get("gapStartsAt") or "") if announced else "",
    )


def may_start(resource: Object) -> bool:
    """Whether a pass over an AdapterDeployment may find that its turn has come."""
    contender = contender_of(resource)
    return contender is not None and (contender.in_line or bool(contender.gap_starts_at))


class Line(Enum):
    """The line, as the cache finds who is in it."""

    ROLLOUTS = "rollouts"


def line_of(resource: Object) -> Line | None:
    """The line, for an AdapterDeployment that is rolled out or waits for it."""
    return None if contender_of(resource) is None else Line.ROLLOUTS


def find_turn(contenders: Sequence[Contender], uid: str, limit: int, now: datetime) -> Turn | None:
    """The turn of the endpoint with this uid; None if it does not wait for one. A gap that is about to begin counts as
    waiting for all others: it may begin before they are seen to have started."""
    soon = now + timedelta(seconds=SOON_SECONDS)
    me = next((each for each in contenders if each.uid == uid and each.waits(now)), None)
    if me is None:
        return None
    others = [each for each in contenders if each.uid != uid]
    return Turn(
        limit=limit,
        running=tuple(sorted((each for each in others if each.takes_turn(now)), key=lambda each: each.place)),
        ahead=tuple(sorted((o for o in others if o.waits(soon) and o.place < me.place), key=lambda each: each.place)),
    )


def frees_a_place(resource: Object) -> bool:
    """Whether an AdapterDeployment, as it is now, takes no turn and waits for none: it may just have had one."""
    contender = contender_of(resource)
    return contender is None or not (contender.state in ACTIVE or contender.in_line) or bool(contender.gap_starts_at)


def next_in_line(contenders: Sequence[Contender], limit: int, now: datetime) -> list[Contender]:
    """Those that wait and whose turn has come: as many as there are free places."""
    running = sum(each.takes_turn(now) for each in contenders)
    waiting = sorted((each for each in contenders if each.waits(now)), key=lambda each: each.place)
    return waiting[: max(0, limit - running)]


def _named(contenders: Iterable[Contender], namespace: str) -> str:
    """So many, with the names of those in the same namespace, and the verb."""
    found = list(contenders)
    own = [each.name for each in found if each.namespace == namespace]
    names = ", ".join(own[:_NAMES]) + (", …" if len(own) > _NAMES else "")
    count = f"{len(found)} {'endpoint is' if len(found) == 1 else 'endpoints are'}"
    return count.replace(" ", f" ({names}) ", 1) if names else count
