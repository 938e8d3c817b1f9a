"""Distilling in tests: prompts, a spec, a run against a ``TeacherServer``, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune_api.distillation import Distillation, TeacherRef
from finetune_api.stages import RunRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.chat_api.answer_collector import AnswerSource
from finetune_jobs.chat_api.asked_time import AskedTime
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.pace import Patience
from finetune_jobs.distillation.distil import Distilled, TeacherSession, distil
from finetune_jobs.distillation.prompts import Prompt, terms_of
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.store.s3 import Store
from tests.support.stages import RUN
from tests.support.teacher_server import Behaviour, Reply, TeacherServer, says

SOURCE = "s3://data/prompts.jsonl"
QUICK = Patience(attempts=3, first_pause=0.01, longest_pause=0.05, longest_asked=1.0, grace=1.0)
KEY = "sk-not-a-real-key-0123456789"


def config(url: str = "http://127.0.0.1:9/v1", timeout: int = 30, **fields: Any) -> Distillation:
    """A spec with defaults but for these fields."""
    return Distillation(teacher=TeacherRef(url=url, model="teacher-1", request_timeout_seconds=timeout), **fields)


def prompts(count: int) -> list[Prompt]:
    """``question 0`` in line 1, and so on."""
    return [Prompt(f"question {n}", SOURCE, n + 1) for n in range(count)]


def echo(prompt: str, nth: int) -> Reply:
    """A teacher that always answers."""
    return says(f"answer to {prompt}")


@dataclass
class Outcome:
    """What a distillation gave."""

    result: Distilled = field(default_factory=Distilled)
    rows: list[Row] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def take(self, source: str, row: Row | Fault) -> None:
        """Keep what ``distil`` hands on."""
        assert source == SOURCE
        if isinstance(row, Row):
            self.rows.append(row)
        else:
            self.faults.append(row)

    @property
    def answers(self) -> list[str]:
        """The texts to learn."""
        return [row.fields["messages"][-1]["content"] for row in self.rows]


def run(
    store: Store,
    asked: list[Prompt],
    spec: Distillation,
    teacher: ChatModel | None = None,
    patience: Patience = QUICK,
    pod_of: RunRef = RUN,
    **options: Any,
) -> Outcome:
    """Distil as a pod of a run, with less patience than a pod has."""
    outcome = Outcome()
    terms = terms_of(spec)
    time = asked_time(store, spec, pod_of) if spec.deadline_minutes else None
    source = AnswerSource(terms, teacher or ChatModel(terms), kept_journal(store, spec), patience, time)
    session = TeacherSession(spec, source)
    outcome.result = distil(asked, session, outcome.take, **options)
    return outcome


def kept_journal(store: Store, spec: Distillation) -> Journal:
    """The answers that a distillation keeps."""
    return Journal.of(store, RUN, "distillation", terms_of(spec).recipe)


def asked_time(store: Store, spec: Distillation, run: RunRef = RUN) -> AskedTime:
    """How long the pods of a run have asked."""
    return AskedTime.of(store, run, "distillation", terms_of(spec).recipe)


def distilled(store: Store, behaviour: Behaviour, count: int = 5, **fields: Any) -> tuple[Outcome, TeacherServer]:
    """What ``count`` prompts give with a server that behaves so."""
    with TeacherServer.running(behaviour) as server:
        return run(store, prompts(count), config(server.url, **fields)), server


def failure(store: Store, behaviour: Behaviour, count: int = 5, **fields: Any) -> tuple[StageError, TeacherServer]:
    """How ``count`` prompts fail with a server that behaves so."""
    import pytest  # pods of the tests do without

    with TeacherServer.running(behaviour) as server, pytest.raises(StageError) as error:
        run(store, prompts(count), config(server.url, **fields))
    return error.value, server
