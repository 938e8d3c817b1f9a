"""The history of revisions in the status: one line each, the one that started last first. Pure.

Each pass writes down what has become of the revisions since the one before. What their pods are made of is in their
records (``record.py``), which are kept as long as their lines.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from finetune_api.adapterdeployment import HISTORY, RevisionState, RevisionStatus, RevisionSummary
from finetune_operator.adapterdeployment.turns import ACTIVE
from finetune_operator.framework.conditions import timestamp

_MESSAGE_LIMIT: Final = 256
"""The API's limit: the conditions say more."""
_OVER: Final = frozenset({RevisionState.FAILED, RevisionState.SUPERSEDED})
"""States in which a revision has ended."""


def history(
    before: Sequence[RevisionSummary],
    stable: RevisionStatus | None,
    candidate: RevisionStatus | None,
    images: Mapping[str, str],
    now: datetime,
) -> list[RevisionSummary]:
    """The history after this pass.

    Args:
        before: the history so far.
        stable: the revision that serves.
        candidate: the one that is to serve, or has failed. One that has not started yet, or is tried again after an
            earlier operator forgot it, has a line from its start on.
        images: the images of the servers, by revision, as far as they are known.
        now: the time of this pass.
    """
    known = {line.revision: line for line in before}
    current = [each for each in (candidate, stable) if each is not None and _has_a_line(each, known)]
    for each in current:
        known[each.revision] = _line(known.get(each.revision), each, images, now)
    names = {each.revision for each in current}
    lines = [line if line.revision in names else _given_up(line, now) for line in known.values()]
    lines.sort(key=lambda line: (line.started_at or "", line.revision in names), reverse=True)
    spare = HISTORY - len(names)
    others = [line.revision for line in lines if line.revision not in names][:spare]
    return [line for line in lines if line.revision in names or line.revision in others]


def _has_a_line(revision: RevisionStatus, known: Mapping[str, RevisionSummary]) -> bool:
    return revision.state is not RevisionState.WAITING or revision.revision in known


def _line(
    line: RevisionSummary | None, revision: RevisionStatus, images: Mapping[str, str], now: datetime
) -> RevisionSummary:
    """The line of a revision that is in the status."""
    if line is not None and line.state in _OVER and revision.state is RevisionState.WAITING:
        return line  # it has not begun again yet
    again = line is not None and line.state in _OVER and revision.state in ACTIVE
    if line is None or again:
        line = RevisionSummary(
            revision=revision.revision,
            state=revision.state,
            artifact_digest=revision.artifact_digest,
            started_at=revision.since,
        )
    changed: dict[str, Any] = {
        "state": revision.state,
        "runtime": revision.runtime,
        "image": images.get(revision.revision, line.image),
        "reason": revision.reason,
        "message": revision.message[:_MESSAGE_LIMIT],
        "ended_at": (line.ended_at or timestamp(now)) if revision.state in _OVER else None,
    }
    if revision.state is RevisionState.SERVING:
        changed["promoted_at"] = revision.since
    return line.model_copy(update=changed)


def _given_up(line: RevisionSummary, now: datetime) -> RevisionSummary:
    """The line of a revision that is no longer in the status: another one is served, or is to be."""
    if line.state in _OVER:
        return line
    return line.model_copy(
        update={"state": RevisionState.SUPERSEDED, "reason": "", "message": "", "ended_at": timestamp(now)}
    )
