"""Distillation as one story: collect the prompts, ask the teacher, keep what it answers, hand on what is good.

Answers arrive in any order and are kept in the journal; afterwards they are handed on in the order of the prompts, so
that the same answers make the same data set however many requests ran at a time.
"""

import asyncio
import hashlib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import IO, Any

from finetune_api.dataset import Task
from finetune_api.distillation import Distillation
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Report
from finetune_jobs.base.wording import shorten
from finetune_jobs.chat_api.answer_collector import AnswerCollector, AnswerSource
from finetune_jobs.chat_api.answers import AttemptError
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.money import Tokens
from finetune_jobs.distillation.filters import ANSWER, AnswerRules, Near
from finetune_jobs.distillation.prompts import Prompt, Question, questions, terms_of
from finetune_jobs.examples.validation import Faults
from finetune_jobs.reading.rows import Fault, Row

log = logging.getLogger(__name__)

Take = Callable[[str, Row | Fault], None]
"""Called with the rows of a file (URI) as if it held the answers: ``messages`` that end with one, or faults."""


@dataclass(frozen=True)
class TeacherSession:
    """The spec of a distillation, and how its teacher is asked."""

    config: Distillation
    source: AnswerSource
    task: Task = field(default_factory=Task)
    """What the answers are to be fit for."""


@dataclass
class Distilled:
    """What became of the prompts."""

    prompts: int = 0
    """Different prompts."""
    repeated: int = 0
    """Prompts dropped as duplicates of an earlier one."""
    wanted: int = 0
    """Answers wanted: ``samplesPerPrompt`` for each prompt."""
    answered: int = 0
    """Answers of this run."""
    reused: int = 0
    """Answers that an earlier pod or run requested."""
    unasked: int = 0
    """Answers not requested because of ``maxCost``."""
    examples: int = 0
    """Answers that passed the filters."""
    tokens: Tokens = field(default_factory=Tokens)
    """What all requests used, with those of earlier pods and runs."""
    cost: Decimal = Decimal()
    """US dollars for these tokens."""
    faults: Faults = field(default_factory=Faults)
    """Answers that are missing or were dropped."""

    def scalars(self) -> dict[str, str]:
        """The figures for the stage's result."""
        return {
            "prompts": str(self.prompts),
            "answers": str(self.answered + self.reused),
            "answersUnasked": str(self.unasked),
            "answersLeftOut": str(self.faults.total),
            "teacherInputTokens": str(self.tokens.input),
            "teacherOutputTokens": str(self.tokens.output),
            "teacherCostUsd": f"{self.cost:.4f}",
        }

    def report(self) -> dict[str, Any]:
        """The figures for the report; nothing of prompts or answers."""
        counts = {"prompts": self.prompts, "repeatedPrompts": self.repeated, "wanted": self.wanted}
        counts |= {"answered": self.answered, "reused": self.reused, "unasked": self.unasked, "examples": self.examples}
        tokens = {"input": self.tokens.input, "output": self.tokens.output, "estimated": self.tokens.estimated}
        filters = dict(sorted(self.faults.kinds.items()))
        return counts | {
            "tokens": tokens,
            "costUsd": f"{self.cost:.6f}",
            "filters": filters,
            "errors": self.faults.stored(),
        }

    def message(self) -> str:
        """The figures for people."""
        text = (
            f"The teacher gave {self.answered + self.reused} of {self.wanted} answers for {self.cost:.2f} USD; "
            f"{self.examples} became examples."
        )
        if self.unasked:
            text += f" {self.unasked} were not requested: they could have exceeded maxCost."
        if self.faults.total:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.kinds.items()))
            text += f" Dropped: {kinds}."
        return text


