"""Every sentence about a teacher or its answers is one that a distillation really says.

Place, value and remedy of each are pinned where the behaviour is tested: in ``test_distillation``,
``test_distillation_parts`` and ``test_distillation_journal``.
"""

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from finetune_api.dataset import Task, TaskType
from finetune_api.distillation import Distillation
from finetune_api.meta import TEACHER_KEY_VARIABLE
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.chat_api.answers import CUT, FILTERED, AttemptError, ModelAnswer, read_answer
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.money import Tokens
from finetune_jobs.distillation.distil import Distilled
from finetune_jobs.distillation.filters import AnswerRules
from finetune_jobs.distillation.prompts import Prompt, terms_of
from finetune_jobs.examples.validation import Faults
from finetune_jobs.reading.rows import Fault
from finetune_jobs.store.s3 import Store
from tests.support.closed_port import closed_port
from tests.support.distilling import SOURCE, config, failure, prompts, run
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import unsaid
from tests.support.teacher_server import Reply, TeacherServer, fails, says

pytestmark = pytest.mark.unit

PATTERN: Final = re.compile(r"\\b|\(\?:")
"""Of a regular expression, which is no sentence."""
UNSEEN: Final = ("saving the {}'s answers", "does not accept {}")
"""The name of a thread, and what is answered by another request at once."""

MAX_BODY: Final = 10_000
"""Bytes, instead of those of ``chat_model``: what is said of more is the same."""

BODIES: Final = [
    b"<html>",
    b"[]",
    b'{"choices": [{}]}',
    b'{"choices": [{"message": {"content": 7}}]}',
    b'{"choices": [{"message": {"content": "\\ud800"}}]}',
]
"""What comes back and is no answer."""

Answers = list[tuple[str, str]]
JUDGED: Final[list[tuple[dict[str, Any], Answers]]] = [
    ({}, [("cut", CUT), ("", FILTERED), ("Never.", "refusal")]),
    ({"answer_schema": '{"type": "object"}'}, [("It is 7.", "stop"), ("7", "stop")]),
    ({"min_answer_words": 2, "max_answer_words": 2}, [("one", "stop"), ("one two three", "stop")]),
    ({"duplicates": "Drop"}, [("Yes.", "stop"), ("Yes.", "stop"), ("Yes!", "stop")]),
    ({"task": Task(type=TaskType.EXTRACTION)}, [("It is 7.", "stop")]),
    ({"task": Task(labels=["refund"])}, [("Refund.", "stop")]),
    ({"answer_schema": "{"}, []),
    ({"answer_schema": '{"type": "strin"}'}, []),
    ({"answer_schema": '{"$ref": "http://127.0.0.1/none.json"}'}, [("{}", "stop")]),
    ({"answer_schema": '{"$ref": "#"}'}, []),
]
"""What the spec asks of answers (``task`` is its task), and answers of which one at least is not that, if the spec is
right."""

REPLIES: Final[list[tuple[Reply, dict[str, Any]]]] = [
    (fails(429), {}),
    (fails(429, headers={"Retry-After": "3600"}), {}),
    *((fails(status), {}) for status in (307, 400, 401, 402, 403, 404, 500)),
    (fails(429, code="insufficient_quota"), {}),
    (Reply(200, b"{" * 100, hang_up=True), {}),
    (Reply(200, b"[" + b" " * MAX_BODY + b"]"), {}),
    (says("late", delay=30), {"timeout": 1}),
    (says("yes"), {"max_cost": "0.5", "max_answer_tokens": 100, "prices": {"usdPerMillionOutputTokens": "10000"}}),
]
"""What a teacher always answers, and what the spec says, so that the distillation fails."""


@pytest.fixture(scope="module")
def store(s3: SeaweedFS) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADMIN.environment().items():
            patch.setenv(name, value)
        yield Store.connect(s3.storage, "s3://data/messages-of-a-distillation")


@pytest.fixture(scope="module")
def said(store: Store) -> list[str]:
    """Everything that a distillation says when something is wrong, and what it says at its end."""
    messages = [*rubbish(), *(problem for spec, answers in JUDGED for problem in judged(spec, answers)), *keys()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_jobs.chat_api.chat_model.MAX_BODY", MAX_BODY)
        messages += [failure(store, always(reply), 30, **fields)[0].message for reply, fields in REPLIES]
    messages.append(failure(store, always(fails(500)), 1)[0].message)
    with closed_port() as port, pytest.raises(StageError) as unreachable:
        run(store, prompts(30), config(f"http://127.0.0.1:{port}/v1"))
    return [*messages, unreachable.value.message, *interrupted(store), the_end()]


def always(reply: Reply) -> Callable[[str, int], Reply]:
    """A teacher that gives the same reply to every request."""
    return lambda _prompt, _nth: reply


def rubbish() -> Iterator[str]:
    for body in BODIES:
        with pytest.raises(AttemptError) as error:
            read_answer(body, Tokens())
        yield str(error.value)


def judged(spec: dict[str, Any], answers: Answers) -> Iterator[str]:
    try:
        asked, task = {name: spec[name] for name in spec if name != "task"}, spec.get("task", Task())
        rules = AnswerRules(config(**asked), near=lambda text: text.endswith("!"), task=task)
        for text, finish in answers:
            verdict = rules.judge(ModelAnswer(text, finish, Tokens()), Prompt("why?", SOURCE, 3))
            yield verdict.problem if isinstance(verdict, Fault) else ""
    except StageError as error:
        yield error.message


def keys() -> Iterator[str]:
    teacher = {"url": "http://host/v1", "model": "m", "secretKeyRef": {"name": "teacher", "key": "token"}}
    terms = terms_of(Distillation.model_validate({"teacher": teacher}))
    for key in ("", "sk-ä"):
        with pytest.raises(StageError) as error:
            ChatModel.from_environment(terms, {TEACHER_KEY_VARIABLE: key})
        yield error.value.message


def interrupted(store: Store) -> Iterator[str]:
    stopping = threading.Event()
    stopping.set()
    with TeacherServer.running(always(says("slow", delay=0.3))) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_jobs.chat_api.answer_collector._MINUTE", 0.1)
        spec = config(server.url, deadline_minutes=1, concurrency=1)
        with pytest.raises(StageError) as late:
            run(store, prompts(60), spec)
        with pytest.raises(StageError) as used:
            run(store, prompts(60), spec)
        with pytest.raises(StoppedError) as stopped:
            run(store, prompts(60), config(server.url, concurrency=1), stopping=stopping)
    yield from (late.value.message, used.value.message, str(stopped.value))


def the_end() -> str:
    faults = Faults()
    faults.add(SOURCE, Fault(3, "answer", "refusal", "is a refusal"))
    return Distilled(prompts=3, wanted=3, answered=2, unasked=1, examples=1, faults=faults).message()


MODULES = [
    *("distillation.distil", "distillation.filters"),
    *("chat_api.answers", "chat_api.answer_collector", "chat_api.pace", "chat_api.chat_model"),
    "text.schemas",
]


@pytest.mark.parametrize("name", MODULES)
def test_every_sentence_about_a_teacher_is_provoked(said: list[str], name: str) -> None:
    unseen = [each for each in unsaid(f"finetune_jobs.{name}", said) if each not in UNSEEN]
    assert [each for each in unseen if not PATTERN.search(each)] == []
