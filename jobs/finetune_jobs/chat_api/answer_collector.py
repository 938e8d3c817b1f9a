"""The conversation with a model: many questions at a time, each until it is answered or there is no hope of it."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from finetune_api.reasons import Reason
from finetune_jobs.base.background import Repeating
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Report
from finetune_jobs.chat_api.answers import AttemptError, ModelAnswer
from finetune_jobs.chat_api.asked_time import AskedTime
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.money import Budget, Tokens
from finetune_jobs.chat_api.pace import PATIENCE, Breaker, Pacer, Patience
from finetune_jobs.chat_api.terms import Askable, Terms, Turns

log = logging.getLogger(__name__)

_KEEP_SECONDS: Final = 5.0
"""Time between two chunks of the journal: a killed process loses the answers of so long at most."""
_COUNT_SECONDS: Final = 30.0
"""The same for the time that the deadline counts."""
_LONGEST_UNKEPT: Final = 60.0
"""So long the store may be away while answers come."""
_MINUTE: Final = 60.0
_TICK: Final = 0.2
"""Seconds between two looks at the clock and at the signal to stop."""


@dataclass(frozen=True)
class AnswerSource:
    """Who is asked, by which terms, with how much patience, and where the answers are kept."""

    terms: Terms
    model: ChatModel
    journal: Journal
    patience: Patience = PATIENCE
    asked: AskedTime | None = None
    """What earlier pods have used of ``Terms.deadline_minutes``; None: nothing, and this pod's time is not noted."""


