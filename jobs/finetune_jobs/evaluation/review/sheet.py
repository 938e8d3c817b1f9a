"""``review.json``: the pairs of answers that people compare, and which side is whose. Pure functions, no model.

The page shows the pairs and not whose they are. Which side is the artifact's, a hash decides for each pair, so that the
same answers are shown the same way each time, and nobody's taste for the left or the right side counts. The order is
that of a hash, too: whoever stops after 30 votes has seen a fair sample.
"""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from finetune_api.base import WireModel
from finetune_api.hashing import digest
from finetune_api.stages import RunRef
from finetune_jobs.artifacts.artifact import Answer

MOST_PAIRS: Final = 200
"""Pairs on a page: more than a person votes on, and a page that a phone can hold."""
MOST_CHARACTERS: Final = 4000
"""Longest text that is shown; the rest is cut off on both sides alike."""


class ReviewPair(WireModel):
    """Two answers to one test example, as the page shows them."""

    id: str
    before: str = ""
    """System message and earlier turns; empty: there are none."""
    question: str
    expected: str
    """The right answer, as the data set has it."""
    left: str
    right: str
    artifact_left: bool
    """Whether the left one is the artifact's: the page does not say so."""

    @property
    def same(self) -> bool:
        """Whether both answered alike, so that there is nothing to vote on."""
        return self.left.strip() == self.right.strip()


class ReviewSheet(WireModel):
    """All that a review of one evaluation is about."""

    SCHEMA: ClassVar[int] = 1

    schema_version: int = SCHEMA
    run: str
    """Who made it: ``namespace/name/run id`` of the FineTuneJob."""
    baseline: str
    """What the artifact is compared with: ``base``, or ``fewShot`` where the base model was shown examples."""
    pairs: list[ReviewPair]
    """Those with different answers first."""

    @property
    def address(self) -> str:
        """Identity of what is shown: votes belong to a page with these very pairs."""
        return digest([[p.id, p.before, p.question, p.expected, p.left, p.right] for p in self.pairs])

    @property
    def votable(self) -> list[ReviewPair]:
        """The pairs whose answers differ."""
        return [pair for pair in self.pairs if not pair.same]


def make_sheet(run: RunRef, answers: Sequence[Answer]) -> ReviewSheet:
    """The pairs of an evaluation's answers; of many, MOST_PAIRS."""
    was_shown = all(answer.few_shot is not None for answer in answers)
    pairs = [_pair(number, answer) for number, answer in enumerate(answers)]
    pairs.sort(key=lambda pair: (pair.same, pair.id))
    return ReviewSheet(run=run_name(run), baseline="fewShot" if was_shown else "base", pairs=pairs[:MOST_PAIRS])


def run_name(run: RunRef) -> str:
    """A run, for people and for the check of a file of votes."""
    return f"{run.namespace}/{run.name}/{run.id}"


def _pair(number: int, answer: Answer) -> ReviewPair:
    old, new = answer.base if answer.few_shot is None else answer.few_shot, answer.artifact
    content = [number, answer.messages, old, new]
    artifact_left = int(digest(["side", *content])[:8], 16) % 2 == 0
    left, right = (new, old) if artifact_left else (old, new)
    return ReviewPair(
        id=digest(content)[:16],
        before=_shown("\n\n".join(f"{turn.get('role')}: {_text(turn)}" for turn in answer.messages[:-1])),
        question=_shown(_text(answer.messages[-1])),
        expected=_shown(answer.label),
        left=_shown(left),
        right=_shown(right),
        artifact_left=artifact_left,
    )


def _text(turn: dict[str, Any]) -> str:
    """What a turn says, and the tools that it calls."""
    said = str(turn.get("content") or "")
    calls = turn.get("tool_calls")
    return f"{said}\n{json.dumps(calls, ensure_ascii=False)}".strip() if calls else said


def _shown(text: str) -> str:
    """As a page has it: line breaks of one kind, and an end."""
    lines = "\n".join(text.expandtabs(2).splitlines())
    return lines if len(lines) <= MOST_CHARACTERS else f"{lines[: MOST_CHARACTERS - 1]}…"
