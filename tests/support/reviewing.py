"""A review in tests: pairs of answers, and the files of votes that a page would save."""

import json
from collections.abc import Sequence
from typing import Any

from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.evaluation.review.sheet import ReviewPair, ReviewSheet, make_sheet
from finetune_jobs.evaluation.review.votes import Choice
from tests.support.stages import RUN


def sheet_of(
    base: Sequence[str],
    artifact: Sequence[str],
    prompts: Sequence[Sequence[dict[str, Any]]] = (),
    truth: Sequence[str] = (),
    few_shot: Sequence[str | None] = (),
) -> ReviewSheet:
    """The pairs of these answers; the question of each is its number, and the artifact is right, unless told."""
    answers = [
        Answer(
            messages=list(prompts[n]) if prompts else [{"role": "user", "content": f"question {n}"}],
            label=truth[n] if truth else new,
            base=old,
            few_shot=few_shot[n] if few_shot else None,
            tuned=new,
            artifact=new,
        )
        for n, (old, new) in enumerate(zip(base, artifact, strict=True))
    ]
    return make_sheet(RUN, answers)


def sheet_with(pairs: int, same: int = 0) -> ReviewSheet:
    """So many pairs of different answers, and of same ones."""
    base = [f"old {number}" for number in range(pairs)] + ["same"] * same
    return sheet_of(base, [f"new {number}" for number in range(pairs)] + ["same"] * same)


def choice_for(pair: ReviewPair, artifact: bool) -> Choice:
    """The vote for the artifact's answer, or against it."""
    return Choice.LEFT if pair.artifact_left is artifact else Choice.RIGHT


def votes_of(
    sheet: ReviewSheet, reviewer: str = "ana", wins: int = 0, losses: int = 0, ties: int = 0
) -> dict[str, Any]:
    """The file of a reviewer with so many votes for and against the artifact, and ties, on the first pairs."""
    kinds = [True] * wins + [False] * losses + [None] * ties
    voted = zip(sheet.votable, kinds, strict=False)
    votes = [{"pair": p.id, "choice": Choice.TIE if kind is None else choice_for(p, kind)} for p, kind in voted]
    return {"schemaVersion": 1, "run": sheet.run, "digest": sheet.address, "reviewer": reviewer, "votes": votes}


def as_file(votes: dict[str, Any]) -> bytes:
    """As the page saves it."""
    return json.dumps(votes, indent=1).encode()