class AnswerCollector:
    """Asks questions and notes the answers in the journal."""

    def __init__(self, source: AnswerSource) -> None:
        terms, model, journal, patience = source.terms, source.model, source.journal, source.patience
        self._terms, self._model, self._journal, self._patience = terms, model, journal, patience
        self._asked = source.asked
        self._pacer = Pacer(terms.requests_per_minute)
        self._breaker = Breaker(model.url, terms.role, terms.concurrency, patience)
        self._in_flight = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closing = False
        self._not_kept: tuple[StageError, float] | None = None
        limit = None if terms.max_cost is None else Decimal(terms.max_cost)
        self.budget = Budget(terms.prices, limit, journal.spent)
        self._requests = journal.requests
        """Requests of earlier pods, and all of this one."""
        self.answered = 0
        """Answers that came."""
        self.given_up: dict[str, AttemptError] = {}
        """Why there is no answer to questions that were given up, by identity."""

    async def run(
        self, questions: Iterator[Askable], count: int, report: Report | None, stopping: threading.Event
    ) -> None:
        """Ask all ``count`` questions, or as many as ``max_cost`` and ``max_requests`` allow. ``report`` is told how
        many are settled.

        Raises StageError: TeacherUnavailable, TeacherRefused, DeadlineExceeded. Raises StoppedError once ``stopping``
        is set, after a moment for answers that are on their way. What is noted still has to be flushed then.
        """
        left = self._seconds_left()
        if count and left is not None and left <= 0:
            raise self._interrupted(count, stopped=False)
        if count and self._asked:
            self._asked.begin()
        keeping = Repeating(self._keep, name=f"saving the {self._terms.role}'s answers", pause=_KEEP_SECONDS)
        async with self._model:
            workers = [asyncio.create_task(self._work(questions)) for _ in range(self._terms.concurrency)]
            try:
                await self._watch(workers, count, report, stopping, left)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                keeping.end()

    async def _watch(
        self,
        workers: list[asyncio.Task[None]],
        count: int,
        report: Report | None,
        stopping: threading.Event,
        left: float | None,
    ) -> None:
        deadline = None if left is None else time.monotonic() + left
        running = set(workers)
        while running:
            done, running = await asyncio.wait(running, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
            await self._require_working(done)
            self._require_kept()
            if report:
                report(self.answered + len(self.given_up), count)
            if running and (stopping.is_set() or (deadline is not None and time.monotonic() > deadline)):
                self._closing = True
                await self._arrivals()
                raise self._interrupted(count, stopping.is_set())

    def _seconds_left(self) -> float | None:
        """What earlier pods have left of the deadline; None without one."""
        minutes = self._terms.deadline_minutes
        return None if minutes is None else minutes * _MINUTE - self._earlier

    @property
    def _earlier(self) -> float:
        return self._asked.earlier if self._asked else 0.0

    async def _require_working(self, done: set[asyncio.Task[None]]) -> None:
        """Raises what has ended one of these workers. What the others have asked for is paid, and arrives first."""
        try:
            for worker in done:
                worker.result()
        except StageError:
            self._closing = True
            await self._arrivals()
            raise

    async def _arrivals(self) -> None:
        """Give answers that are on their way a moment to arrive."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.grace):
                await self._quiet.wait()

    def _interrupted(self, count: int, stopped: bool) -> BaseException:
        terms = self._terms
        state = f"the {terms.role} answered {self.answered} of {count} prompts; the answers are saved"
        if stopped:
            return StoppedError(f"The pod was stopped: {state}.")
        minutes = self._earlier / _MINUTE
        shared = f", of which earlier pods have used {minutes:.0f}" if minutes >= 1 else ""
        return StageError(
            Reason.DEADLINE_EXCEEDED,
            f"{terms.place}.deadlineMinutes ({terms.deadline_minutes}) is over{shared}: {state}.",
        )

    def _keep(self) -> None:
        """In a thread of its own: flush the journal, note the time, and remember since when that fails."""
        try:
            self._journal.flush()
            if self._asked:
                self._asked.save(every=_COUNT_SECONDS)
        except StageError as error:
            since = self._not_kept[1] if self._not_kept else time.monotonic()
            self._not_kept = (error, since)
            raise
        self._not_kept = None

    def _require_kept(self) -> None:
        """Answers that cannot be saved should not be paid for: a store that is unreachable for long stops the stage."""
        if (trouble := self._not_kept) is not None:
            error, since = trouble
            if not error.retriable or time.monotonic() - since > _LONGEST_UNKEPT:
                raise error

    async def _work(self, questions: Iterator[Askable]) -> None:
        for question in questions:
            if self._closing or self.budget.exhausted:
                return
            await self._pursue(question)

    async def _pursue(self, question: Askable) -> None:
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
                self.given_up[question.identity] = error
                return
            await self._pause(error, tries)

    async def _attempt(self, question: Askable) -> AttemptError | None:
        """One request; None where the question needs no other."""
        most = self._model.most(question.turns)
        if not await self.budget.reserve(most):
            return None
        answer, used = None, Tokens()
        try:
            await self._pacer.turn()
            if self._closing or not self._may_send():
                return None
            used = Tokens.guessed(most.input, most.output)  # what a request costs whose answer never comes is not known
            answer = await self._ask(question.turns)
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

    def _may_send(self) -> bool:
        """Count one more request, unless ``max_requests`` have been sent."""
        most = self._terms.max_requests
        if most is not None and self._requests >= most:  # above it where the limit was lowered meanwhile
            self.budget.exhausted = True
            return False
        self._requests += 1
        return True

    async def _ask(self, turns: Turns) -> ModelAnswer:
        self._in_flight += 1
        self._quiet.clear()
        try:
            return await self._model.ask(turns)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()

    def _note(self, question: Askable, answer: ModelAnswer | None, used: Tokens) -> None:
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
                f"{self._model.url}: the {self._terms.role} {error} and asks to wait {pause:.0f} s; the limit is "
                f"{self._patience.longest_asked:.0f} s.",
                retriable=True,
            )
        if error.busy or error.wait is not None:
            log.info("the %s %s: no request for %.1f s", self._terms.role, error, pause)
            self._pacer.hold(pause)
        else:
            await asyncio.sleep(pause)
