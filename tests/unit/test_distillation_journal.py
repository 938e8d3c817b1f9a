"""What outlives a pod that distils, and what leaves it: answers in a real store, no secrets."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from finetune_api.distillation import Distillation
from finetune_api.meta import TEACHER_KEY_VARIABLE
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.chat_api.answers import ModelAnswer
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.money import Tokens
from finetune_jobs.distillation.prompts import questions, terms_of
from finetune_jobs.store.s3 import Store
from tests.support import forked
from tests.support.distilling import KEY, QUICK, asked_time, config, echo, failure, kept_journal, prompts, run
from tests.support.distilling_pod import PROGRAM
from tests.support.forked import Forked
from tests.support.seaweedfs import ADMIN, READER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN
from tests.support.teacher_server import Reply, TeacherServer, fails, says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


# What outlives a pod


def test_a_second_run_asks_nothing_again(store: Store) -> None:
    with TeacherServer.running(echo) as server:
        first = run(store, prompts(6), config(server.url))
        more = run(store, prompts(8), config(server.url, concurrency=3, min_answer_words=2))
    assert sorted(server.prompts) == sorted(p.text for p in prompts(8))
    assert (first.result.answered, first.result.reused) == (6, 0)
    assert (more.result.answered, more.result.reused, more.result.examples) == (2, 6, 8)
    assert more.answers == [f"answer to question {n}" for n in range(8)]
    assert more.result.tokens == Tokens(80, 40)  # all that was paid for


def test_half_a_chunk_is_left_out_with_a_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with TeacherServer.running(echo) as server:
        spec = config(server.url)
        run(store, prompts(4), spec)
        (chunk,) = store.list()
        content = store.get(chunk.key)
        assert content is not None
        lines = content.splitlines(keepends=True)
        store.put(chunk.key, b"".join(lines[:2]) + b'{"id": "0"}\n' + lines[2][: len(lines[2]) // 2])
        again = run(store, prompts(4), spec)
    assert len(server.received) == 4 + 2
    assert (again.result.answered, again.result.reused, again.result.examples) == (2, 2, 4)
    assert_says(caplog.text, f"{chunk.uri}:", "2 damaged lines", "prompts", "again")


def test_two_pods_write_beside_each_other(store: Store) -> None:
    spec = config()
    asked = [q for prompt in prompts(3) for q in questions(prompt, spec, terms_of(spec).recipe)]
    first, second = Journal(store), Journal(store)
    for number, journal in enumerate((first, second, first)):
        journal.add(asked[number].identity, ModelAnswer(f"answer {number}\u2028", "stop", Tokens(1, 2)))
        journal.flush()
    assert [entry.key for entry in store.list()] == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    third = Journal(store)
    assert (third.found, third.spent) == (3, Tokens(3, 6))
    assert [third.find(q.identity) for q in asked] == [
        ModelAnswer(f"answer {number}\u2028", "stop", Tokens(1, 2)) for number in range(3)
    ]
    assert third.find("0" * 64) is None
    third.flush()
    assert len(list(store.list())) == 3


def test_a_write_that_arrived_without_an_answer_is_counted_once(store: Store) -> None:
    spec = config()
    asked = [q for prompt in prompts(2) for q in questions(prompt, spec, terms_of(spec).recipe)]
    journal = Journal(store)
    write = Store.put_if_absent

    def lost(self: Store, path: str, content: bytes) -> bool:
        write(self, path, content)
        raise StageError(Reason.S3_UNREACHABLE, "The connection broke.", retriable=True)

    journal.add(asked[0].identity, ModelAnswer("answer 0", "stop", Tokens(1, 2)))
    with mock.patch.object(Store, "put_if_absent", lost), pytest.raises(StageError):
        journal.flush()
    journal.add(asked[1].identity, ModelAnswer("answer 1", "stop", Tokens(1, 2)))
    journal.flush()
    again = Journal(store)
    assert (again.found, again.spent) == (2, Tokens(2, 4))


def test_answers_that_cannot_be_kept_end_the_asking(s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in READER.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("finetune_jobs.chat_api.answer_collector._KEEP_SECONDS", 0.1)
    error, server = failure(Store.connect(s3.storage, place), lambda p, n: says("x", delay=0.2), 200, concurrency=1)
    assert error.reason is Reason.S3_ACCESS_DENIED
    assert len(server.received) < 50


@pytest.fixture
def pod(s3: SeaweedFS, place: str) -> Iterator[Callable[[TeacherServer, int], Forked]]:
    """Starts a pod that asks ``count`` prompts of a server."""
    started: list[Forked] = []

    def start(server: TeacherServer, count: int) -> Forked:
        command = [PROGRAM, s3.endpoint, place, server.url, str(count)]
        started.append(forked.start(command, ADMIN.environment() | {"PATH": os.environ["PATH"]}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(60)


def _wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_after_a_killed_pod_only_what_is_missing_is_asked(
    store: Store, pod: Callable[[TeacherServer, int], Forked]
) -> None:
    """``kill -9`` in the middle: what was in the journal is not asked again, and the result is that of a quiet run."""
    hurry = threading.Event()

    def behaviour(prompt: str, nth: int) -> Reply:
        late = len(server.received) > 60  # for the pod, which must not end before it is killed
        return says(f"answer to {prompt}", delay=0 if hurry.is_set() else 600 if late else 0.05)

    with TeacherServer.running(behaviour) as server:
        process = pod(server, 100)
        _wait_until(lambda: list(store.list()))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        hurry.set()
        kept = kept_journal(store, config(server.url)).found
        before = len(server.received)
        assert 0 < kept < 100
        outcome = run(store, prompts(100), config(server.url))
        assert len(server.received) - before == 100 - kept
    assert outcome.answers == [f"answer to question {n}" for n in range(100)]
    assert (outcome.result.reused, outcome.result.answered) == (kept, 100 - kept)


def test_sigterm_keeps_every_answer_within_seconds(store: Store, pod: Callable[[TeacherServer, int], Forked]) -> None:
    with TeacherServer.running(lambda p, n: says(f"answer to {p}", delay=0.1)) as server:
        process = pod(server, 1000)
        _wait_until(lambda: len(server.received) > 20)
        began = time.monotonic()
        process.terminate()
        said, _ = process.communicate(60)
        assert time.monotonic() - began < 30, "half of the time that its pod has to end"
        assert process.returncode == 0
        asked = len(server.received)
        assert kept_journal(store, config(server.url)).found == asked  # those on their way too
        assert_says(said.decode(), "pod", "stopped", f"{asked} of 1000 prompts", "saved")


def test_requests_that_wait_for_their_turn_are_neither_sent_nor_counted_once_the_pod_must_stop(store: Store) -> None:
    stopping = threading.Event()

    def behaviour(prompt: str, nth: int) -> Reply:
        stopping.set()
        return says("on its way", delay=1.5)

    with TeacherServer.running(behaviour) as server:
        spec = config(server.url, requests_per_minute=120, concurrency=8)
        with pytest.raises(StoppedError):
            run(store, prompts(20), spec, stopping=stopping, patience=replace(QUICK, grace=60.0))
        assert kept_journal(store, spec).spent == Tokens(10 * len(server.received), 5 * len(server.received))
    assert len(server.received) <= 2


def test_answers_that_are_on_their_way_when_the_asking_fails_are_saved(store: Store) -> None:
    def behaviour(prompt: str, nth: int) -> Reply:
        late = says("on its way", delay=0.4)
        return late if prompt == "question 0" else fails(429, headers={"Retry-After": "3600"})

    with TeacherServer.running(behaviour) as server:
        spec = config(server.url, concurrency=2)
        with pytest.raises(StageError, match="3600 s"):
            run(store, prompts(2), spec)
        assert kept_journal(store, spec).found == 1


def test_a_request_that_is_cut_off_counts_as_money(store: Store) -> None:
    stopping = threading.Event()

    def behaviour(prompt: str, nth: int) -> Reply:
        stopping.set()
        return says("too late", delay=30)

    with TeacherServer.running(behaviour) as server:
        spec = config(server.url, max_answer_tokens=100)
        with pytest.raises(StoppedError):
            run(store, prompts(1), spec, stopping=stopping)
        assert kept_journal(store, spec).spent == Tokens(11, 100, 111)


# The deadline


def asked_place(spec: Distillation) -> str:
    return f"runs/{RUN.name}/{RUN.uid}/distillation/{terms_of(spec).recipe}/asked/{RUN.id}"


def test_the_time_of_earlier_pods_counts_and_that_of_earlier_runs_does_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that was lost and replaced gave the teacher the whole time once more."""
    stopping = threading.Event()

    def behaviour(prompt: str, nth: int) -> Reply:
        if prompt == "question 1":
            stopping.set()
        return says("slow", delay=0.3)

    with TeacherServer.running(behaviour) as server:
        spec = config(server.url, deadline_minutes=1, concurrency=1)
        with pytest.raises(StoppedError):
            run(store, prompts(40), spec, stopping=stopping)
        used, asked = asked_time(store, spec).earlier, len(server.received)
        assert used > 0.3
        monkeypatch.setattr("finetune_jobs.chat_api.answer_collector._MINUTE", used)
        with pytest.raises(StageError) as error:
            run(store, prompts(40), spec)
        assert (error.value.reason, len(server.received)) == (Reason.DEADLINE_EXCEEDED, asked)
        assert_says(
            error.value.message, "deadlineMinutes (1) is over, of which earlier pods have used 1", f"{40 - asked}"
        )
        run(store, prompts(asked), spec)  # all is answered: that takes no time
        monkeypatch.setattr("finetune_jobs.chat_api.answer_collector._MINUTE", 600.0)
        run(store, prompts(asked + 1), spec, pod_of=RUN.model_copy(update={"id": "r2"}))
        assert len(server.received) == asked + 1


