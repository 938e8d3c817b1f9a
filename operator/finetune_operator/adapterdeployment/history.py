"""The history of revisions in the status: one line each, the one that started last first. Pure.

Each pass writes down what has become of the revisions since the one before. What their pods are made of is in their
records (``stored_record.py``), which are kept as long as their lines.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from finetune_api.serving_status import HISTORY, RevisionState, RevisionStatus, RevisionSummary
from finetune_operator.adapterdeployment.turns import ACTIVE
from finetune_operator.framework.conditions import timestamp

_MESSAGE_LIMIT: Final = 256
"""The API's limit: the conditions say more."""
_OVER: Final = frozenset({RevisionState.FAILED, RevisionState.SUPERSEDED, RevisionState.ROLLED_BACK})
"""States in which a revision has ended."""
_SETTLED: Final = frozenset({RevisionState.FAILED, RevisionState.SERVING, RevisionState.KEPT})
"""States of revisions in the status in which nothing more happens to them."""


@dataclass(frozen=True)
class Current:
    """The revisions that this pass leaves in the status."""

    stable: RevisionStatus | None = None
    candidate: RevisionStatus | None = None
    previous: RevisionStatus | None = None
    fallen: RevisionStatus | None = None
    """The one from which this pass takes the traffic back."""
    blocked: str = ""
    """What stands in the way of any candidate; empty: nothing."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Images of the servers, by revision, as far as they are known."""


def history(before: Sequence[RevisionSummary], current: Current, now: datetime) -> list[RevisionSummary]:
    """The history after this pass. A revision has a line from its start on: not while it waits for its turn."""
    known = {line.revision: line for line in before}
    serving = current.stable and current.stable.model_copy(update={"state": RevisionState.SERVING})
    stays = current.previous and current.previous.model_copy(update={"state": RevisionState.KEPT})
    shown = [each for each in (current.candidate, stays, serving) if each and _has_a_line(each, known)]
    for each in shown:
        known[each.revision] = _line(known.get(each.revision), each, current.images, now)
    names = {each.revision for each in shown}
    lines = [line if line.revision in names else _given_up(line, current, now) for line in known.values()]
    lines = [_fallen(line, current.fallen, now) for line in lines]
    lines.sort(key=lambda line: (line.started_at or "", line.revision in names), reverse=True)
    others = [line.revision for line in lines if line.revision not in names]
    kept = names | set(others[: HISTORY - len(names)])
    return [line for line in lines if line.revision in kept]


def was_rolled_back(lines: Iterable[RevisionSummary], revision: RevisionStatus) -> bool:
    """Whether the traffic was taken back from a revision, and it has not been started since."""
    return any(line.revision == revision.revision and line.state is RevisionState.ROLLED_BACK for line in lines)


def _has_a_line(revision: RevisionStatus, known: Mapping[str, RevisionSummary]) -> bool:
    return revision.state is not RevisionState.WAITING or revision.revision in known


def _line(
    line: RevisionSummary | None, revision: RevisionStatus, images: Mapping[str, str], now: datetime
) -> RevisionSummary:
    """The line of a revision that is in the status. One that tells already what it is stays as it is."""
    if line is not None and line.image and line.state == revision.state and revision.state in _SETTLED:
        return line
    if line is not None and line.state in _OVER and revision.state is RevisionState.WAITING:
        return line  # it has not begun again yet
    if line is not None and line.state is RevisionState.ROLLED_BACK and revision.state is RevisionState.FAILED:
        return line
    if line is None or (line.state in _OVER and revision.state in ACTIVE):
        line = RevisionSummary(
            revision=revision.revision,
            state=revision.state,
            artifact_digest=revision.artifact_digest,
            started_at=revision.since,
        )
    ended = revision.state in _OVER or revision.state is RevisionState.KEPT
    changed: dict[str, Any] = {
        "state": revision.state,
        "runtime": revision.runtime,
        "image": images.get(revision.revision, line.image),
        "reason": revision.reason,
        "message": revision.message[:_MESSAGE_LIMIT],
        "ended_at": (line.ended_at or timestamp(now)) if ended else None,
    }
    if revision.state is RevisionState.SERVING:
        changed["promoted_at"] = revision.since
    return line.model_copy(update=changed)


def _given_up(line: RevisionSummary, current: Current, now: datetime) -> RevisionSummary:
    """The line of a revision that is no longer in the status: another one is served, or is to be, or none can be."""
    if line.state in _OVER or not line.state.is_known:
        return line
    changed = {
        "state": RevisionState.SUPERSEDED,
        "reason": "",
        "message": _why_given_up(line, current)[:_MESSAGE_LIMIT],
        "ended_at": line.ended_at or timestamp(now),
    }
    return line.model_copy(update=changed)


def _why_given_up(line: RevisionSummary, current: Current) -> str:
    if line.promoted_at and current.stable:
        return f"Revision {current.stable.revision} serves instead."
    if current.blocked:
        return f"It was given up before it served: {current.blocked}"
    asked = current.candidate or current.stable
    return f"Revision {asked.revision} was asked for instead, before it served." if asked else ""


def _fallen(line: RevisionSummary, fallen: RevisionStatus | None, now: datetime) -> RevisionSummary:
    """The line of a revision from which the traffic is taken back."""
    if fallen is None or line.revision != fallen.revision:
        return line
    changed = {
        "state": RevisionState.ROLLED_BACK,
        "reason": fallen.reason,
        "message": fallen.message[:_MESSAGE_LIMIT],
        "ended_at": timestamp(now),
    }
    return line.model_copy(update=changed)
