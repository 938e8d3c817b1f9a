"""The conversation with the teacher: many questions at a time, each until it is answered or there is no hope of it."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from finetune_api.distillation import Distillation
from finetune_api.reasons import Reason
from finetune_jobs.base.background import Repeating
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Report
from finetune_jobs.distillation.answers import AttemptError, TeacherAnswer
from finetune_jobs.distillation.filters import ANSWER
from finetune_jobs.distillation.journal import Journal
from finetune_jobs.distillation.money import Budget, Tokens
from finetune_jobs.distillation.pace import PATIENCE, Breaker, Pacer, Patience
from finetune_jobs.distillation.prompts import Question
from finetune_jobs.distillation.teacher import Teacher
from finetune_jobs.reading.rows import Fault

log = logging.getLogger(__name__)

_KEEP_SECONDS: Final = 5.0
"""Time between two chunks of the journal: a killed process loses the answers of so long at most."""
_LONGEST_UNKEPT: Final = 60.0
"""So long the store may be away while answers come."""
_MINUTE: Final = 60.0
_TICK: Final = 0.2
"""Seconds between two looks at the clock and at the signal to stop."""


@dataclass(frozen=True)
class TeacherSession:
    """Who is asked, by which spec, with how much patience, and where the answers are kept."""

    config: Distillation
    teacher: Teacher
    journal: Journal
    patience: Patience = PATIENCE


class AnswerCollector:
    """Asks questions and notes the answers in the journal."""

    def __init__(self, session: TeacherSession) -> None:
        config, teacher, journal, patience = session.config, session.teacher, session.journal, session.patience
        self._config, self._teacher, self._journal, self._patience = config, teacher, journal, patience
        self._pacer = Pacer(config.requests_per_minute)
        self._breaker = Breaker(teacher.url, config.concurrency, patience)
        self._in_flight = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closing = False
        self._not_kept: tuple[StageError, float] | None = None
        limit = None if config.max_cost is None else Decimal(config.max_cost)
        self.budget = Budget(config.prices, limit, journal.spent)
        self.answered = 0
        """Answers that came."""
        self.given_up: dict[str, Fault] = {}
        """What is wrong with questions that the teacher cannot answer, by identity."""

    async def run(
        self, questions: Iterator[Question], count: int, report: Report | None, stopping: threading.Event
    ) -> None:
        """Ask all ``count`` questions, or as many as the budget allows. ``report`` is told how many are settled.

        Raises StageError: TeacherUnavailable, TeacherRefused, DeadlineExceeded. Raises StoppedError once ``stopping``
        is set, after a moment for answers that are on their way. What is noted still has to be flushed then.
        """
        keeping = Repeating(self._keep, name="saving the teacher's answers", pause=_KEEP_SECONDS)
        async with self._teacher:
            workers = [asyncio.create_task(self._work(questions)) for _ in range(self._config.concurrency)]
            try:
                await self._watch(workers, count, report, stopping)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                keeping.end()

    async def _watch(
        self, workers: list[asyncio.Task[None]], count: int, report: Report | None, stopping: threading.Event
    ) -> None:
        minutes = self._config.deadline_minutes
        deadline = None if minutes is None else time.monotonic() + minutes * _MINUTE
        running = set(workers)
        while running:
            done, running = await asyncio.wait(running, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
            for worker in done:
                worker.result()
            self._require_kept()
            if report:
                report(self.answered + len(self.given_up), count)
            if running and (stopping.is_set() or (deadline and time.monotonic() > deadline)):
                self._closing = True
                await self._arrivals()
                raise self._interrupted(count, stopping.is_set())

    async def _arrivals(self) -> None:
        """Give answers that are on their way a moment to arrive."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.grace):
                await self._quiet.wait()

    def _interrupted(self, count: int, stopped: bool) -> BaseException:
        state = f"the teacher answered {self.answered} of {count} prompts; the answers are saved"
        if stopped:
            return StoppedError(f"The pod was stopped: {state}.")
        minutes = self._config.deadline_minutes
        return StageError(
            Reason.DEADLINE_EXCEEDED, f"spec.dataset.distillation.deadlineMinutes ({minutes}) is over: {state}."
        )

    def _keep(self) -> None:
        """In a thread of its own: flush the journal, and remember since when that fails."""
        try:
            self._journal.flush()
        except StageError as error:
            since = self._not_kept[1] if self._not_kept else time.monotonic()
            self._not_kept = (error, since)
            raise
        self._not_kept = None

    def _require_kept(self) -> None:
        """Answers that cannot be kept should not be paid for: a store that is away for long ends the inquiry."""
        if (trouble := self._not_kept) is not None:
            error, since = trouble
            if not error.retriable or time.monotonic() - since > _LONGEST_UNKEPT:
                raise error

    async def _work(self, questions: Iterator[Question]) -> None:
        for question in questions:
            if self._closing or self.budget.exhausted:
                return
            await self._pursue(question)

    async def _pursue(self, question: Question) -> None:
        """Ask until there is an answer, no money, or no hope."""
        tries = failures = 0
        while not self._closing:
            error = await self._attempt(question)
            if error is None:
                return
            self._breaker.failed(error)
            tries += 1
            failures += not error.busy
            if error.refused or failures >= self._patience.attempts:
                fault = Fault(question.prompt.line, ANSWER, error.kind, f"is missing: the teacher {error}")
                self.given_up[question.identity] = fault
                return
            await self._pause(error, tries)

    async def _attempt(self, question: Question) -> AttemptError | None:
        """One request; None where the question needs no other."""
        text = question.prompt.text
        most = self._teacher.most(text)
        if not await self.budget.reserve(most):
            return None
        answer, used = None, Tokens()
        try:
            await self._pacer.turn()
            if self._closing:
                return None
            used = Tokens.guessed(most.input, most.output)  # what a request costs whose answer never comes is not known
            answer = await self._ask(text)
            used = answer.tokens
        except AttemptError as error:
            used = used if error.charged else Tokens()
            return error
        except StageError:
            used = Tokens()
            raise
        finally:
            self.budget.settle(most, used)
            self._note(question, answer, used)
        return None

    async def _ask(self, text: str) -> TeacherAnswer:
        self._in_flight += 1
        self._quiet.clear()
        try:
            return await self._teacher.ask(text)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()

    def _note(self, question: Question, answer: TeacherAnswer | None, used: Tokens) -> None:
        if answer is not None:
            self._journal.add(question.identity, answer)
            self._breaker.answered()
            self.answered += 1
        elif used != Tokens():
            self._journal.add_lost(question.identity, used)

    async def _pause(self, error: AttemptError, tries: int) -> None:
        pause = self._patience.pause(tries) if error.wait is None else error.wait
        if pause > self._patience.longest_asked:
            raise StageError(
                Reason.TEACHER_UNAVAILABLE,
                f"{self._teacher.url}: the teacher {error} and asks to wait {pause:.0f} s; the limit is "
                f"{self._patience.longest_asked:.0f} s.",
                retriable=True,
            )
        if error.busy or error.wait is not None:
            log.info("the teacher %s: no request for %.1f s", error, pause)
            self._pacer.hold(pause)
        else:
            await asyncio.sleep(pause)