def test_a_pod_has_what_earlier_ones_left_of_the_time(store: Store) -> None:
    with TeacherServer.running(lambda p, n: says("slow", delay=0.3)) as server:
        spec = config(server.url, deadline_minutes=1, concurrency=1)
        store.put(f"{asked_place(spec)}/earlier.json", b'{"seconds": 59.7}')
        with pytest.raises(StageError) as error:
            run(store, prompts(60), spec)  # 18 s
    assert error.value.reason is Reason.DEADLINE_EXCEEDED


def test_a_killed_pods_time_is_known_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_jobs.chat_api.answer_collector._KEEP_SECONDS", 0.05)
    monkeypatch.setattr("finetune_jobs.chat_api.answer_collector._COUNT_SECONDS", 0.1)
    seen: list[float] = []

    def behaviour(prompt: str, nth: int) -> Reply:
        seen.append(asked_time(store, spec).earlier)
        return says("slow", delay=0.3)

    with TeacherServer.running(behaviour) as server:
        spec = config(server.url, deadline_minutes=1, concurrency=1)
        run(store, prompts(4), spec)
    assert sorted(seen) == seen
    assert 0.3 < seen[-1] < asked_time(store, spec).earlier


def test_a_damaged_note_of_the_time_is_left_out_with_a_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    spec = config(deadline_minutes=1)
    place = store.below(asked_place(spec))
    for name, content in (
        ("a", b'{"seconds": 2.5}'),
        ("b", b'{"seconds": -1}'),
        ("c", b'{"sec'),
        ("d", b'{"seconds": 4}'),
    ):
        place.put(f"{name}.json", content)
    assert asked_time(store, spec).earlier == 6.5
    assert_says(caplog.text, "b.json is damaged", "c.json is damaged", "not counted")