def distil(
    prompts: Iterable[Prompt],
    session: TeacherSession,
    take: Take,
    *,
    report: Report | None = None,
    stopping: threading.Event | None = None,
    near: Near | None = None,
) -> Distilled:
    """Have every prompt answered; ``take`` is given the answers, and why others are missing, in the prompts' order.

    ``report`` is told how many answers have come; ``near`` finds near duplicates among answers. What is answered is in
    the journal whatever happens: also when ``stopping`` is set (StoppedError) and when this raises StageError:
    TeacherUnavailable, TeacherRefused, BudgetExceeded (not one answer can be paid), DeadlineExceeded, SpecInvalid (the
    answers' schema), or as Store.
    """
    config, teacher, journal = session.config, session.source.model, session.source.journal
    rules = AnswerRules(config, near, session.task)
    made = Distilled()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        spool = _Spool(file, config)
        _collect(prompts, spool, made)
        count = _announce(spool, teacher, journal)
        collector = AnswerCollector(session.source)
        try:
            asyncio.run(collector.run(_open(spool, journal), count, report, stopping or threading.Event()))
        finally:
            journal.flush()
            if session.source.asked:
                session.source.asked.save()
        made.answered = collector.answered
        made.tokens, made.cost = collector.budget.spent, collector.budget.cost
        _hand_on(spool, journal, collector.given_up, rules, take, made)
    refused = all(error.refused for error in collector.given_up.values())
    _require_an_answer(made, config, teacher, refused=refused)
    return made


class _Spool:
    """The prompts in a file: they are gone through three times, and may be more than memory holds."""

    def __init__(self, file: IO[str], config: Distillation) -> None:
        self._file, self._config = file, config
        self._recipe = terms_of(config).recipe

    def add(self, prompt: Prompt) -> None:
        """Append a prompt."""
        self._file.write(json.dumps([prompt.text, prompt.source, prompt.line, prompt.kept], default=str) + "\n")

    def questions(self) -> Iterator[Question]:
        """What to ask, in the order of the prompts. One iteration at a time."""
        self._file.seek(0)
        for line in self._file:
            yield from questions(Prompt(*json.loads(line)), self._config, self._recipe)


def _collect(prompts: Iterable[Prompt], spool: _Spool, made: Distilled) -> None:
    """Every prompt once (memory: about 100 bytes a prompt)."""
    known: set[bytes] = set()
    for prompt in prompts:
        mark = hashlib.sha256(prompt.text.encode()).digest()
        if mark in known:
            made.repeated += 1
        else:
            known.add(mark)
            spool.add(prompt)
            made.prompts += 1


def _open(spool: _Spool, journal: Journal) -> Iterator[Question]:
    """Questions without an answer."""
    return (question for question in spool.questions() if question.identity not in journal)


def _announce(spool: _Spool, teacher: ChatModel, journal: Journal) -> int:
    """How many answers to request; logs that number and the tokens that they may use."""
    count, most = 0, Tokens()
    for question in _open(spool, journal):
        count += 1
        most += teacher.most(question.turns)
    log.info(
        "requesting %s answers: at most %s tokens for about %s prompt tokens; %s answers are already in the journal",
        count,
        most.output,
        most.input,
        journal.found,
    )
    return count


def _hand_on(
    spool: _Spool,
    journal: Journal,
    given_up: Mapping[str, AttemptError],
    rules: AnswerRules,
    take: Take,
    made: Distilled,
) -> None:
    for question in spool.questions():
        made.wanted += 1
        prompt, answer = question.prompt, journal.find(question.identity)
        if answer is None and question.identity not in given_up:
            made.unasked += 1
            continue
        verdict = rules.judge(answer, prompt) if answer else _missing(prompt, given_up[question.identity])
        if isinstance(verdict, Fault):
            made.faults.add(prompt.source, verdict)
            take(prompt.source, verdict)
        else:
            made.examples += 1
            take(prompt.source, _row(prompt, verdict))
    made.reused = made.wanted - made.unasked - len(given_up) - made.answered


def _missing(prompt: Prompt, error: AttemptError) -> Fault:
    return Fault(prompt.line, ANSWER, error.kind, f"is missing: the teacher {error}")


def _row(prompt: Prompt, answer: str) -> Row:
    messages = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]
    return Row(prompt.line, prompt.kept | {"messages": messages})


def _require_an_answer(made: Distilled, config: Distillation, teacher: ChatModel, *, refused: bool) -> None:
    """``refused``: whether the teacher takes none of the requests, and will take none later."""
    if made.answered or made.reused or not made.wanted:
        return
    if made.unasked:
        raise StageError(
            Reason.BUDGET_EXCEEDED,
            f"spec.dataset.distillation.maxCost ({config.max_cost} USD, {made.cost:.6f} already spent) does not "
            f"cover one answer of up to {config.max_answer_tokens} tokens.",
        )
    raise StageError(
        Reason.TEACHER_REFUSED if refused else Reason.TEACHER_UNAVAILABLE,
        f"{teacher.url}: none of {made.wanted} requests was answered: {shorten(made.faults.sentences(), 600)}.",
        retriable=not refused,
    )
