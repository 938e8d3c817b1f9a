"""A file of votes: what the review page exports, and what is refused of it. Pure functions.

A file belongs to one page: it names the run and the digest of the pairs. What does not fit is refused as a whole, with
the place and what to do, since a file that was changed by hand or belongs to other answers proves nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_api.base import WireModel
from finetune_api.reasons import Reason
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.metrics import at_every_look
from finetune_jobs.evaluation.review.sheet import ReviewSheet

MOST_BYTES: Final = 1_000_000
"""A file with a vote on each pair has 15 kB."""
REVIEWER: Final = r"^[a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?$"
"""Names of reviewers: they become names of objects."""


class Choice(StrEnum):
    """What a reviewer says of a pair."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"
    BOTH_BAD = "bothBad"


class Vote(WireModel):
    """One choice."""

    pair: str
    choice: Choice


class VotesFile(WireModel):
    """What one reviewer said."""

    SCHEMA: ClassVar[int] = 1

    schema_version: int = SCHEMA
    run: str
    digest: str
    """ReviewSheet.address of the page."""
    reviewer: Annotated[str, Field(pattern=REVIEWER)]
    votes: list[Vote]


@dataclass(frozen=True)
class Tally:
    """The votes of all reviewers."""

    votes: int
    reviewers: int
    pairs: int
    """Pairs with a vote."""
    wins: int
    """Votes for the artifact."""
    losses: int
    """Votes for what it is compared with."""
    ties: int
    both_bad: int
    win_rate: float
    """Of the artifact, 0 to 1; a tie is half a win, and so is a pair of bad answers."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    means: Mapping[str, float] = field(default_factory=dict)
    """Of each pair with a vote, the mean of its votes: 1 for the artifact, 0 against it."""


def read_votes(content: bytes, place: str, sheet: ReviewSheet) -> VotesFile:
    """A file that belongs to this review. Raises StageError (SpecInvalid)."""
    require_size(len(content), place)
    try:
        file = parse_json(content, VotesFile, place, Reason.SPEC_INVALID)
    except StageError as error:
        raise StageError(error.reason, f"{error.message} {_REMEDY}") from None
    if file.run != sheet.run:
        raise _refused(place, f"it belongs to run {shorten(file.run)!r}, and this evaluation to {sheet.run!r}")
    if file.digest != sheet.address:
        other = shorten(file.digest, 13)
        raise _refused(place, f"it is about other answers (digest {other!r}, and this page has {sheet.address[:12]!r})")
    known, votable = {pair.id for pair in sheet.pairs}, {pair.id for pair in sheet.votable}
    for number, vote in enumerate(file.votes):
        where = f"votes[{number}] is about pair {shorten(vote.pair)!r}"
        if vote.pair not in known:
            raise _refused(place, f"{where}, which the page does not have")
        if vote.pair not in votable:
            raise _refused(place, f"{where}, whose answers are the same")
    if twice := [pair for pair, count in Counter(vote.pair for vote in file.votes).items() if count > 1]:
        raise _refused(place, f"it has several votes on pair {twice[0]!r}")
    if not file.votes:
        raise _refused(place, "it has no votes")
    return file


def require_size(size: int, place: str) -> None:
    """Raises StageError (SpecInvalid) for a file of more than MOST_BYTES."""
    if size > MOST_BYTES:
        raise _refused(place, f"it has {size:,} bytes; a file of votes has at most {MOST_BYTES:,}")


_REMEDY: Final = "Export the votes again from review.html of this evaluation, and change nothing in the file."


def _refused(place: str, why: str) -> StageError:
    return StageError(Reason.SPEC_INVALID, f"{place} is not a file of votes on this review: {why}. {_REMEDY}")


def tally(sheet: ReviewSheet, files: Sequence[VotesFile]) -> Tally:
    """Count what was checked by ``read_votes``.

    The interval is over the pairs: two reviewers of one pair do not tell as much as two pairs, so each pair counts
    once, with the mean of its votes. It holds at every look, since the votes are counted again and again, and the first
    clear count decides.
    """
    artifact_left = {pair.id: pair.artifact_left for pair in sheet.pairs}
    by_pair: dict[str, list[float]] = {}
    counts: Counter[str] = Counter()
    for file in files:
        for vote in file.votes:
            kind, worth = _worth(vote.choice, artifact_left[vote.pair])
            counts[kind] += 1
            by_pair.setdefault(vote.pair, []).append(worth)
    by_mean = {pair: sum(votes) / len(votes) for pair, votes in by_pair.items()}
    means = list(by_mean.values())
    low, high = at_every_look(sum(means), len(means)) if means else (0.0, 1.0)
    return Tally(
        votes=counts.total(),
        reviewers=len({file.reviewer for file in files if file.votes}),
        pairs=len(means),
        wins=counts["win"],
        losses=counts["loss"],
        ties=counts["tie"],
        both_bad=counts["bad"],
        win_rate=sum(means) / len(means) if means else 0.5,
        low=low,
        high=high,
        means=by_mean,
    )


def _worth(choice: Choice, artifact_left: bool) -> tuple[str, float]:
    if choice is Choice.TIE:
        return "tie", 0.5
    if choice is Choice.BOTH_BAD:
        return "bad", 0.5
    return ("win", 1.0) if (choice is Choice.LEFT) is artifact_left else ("loss", 0.0)


def in_words(found: Tally) -> str:
    """The count for people."""
    if not found.votes:
        return "No votes yet."
    reviewers = "1 reviewer" if found.reviewers == 1 else f"{found.reviewers} reviewers"
    return (
        f"{found.votes:,} votes of {reviewers} on {found.pairs:,} pairs: {found.wins:,} for the artifact, "
        f"{found.losses:,} for the base model, {found.ties:,} ties, {found.both_bad:,} both bad. Win rate "
        f"{found.win_rate:.1%} (95 % interval {found.low:.1%} to {found.high:.1%})."
    )