# Secrets


def secured(url: str) -> Distillation:
    teacher = {"url": url, "model": "m", "secretKeyRef": {"name": "teacher", "key": "token"}}
    return Distillation.model_validate({"teacher": teacher})


def test_the_key_goes_to_the_teacher_and_nowhere_else(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with TeacherServer.running(echo, key=KEY) as server:
        spec = secured(server.url)
        right = ChatModel.from_environment(terms_of(spec), {TEACHER_KEY_VARIABLE: f"{KEY}\n"})
        assert run(store, prompts(1), spec, right).answers == ["answer to question 0"]
        with pytest.raises(StageError) as error:
            run(store, prompts(2), spec, ChatModel(terms_of(spec), f"{KEY}-wrong"))
    assert_says(error.value.message, f"{server.url}:", "the teacher", "API key", "(401)", "model 'm'")
    kept = b"".join(store.get(entry.key) or b"" for entry in store.list())
    assert b"answer to question 0" in kept
    assert KEY not in caplog.text + error.value.message + kept.decode()


def test_a_server_that_asks_for_no_key_is_told_none(store: Store) -> None:
    with TeacherServer.running(echo) as server:
        spec = config(server.url)
        run(store, prompts(1), spec, ChatModel.from_environment(terms_of(spec), {TEACHER_KEY_VARIABLE: KEY}))
    assert KEY not in json.dumps(server.received[0].headers)


@pytest.mark.parametrize(
    ("value", "reason", "problem"),
    [
        (
            " \n",
            Reason.SECRET_MISSING,
            ["empty", "Secret 'teacher'", "API key", "'token'"],
        ),
        (
            "sk-a\nb",
            Reason.TEACHER_REFUSED,
            ["characters", "HTTP header", "not an API key"],
        ),
        (
            "sk-ä",
            Reason.TEACHER_REFUSED,
            ["characters", "HTTP header", "not an API key"],
        ),
    ],
)
def test_a_key_that_is_none(value: str, reason: Reason, problem: list[str]) -> None:
    with pytest.raises(StageError) as error:
        ChatModel.from_environment(terms_of(secured("http://host/v1")), {TEACHER_KEY_VARIABLE: value})
    assert error.value.reason is reason
    assert_says(error.value.message, "TEACHER_API_KEY", *problem)
