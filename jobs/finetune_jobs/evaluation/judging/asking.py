"""Having a judge compare the answers of an evaluation: those pairs that people see, each in both orders."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from finetune_api.judging import Judge
from finetune_api.stages import RunRef
from finetune_jobs.base.progress import Report
from finetune_jobs.chat_api.answer_collector import AnswerCollector, AnswerSource
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.terms import Terms
from finetune_jobs.evaluation.judging.comparison import (
    ORDERS,
    JudgeQuestion,
    JudgeSays,
    Preference,
    instruction,
    preference,
    question,
    read_verdict,
)
from finetune_jobs.evaluation.judging.verdict import Judgement
from finetune_jobs.evaluation.review.sheet import ReviewPair, ReviewSheet
from finetune_jobs.store.s3 import Store

ATTEMPTS: Final = 3
"""Times that one question is asked while its answers are no verdicts."""
_PLACE: Final = "spec.evaluation.judge"
_RUBBISH: Final = f"without a verdict in {ATTEMPTS} answers"
_UNANSWERED: Final = "not answered"
_UNASKED: Final = "not asked, since maxRequests was reached"


def terms_of(judge: Judge) -> Terms:
    """How a judge is asked."""
    secret = judge.endpoint.secret_key_ref
    return Terms(
        server=judge.endpoint,
        role="judge",
        place=_PLACE,
        key_variable=secret.variable if secret else "",
        max_answer_tokens=judge.max_answer_tokens,
        instruction=instruction(judge.rubric),
        concurrency=judge.concurrency,
        requests_per_minute=judge.requests_per_minute,
        prices=judge.prices,
        max_requests=judge.max_requests,
    )


def answer_source(store: Store, run: RunRef, judge: Judge, sheet: ReviewSheet) -> AnswerSource:
    """The judge of a run with its key, and the journal in which its answers to these pairs outlive the pod. Each sheet
    has one of its own: what was asked of another artifact's answers is no part of this one's requests and cost.

    Raises StageError: SecretMissing, TeacherRefused (the key is none), as Store.
    """
    terms = terms_of(judge)
    journal = Journal.of(store, run, f"judging/{sheet.address[:16]}", terms.recipe)
    return AnswerSource(terms, ChatModel.from_environment(terms), journal)


def compare_answers(
    sheet: ReviewSheet, judge: Judge, source: AnswerSource, report: Report | None, stopping: threading.Event
) -> Judgement:
    """What the judge thinks of the pairs of an evaluation, or of the first ``maxExamples``.

    An answer that is no verdict is asked for again, ATTEMPTS times in all; then its pair is undecided. What came is in
    the journal whatever happens. Raises StageError: TeacherUnavailable, TeacherRefused, as Store; StoppedError once
    ``stopping`` is set.
    """
    pairs = sheet.votable[: judge.max_examples]
    asking = _Asking(pairs, source)
    try:
        asyncio.run(asking.run(report, stopping))
    finally:
        source.journal.flush()
    preferences = {
        pair.id: preference(pair, [asking.said.get((pair.id, turned)) for turned in ORDERS]) for pair in pairs
    }
    spent = asking.collector.budget
    return Judgement(
        digest=sheet.address,
        model=judge.endpoint.model,
        url=judge.endpoint.url,
        rubric=judge.rubric,
        baseline=sheet.baseline,
        preferences=preferences,
        reasons=asking.reasons(pair for pair in pairs if preferences[pair.id] is Preference.UNDECIDED),
        requests=source.journal.requests,
        input_tokens=spent.spent.input,
        output_tokens=spent.spent.output,
        cost_usd=f"{spent.cost:.4f}" if judge.prices else "",
    )


@dataclass
class _Slot:
    """A pair in one order, until there is a verdict."""

    pair: ReviewPair
    turned: bool
    why: str = _UNASKED
    """Why there is none yet."""


class _Asking:
    """All questions, in rounds: those without a verdict are asked again, as other questions."""

    def __init__(self, pairs: list[ReviewPair], source: AnswerSource) -> None:
        self.collector = AnswerCollector(source)
        self.said: dict[tuple[str, bool], JudgeSays] = {}
        self._slots = {(pair.id, turned): _Slot(pair, turned) for pair in pairs for turned in ORDERS}
        self._journal = source.journal
        self._recipe = source.terms.recipe

    async def run(self, report: Report | None, stopping: threading.Event) -> None:
        for attempt in range(ATTEMPTS):
            asked = [
                question(slot.pair, turned=slot.turned, attempt=attempt, recipe=self._recipe)
                for key, slot in self._slots.items()
                if key not in self.said
            ]
            fresh = [each for each in asked if each.identity not in self._journal]
            if fresh:
                settled = self.collector.answered + len(self.collector.given_up)
                await self.collector.run(iter(fresh), settled + len(fresh), report, stopping)
            for each in asked:
                self._read(each)

    def reasons(self, pairs: Iterator[ReviewPair]) -> dict[str, int]:
        """Why these pairs are undecided: of each the reason of the first order that has no verdict."""
        found: Counter[str] = Counter()
        for pair in pairs:
            open_ones = [self._slots[pair.id, turned].why for turned in ORDERS if (pair.id, turned) not in self.said]
            found[open_ones[0]] += 1
        return dict(found)

    def _read(self, asked: JudgeQuestion) -> None:
        key = (asked.pair.id, asked.turned)
        answer = self._journal.find(asked.identity)
        if answer is not None and (said := read_verdict(answer)):
            self.said[key] = said
        elif answer is not None:
            self._slots[key].why = _RUBBISH
        elif asked.identity in self.collector.given_up:
            self._slots[key].why = _UNANSWERED
