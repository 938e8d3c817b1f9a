"""Distillation against a real HTTP server and a real store: answers, troubles, money, what outlives a killed pod."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.crdgen import structural
from finetune_api.distillation import Distillation, TeacherPrices, TeacherRef
from finetune_api.reasons import Reason
from finetune_jobs.dataset.readers import Fault, Row
from finetune_jobs.dataset.validation import Faults
from finetune_jobs.distillation.answers import Answer, AttemptError, read_answer
from finetune_jobs.distillation.distil import Distilled, distil
from finetune_jobs.distillation.filters import AnswerRules, is_refusal
from finetune_jobs.distillation.journal import Journal
from finetune_jobs.distillation.money import Budget, Tokens, estimate_tokens
from finetune_jobs.distillation.pace import Pacer, Patience
from finetune_jobs.distillation.prompts import Prompt, questions, read_prompts, recipe
from finetune_jobs.distillation.teacher import API_KEY_VARIABLE, Teacher, retry_after
from finetune_jobs.errors import StageError, StoppedError
from finetune_jobs.store import Store
from hack.cluster.layout import free_port
from tests.support.seaweedfs import READER, SeaweedFS
from tests.support.stages import RUN
from tests.support.teacher_server import Behaviour, Reply, TeacherServer, fails, says

pytestmark = pytest.mark.unit

SOURCE = "s3://data/prompts.jsonl"
QUICK = Patience(attempts=3, first_pause=0.01, longest_pause=0.05, longest_asked=1.0, grace=1.0)
KEY = "sk-not-a-real-key-0123456789"


def config(url: str = "http://127.0.0.1:9/v1", timeout: int = 30, **fields: Any) -> Distillation:
    return Distillation(teacher=TeacherRef(url=url, model="teacher-1", request_timeout_seconds=timeout), **fields)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"question {n}", SOURCE, n + 1) for n in range(count)]


def echo(prompt: str, nth: int) -> Reply:
    return says(f"answer to {prompt}")


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    return Store.connect(s3.storage, place)


@dataclass
class Outcome:
    """What a distillation gave."""

    result: Distilled = field(default_factory=Distilled)
    examples: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def answers(self) -> list[str]:
        return [messages[-1]["content"] for messages in self.examples]


def run(
    store: Store, asked: list[Prompt], spec: Distillation, teacher: Teacher | None = None, **options: Any
) -> Outcome:
    outcome = Outcome()
    journal, options = Journal.of(store, RUN, spec), {"patience": QUICK} | options
    outcome.result = distil(
        asked, spec, teacher or Teacher(spec), journal, lambda _, each: outcome.examples.append(each), **options
    )
    return outcome


def distilled(store: Store, behaviour: Behaviour, count: int = 5, **fields: Any) -> tuple[Outcome, TeacherServer]:
    with TeacherServer.running(behaviour) as server:
        return run(store, prompts(count), config(server.url, **fields)), server


def failure(store: Store, behaviour: Behaviour, count: int = 5, **fields: Any) -> tuple[StageError, TeacherServer]:
    with TeacherServer.running(behaviour) as server, pytest.raises(StageError) as error:
        run(store, prompts(count), config(server.url, **fields))
    return error.value, server


# The spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_cost": "5"}, "maxCost needs prices"),
        ({"samples_per_prompt": 2, "temperature": "0.0"}, "samplesPerPrompt above 1 needs a temperature above 0"),
        ({"temperature": "2.1"}, "temperature may be 2 at most"),
        ({"min_answer_words": 5, "max_answer_words": 4}, "minAnswerWords must not be above maxAnswerWords"),
        ({"question_template": "Answer this question."}, "String should match pattern"),
        ({"concurrency": 65}, "less than or equal to 64"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "http://host",
        "http://host/v1/",
        "http://host/v1/chat/completions",
        "https://user:secret@host/v1",
        "https://host/v1?key=secret",
        "https://host/v1#/v1",
        "https://ho st/v1",
        "file:///v1",
    ],
)
def test_a_url_that_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        config(url)


@pytest.mark.parametrize("url", ["https://api.example.com/v1", "http://vllm.ns.svc:8000/v1", "https://h/openai/v1"])
def test_base_urls(url: str) -> None:
    assert config(url).teacher.url == url


def test_the_models_fit_a_crd_and_the_server_refuses_what_python_refuses() -> None:
    schema = structural(Distillation)
    messages = [rule["message"] for rule in schema["x-kubernetes-validations"]]
    assert len(messages) == 4
    assert schema["properties"]["teacher"]["required"] == ["url", "model"]


# Prompts


def read(rows: list[Row | Fault], column: str = "", **fields: Any) -> tuple[list[Prompt], Faults]:
    faults = Faults()
    return list(read_prompts(SOURCE, rows, config(**fields), faults, column)), faults


def test_prompts_come_from_a_column_or_from_documents() -> None:
    assert read([Row(1, {"prompt": " Why? ", "other": 1})])[0] == [Prompt("Why?", SOURCE, 1)]
    assert read([Row(2, {"question": "Why?"})], column="question")[0] == [Prompt("Why?", SOURCE, 2)]
    template = 'Summarise as {"summary": "…"}:\n{document}\n{document}'
    made, _ = read([Row(3, {"document": "A {document} of {x}"})], question_template=template)
    assert [p.text for p in made] == ['Summarise as {"summary": "…"}:\nA {document} of {x}\nA {document} of {x}']


def test_a_row_without_a_prompt_is_a_fault_and_the_reading_goes_on() -> None:
    rows = [Row(1, {"promt": "x"}), Row(2, {"prompt": " "}), Row(3, {"prompt": "a\0b"}), Row(4, {"prompt": 7})]
    made, faults = read([*rows, Fault(5, "", "malformedJson", "is not JSON"), Row(6, {"prompt": "fine"})])
    assert [p.text for p in made] == ["fine"]
    assert faults.kinds == {"missingColumn": 1, "empty": 1, "nulByte": 1, "notText": 1, "malformedJson": 1}
    assert faults.sentences().startswith(
        f"{SOURCE} line 1, prompt: does not exist; the row has 'promt'. Did you mean 'promt'?; {SOURCE} line 2"
    )


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"instruction": "Be brief."}, False),
        ({"temperature": "0.5"}, False),
        ({"max_answer_tokens": 99}, False),
        ({"concurrency": 1, "requests_per_minute": 9, "timeout": 1, "deadline_minutes": 1}, True),
        ({"max_cost": "1", "prices": {"usdPerMillionInputTokens": "1"}}, True),
        ({"min_answer_words": 3, "duplicates": "Drop", "drop_refusals": False, "answer_schema": "{}"}, True),
    ],
)
def test_answers_are_used_again_unless_something_that_shapes_them_changes(fields: dict[str, Any], same: bool) -> None:
    assert (recipe(config(**fields)) == recipe(config())) is same


def test_each_sample_of_a_prompt_is_a_question_of_its_own() -> None:
    spec = config(samples_per_prompt=3)
    asked = [q for prompt in prompts(2) for q in questions(prompt, spec, recipe(spec))]
    assert len({q.identity for q in asked}) == 6


# Money


def test_cost_is_tokens_times_price() -> None:
    prices = TeacherPrices(usd_per_million_input_tokens="0.15", usd_per_million_output_tokens="6e-1")
    assert Tokens(1_000_000, 500_000).cost(prices) == Decimal("0.45")


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("four", 1), ("seven77", 2), ("日本語", 3)])
def test_tokens_are_estimated_from_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=30),
    st.integers(1, 400),
    st.integers(1, 8),
)
def test_a_budget_is_never_exceeded_nor_left_waiting(wanted: list[tuple[int, int]], limit: int, workers: int) -> None:
    """Every request uses at most what was put aside for it: then the sum stays below the limit, whatever the order."""
    prices = TeacherPrices(usd_per_million_input_tokens="0", usd_per_million_output_tokens="1")
    budget = Budget(prices, Decimal(limit) / 1_000_000, Tokens())
    queue = iter(wanted)

    async def work() -> None:
        for most, used in queue:
            if not await budget.reserve(Tokens(0, most)):
                return
            await asyncio.sleep(0)
            budget.settle(Tokens(0, most), Tokens(0, min(most, used)))

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(workers))), 5)

    asyncio.run(all_of_them())
    assert budget.spent.output <= limit
    assert budget.exhausted or next(queue, None) is None
    if budget.exhausted:
        assert budget.spent.output + max(most for most, _ in wanted) > limit


# Reading what comes back

ESTIMATE = Tokens(7, 100)


def body(**changes: Any) -> bytes:
    return json.dumps(json.loads(says("yes").body) | changes).encode()


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (says("yes", usage=(3, 2)).body, Answer("yes", "stop", Tokens(3, 2))),
        (says("long", finish="length").body, Answer("long", "length", Tokens(10, 5))),
        (says(None, finish="content_filter").body, Answer("", "content_filter", Tokens(10, 5))),
        (says(None, refusal="No.").body, Answer("No.", "refusal", Tokens(10, 5))),
        (says("eight by", usage=None).body, Answer("eight by", "stop", Tokens(7, 2, 9))),
        (says("x", usage={"prompt_tokens": -1, "completion_tokens": 1}).body, Answer("x", "stop", Tokens(7, 1, 8))),
        (says("x", usage="none").body, Answer("x", "stop", Tokens(7, 1, 8))),
        (b'{"choices": [{"message": {"content": "bare"}}]}', Answer("bare", "stop", Tokens(7, 1, 8))),
    ],
)
def test_answers(content: bytes, answer: Answer) -> None:
    assert read_answer(content, ESTIMATE) == answer


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>Bad gateway</html>", "answered something that is not JSON"),
        (b"", "answered something that is not JSON"),
        (b'{"choices": ', "answered something that is not JSON"),
        (b"\xff\xfe", "answered something that is not JSON"),
        (b"[" * 100_000, "answered something that is not JSON"),
        (b"[]", "answered JSON without choices[0]"),
        (b'{"error": "busy"}', "answered JSON without choices[0]"),
        (body(choices=[]), "answered JSON without choices[0]"),
        (body(choices=[{"text": "old API"}]), "answered JSON without choices[0].message"),
        (body(choices=[{"message": {"content": 7}}]), "answered JSON without a text in choices[0].message.content"),
        (says("\ud800").body, "answered half a surrogate pair, which is no text"),
    ],
)
def test_rubbish_is_told_apart_and_never_quoted(content: bytes, problem: str) -> None:
    with pytest.raises(AttemptError) as error:
        read_answer(content, ESTIMATE)
    assert (str(error.value), error.value.kind, error.value.charged) == (problem, "teacherRubbish", True)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
    lambda value: json.dumps({"choices": value}).encode()
))  # fmt: skip
def test_no_body_is_a_surprise(content: bytes) -> None:
    with suppress(AttemptError):
        assert isinstance(read_answer(content, ESTIMATE), Answer)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:16:45 GMT"}, 5.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1000.0) == seconds


# Filters

OBJECT = '{"type": "object", "required": ["code"], "properties": {"code": {"type": "integer"}}}'


def judge(text: str, finish: str = "stop", **fields: Any) -> str:
    """The text that stays, or the fault's kind and problem."""
    verdict = AnswerRules(config(**fields)).judge(Answer(text, finish, Tokens()), Prompt("why?", SOURCE, 3))
    if isinstance(verdict, str):
        return verdict
    assert (verdict.line, verdict.field, verdict.value) == (3, "answer", "")
    return f"{verdict.kind}: {verdict.problem}"


@pytest.mark.parametrize(
    ("text", "fields", "verdict"),
    [
        ("  Use v2.\n", {}, "Use v2."),
        (" \n", {}, "empty: is empty"),
        ("a\0b", {}, "nulByte: holds a NUL byte at character 2"),
        ("cut", {"finish": "length", "max_answer_tokens": 64}, "truncated: was cut at 64 tokens"),
        ("", {"finish": "content_filter"}, "contentFilter: was taken away by the teacher's content filter"),
        ("Never.", {"finish": "refusal", "drop_refusals": False}, "refusal: refuses to answer"),
        ("I'm sorry, but I can't help with that.", {}, "refusal: refuses to answer"),
        ("I'm sorry, but I can't help with that.", {"drop_refusals": False}, "I'm sorry, but I can't help with that."),
        ("one two", {"min_answer_words": 3}, "tooShort: has 2 words, minAnswerWords is 3"),
        ("one two three", {"max_answer_words": 2}, "tooLong: has 3 words, maxAnswerWords is 2"),
        ('{"code": 7}', {"answer_schema": OBJECT}, '{"code": 7}'),
        ('```json\n{"code": 7}\n```', {"answer_schema": OBJECT}, '{"code": 7}'),
        ('```json\n{"code": 7}\n```', {}, '```json\n{"code": 7}\n```'),
        ("It is 7.", {"answer_schema": OBJECT}, "answerNotJson: is not JSON, which answerSchema asks for"),
        ("[" * 100_000, {"answer_schema": OBJECT}, "answerNotJson: is not JSON, which answerSchema asks for"),
        ('{"code": "x@example.com"}', {"answer_schema": OBJECT},
         "answerSchema: does not match answerSchema: properties/code/type"),
        ("{}", {"answer_schema": OBJECT}, "answerSchema: does not match answerSchema: required"),
    ],
)  # fmt: skip
def test_what_an_answer_must_be(text: str, fields: dict[str, Any], verdict: str) -> None:
    assert judge(text, **fields) == verdict


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I cannot help with this.",
        "Sorry, I am not able to do that.",
        "I apologize, but I cannot provide that.",
        "I cannot comply with this request.",
        "I'm unable to assist with that.",
        "Unfortunately, I can't help with that.",
        "As an AI language model, I do not have opinions.",
        "I am just an AI and cannot know.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sorry to hear that! Send the header again.",
        "I'm sorry you ran into this. Error 429 means that you sent too many requests.",
        "I cannot find your key in the request: send it in the header.",
        "You can't help users who revoke the key; ask them for a new one.",
        "The server answers 403: I can't read this bucket.",
        "As an aide, the console shows the last error.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        ('{"type": "strin"}', "is not a JSON Schema: $.type: 'strin' is not valid under any of the given schemas."),
    ],
)
def test_a_schema_that_is_none(schema: str, message: str) -> None:
    with pytest.raises(StageError) as error:
        AnswerRules(config(answer_schema=schema))
    assert (error.value.reason, error.value.message) == (
        Reason.SPEC_INVALID,
        f"spec.dataset.distillation.answerSchema {message}",
    )


def test_a_schema_never_loads_another() -> None:
    with TeacherServer.running(echo) as server, pytest.raises(StageError) as error:
        judge("{}", answer_schema=json.dumps({"$ref": f"{server.url}/schema.json"}))
    assert error.value.message.endswith(f"refers to '{server.url}/schema.json', which it does not hold.")


@pytest.mark.parametrize(
    ("mode", "kept"),
    [
        ("Keep", ["Yes.", "yes.", "Yes.", "Yes!", "No."]),
        ("WithinPrompt", ["Yes.", "Yes.", "Yes!", "No."]),
        ("Drop", ["Yes.", "No."]),
    ],
)
def test_repeated_answers(mode: str, kept: list[str]) -> None:
    def near(text: str) -> bool:
        return text.endswith("!")

    rules = AnswerRules(config(duplicates=mode), near)
    given_answers = [("a", "Yes."), ("a", "yes."), ("b", "Yes."), ("c", "Yes!"), ("c", "No.")]
    judged = [rules.judge(Answer(t, "stop", Tokens()), Prompt(p, SOURCE, 1)) for p, t in given_answers]
    assert [each for each in judged if isinstance(each, str)] == kept
    kinds = {each.kind for each in judged if isinstance(each, Fault)}
    assert kinds == {"Keep": set(), "WithinPrompt": {"repeatedAnswer"}}.get(
        mode, {"repeatedAnswer", "nearlyRepeatedAnswer"}
    )


# Asking


def test_answers_come_in_the_order_of_the_prompts_whatever_comes_first(store: Store) -> None:
    def later_is_faster(prompt: str, nth: int) -> Reply:
        return says(f"answer to {prompt}", delay=0.3 if prompt.endswith("0") else 0.0)

    outcome, server = distilled(store, later_is_faster, 20, instruction="Be brief.", temperature="0.7")
    assert outcome.answers == [f"answer to question {n}" for n in range(20)]
    assert outcome.examples[3] == [
        {"role": "user", "content": "question 3"},
        {"role": "assistant", "content": "answer to question 3"},
    ]
    assert server.received[0].body == {
        "model": "teacher-1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": server.prompts[0]}],
        "max_tokens": 1024,
        "temperature": 0.7,
    }
    assert outcome.result.tokens == Tokens(200, 100)


def test_a_teacher_with_its_own_temperature_is_not_told_one(store: Store) -> None:
    _, server = distilled(store, echo, 1)
    assert server.received[0].body.keys() == {"model", "messages", "max_tokens"}


def test_equal_prompts_are_asked_once_and_each_sample_is_asked_for(store: Store) -> None:
    def numbered(prompt: str, nth: int) -> Reply:
        return says(f"{prompt}: {min(nth, 2)}")

    with TeacherServer.running(numbered) as server:
        outcome = run(store, [*prompts(3), *prompts(2)], config(server.url, samples_per_prompt=3, concurrency=1))
    assert len(server.received) == 9
    assert (outcome.result.prompts, outcome.result.repeated, outcome.result.wanted) == (3, 2, 9)
    assert outcome.answers == [f"question {n}: {k}" for n in range(3) for k in (1, 2)]
    assert outcome.result.faults.kinds == {"repeatedAnswer": 3}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_never_more_requests_at_a_time_than_allowed(store: Store, concurrency: int) -> None:
    _, server = distilled(store, lambda p, n: says("x", delay=0.03), 16, concurrency=concurrency)
    assert server.peak == concurrency


def test_requests_keep_to_the_rate(store: Store) -> None:
    def sometimes_failing(prompt: str, nth: int) -> Reply:
        return fails(500) if nth == 1 and prompt.endswith("3") else says("fine")

    outcome, server = distilled(store, sometimes_failing, 12, requests_per_minute=1200, concurrency=12)
    times = [each.at for each in server.received]
    assert len(times) == 13
    assert times[-1] - times[0] >= 12 * 0.05 * 0.95  # the clock of another thread
    assert outcome.result.examples == 12


def test_a_pause_holds_everybody_back() -> None:
    async def scenario() -> float:
        pacer = Pacer(0)
        pacer.hold(0.2)
        began = time.monotonic()
        await asyncio.gather(*(pacer.turn() for _ in range(5)))
        return time.monotonic() - began

    assert 0.2 <= asyncio.run(scenario()) < 1.0


# Trouble that passes


def test_trouble_that_passes_costs_no_prompt(store: Store) -> None:
    once = {
        "question 0": fails(500),
        "question 1": fails(503, headers={"Retry-After": "0.1"}),
        "question 2": Reply(200, b"<html>", headers={"Content-Type": "text/html"}),
        "question 3": Reply(200, b'{"choices": []}'),
        "question 4": Reply(200, b'{"choices": [{"message"', hang_up=True),
        "question 5": fails(408),
        "question 6": fails(429, headers={"Retry-After": "0.1"}),
    }

    def behaviour(prompt: str, nth: int) -> Reply:
        return once[prompt] if nth == 1 else says(f"answer to {prompt}")

    outcome, server = distilled(store, behaviour, 7, concurrency=2)
    assert outcome.answers == [f"answer to question {n}" for n in range(7)]
    assert len(server.received) == 14
    assert outcome.result.faults.total == 0


def test_a_busy_teacher_is_left_alone_for_as_long_as_it_asks(store: Store) -> None:
    """429 pauses all requests and uses up no attempt: six of them, where three failures would be the end."""

    def busy(prompt: str, nth: int) -> Reply:
        return fails(429, headers={"Retry-After": "0.2"}) if nth <= 6 else says("at last")

    outcome, server = distilled(store, busy, 1, concurrency=1)
    assert outcome.answers == ["at last"]
    gaps = [b.at - a.at for a, b in zip(server.received, server.received[1:], strict=False)]
    assert all(gap >= 0.19 for gap in gaps)


def test_a_teacher_that_asks_for_hours_is_not_waited_for(store: Store) -> None:
    error, server = failure(store, lambda p, n: fails(429, headers={"Retry-After": "3600"}), 3, concurrency=1)
    assert (error.reason, error.retriable, error.message) == (
        Reason.TEACHER_UNAVAILABLE,
        True,
        f"{server.url}: the teacher answered 429: too many requests, and asks to wait 3600 s; 1 s is the most.",
    )
    assert len(server.received) == 1


# Trouble that stays


@pytest.mark.parametrize(
    ("reply", "fields", "problem"),
    [
        (fails(500), {}, "answered 500"),
        (fails(429), {}, "answered 429: too many requests"),
        (fails(529, kind="overloaded_error"), {}, "answered 529 (overloaded_error)"),
        (fails(429, code="rate_limit_exceeded"), {}, "answered 429 (rate_limit_exceeded): too many requests"),
        (Reply(200, b"rubbish"), {}, "answered something that is not JSON"),
        (Reply(200, b"{}"), {}, "answered JSON without choices[0]"),
        (Reply(200, b"{" * 100, hang_up=True), {}, "broke the connection (RemoteProtocolError)"),
        (Reply(200, b"[" + b" " * (9 << 20) + b"]"), {}, "answered more than 8388608 bytes"),
        (says("late", delay=30), {"timeout": 1}, "gave no answer within 1 s"),
        (says("drop by drop", drip=0.1), {"timeout": 1}, "gave no answer within 1 s"),
    ],
)  # fmt: skip
def test_a_teacher_that_never_answers_ends_the_distillation(
    store: Store, reply: Reply, fields: dict[str, Any], problem: str
) -> None:
    error, server = failure(store, lambda p, n: reply, 60, concurrency=8, **fields)
    assert (error.reason, error.retriable, error.message) == (
        Reason.TEACHER_UNAVAILABLE,
        True,
        f"{server.url}: 24 requests failed in a row; the last time the teacher {problem}.",
    )
    assert len(server.received) <= 24 + 8


def test_nobody_listens(store: Store) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(StageError) as error:
        run(store, prompts(60), config(url))
    assert (error.value.reason, error.value.message) == (
        Reason.TEACHER_UNAVAILABLE,
        f"{url}: 24 requests failed in a row; the last time the teacher cannot be reached (name, connection or TLS).",
    )


def test_a_few_prompts_that_fail_all_are_told_with_their_places(store: Store) -> None:
    error, server = failure(store, lambda p, n: fails(500), 2)
    assert error.message == (
        f"{server.url}: none of 2 prompts was answered: {SOURCE} line 1, answer: was not given: the teacher answered "
        f"500; {SOURCE} line 2, answer: was not given: the teacher answered 500."
    )


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (fails(401), "refused the API key (401)"),
        (fails(402), "wants to be paid first (402)"),
        (fails(403), "does not let this API key use the model (403)"),
        (fails(404), "does not know the model, or the URL is not the base of an OpenAI-compatible API (404)"),
        (fails(429, code="insufficient_quota"), "has no credit left (429 insufficient_quota)"),
    ],
)
def test_what_no_other_request_could_change_ends_at_once(store: Store, reply: Reply, problem: str) -> None:
    error, server = failure(store, lambda p, n: reply, 20, concurrency=1)
    assert (error.reason, error.retriable, error.message) == (
        Reason.TEACHER_REFUSED,
        False,
        f"{server.url}: the teacher {problem}; model 'teacher-1'.",
    )
    assert len(server.received) == 1


def test_a_prompt_that_is_refused_is_left_out_and_not_asked_again(store: Store) -> None:
    def behaviour(prompt: str, nth: int) -> Reply:
        return fails(400, code="context_length_exceeded") if prompt == "question 2" else echo(prompt, nth)

    outcome, server = distilled(store, behaviour)
    assert len(server.received) == 5
    assert outcome.answers == [f"answer to question {n}" for n in (0, 1, 3, 4)]
    assert outcome.result.faults.sentences() == (
        f"{SOURCE} line 3, answer: was not given: the teacher refused the request with 400 (context_length_exceeded)"
    )


def test_parameters_that_the_teacher_never_takes_end_the_distillation(store: Store) -> None:
    refusal = fails(400, code="unsupported_parameter", param="max_tokens", message="'max_tokens': use another, Eve")
    error, server = failure(store, lambda p, n: refusal, 60)
    assert (error.reason, error.message) == (
        Reason.TEACHER_REFUSED,
        f"{server.url}: 24 requests failed in a row; the last time the teacher refused the request with 400 "
        "(unsupported_parameter), parameter max_tokens.",
    )


def test_filters_are_counted_by_kind_and_keep_no_value(store: Store) -> None:
    answers = {
        "question 0": says("fine"),
        "question 1": says("cut sho", finish="length"),
        "question 2": says("I'm sorry, but I can't help with that."),
        "question 3": says("  "),
        "question 4": says("secret@example.com " * 50),
    }
    outcome, _ = distilled(store, lambda p, n: answers[p], max_answer_words=10)
    assert outcome.answers == ["fine"]
    report = outcome.result.report()
    assert report["filters"] == {"empty": 1, "refusal": 1, "tooLong": 1, "truncated": 1}
    assert report["errors"] == [
        {"file": SOURCE, "line": line, "field": "answer", "kind": kind}
        for line, kind in ((2, "truncated"), (3, "refusal"), (4, "empty"), (5, "tooLong"))
    ]
    assert "example.com" not in json.dumps(report) + outcome.result.message()
    assert outcome.result.message() == (
        "The teacher gave 5 of 5 answers for 0.00 USD; 1 are examples. Left out: empty 1, refusal 1, tooLong 1, "
        "truncated 1."
    )


# Money and time


def test_the_budget_stops_before_it_is_exceeded(store: Store) -> None:
    """Prompts of 12 tokens (8 around, 4 of text: "question 10" has 11 bytes), answers of 100 at most and 50 in fact."""
    prices = {"usdPerMillionInputTokens": "0", "usdPerMillionOutputTokens": "10000"}  # 1 USD for 100 tokens
    outcome, server = distilled(
        store, lambda p, n: says("x", usage=(12, 50)), 30, prices=prices, max_cost="5", max_answer_tokens=100
    )
    result = outcome.result
    assert len(server.received) == 9  # after nine, 4.50 are spent, and another could cost 1.00
    assert (result.cost, result.unasked, result.examples) == (Decimal("4.5"), 21, 9)
    assert result.scalars()["teacherCostUsd"] == "4.5000"
    assert "21 were not asked for: they could have led beyond maxCost." in result.message()


def test_a_budget_for_not_even_one_answer(store: Store) -> None:
    prices = {"usdPerMillionOutputTokens": "10000"}
    error, server = failure(store, echo, prices=prices, max_cost="0.5", max_answer_tokens=100)
    assert (error.reason, server.received, error.message) == (
        Reason.BUDGET_EXCEEDED,
        [],
        "spec.dataset.distillation.maxCost (0.5 USD, 0.000000 are spent) pays for no answer, which may have 100 "
        "tokens.",
    )


def test_requests_without_an_answer_count_as_if_they_had_one(store: Store) -> None:
    """The teacher may have worked and sent a bill: after a rubbish answer the most that it can have cost is booked."""

    def behaviour(prompt: str, nth: int) -> Reply:
        return Reply(200, b"rubbish") if nth == 1 else says("fine", usage=(10, 5))

    outcome, _ = distilled(store, behaviour, 1, max_answer_tokens=100)
    most = 8 + estimate_tokens("question 0")
    assert outcome.result.tokens == Tokens(most + 10, 105, most + 100)
    again, server = distilled(store, echo, 1, max_answer_tokens=100)
    assert again.result.tokens != outcome.result.tokens  # another URL, another journal
    assert len(server.received) == 1


def test_the_deadline(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_jobs.distillation.inquiry._MINUTE", 1.0)
    error, server = failure(store, lambda p, n: says("slow", delay=0.3), 60, deadline_minutes=1, concurrency=1)
    assert error.reason is Reason.DEADLINE_EXCEEDED
    asked = len(server.received)
    assert error.message == (
        f"deadlineMinutes (1) of the distillation is over: the teacher has answered {asked} of 60 prompts; the answers "
        "are kept."
    )


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
    assert f"{chunk.uri}: 2 damaged lines are left out; their prompts are asked again" in caplog.text


def test_two_pods_write_beside_each_other(store: Store) -> None:
    spec = config()
    asked = [q for prompt in prompts(3) for q in questions(prompt, spec, recipe(spec))]
    first, second = Journal(store), Journal(store)
    for number, journal in enumerate((first, second, first)):
        journal.add(asked[number].identity, Answer(f"answer {number}\u2028", "stop", Tokens(1, 2)))
        journal.flush()
    assert [entry.key for entry in store.list()] == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    third = Journal(store)
    assert (third.found, third.spent) == (3, Tokens(3, 6))
    assert [third.find(q.identity) for q in asked] == [
        Answer(f"answer {number}\u2028", "stop", Tokens(1, 2)) for number in range(3)
    ]
    assert third.find("0" * 64) is None
    third.flush()
    assert len(list(store.list())) == 3


def test_answers_that_cannot_be_kept_end_the_asking(s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in READER.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("finetune_jobs.distillation.inquiry._KEEP_SECONDS", 0.1)
    error, server = failure(Store.connect(s3.storage, place), lambda p, n: says("x", delay=0.2), 200, concurrency=1)
    assert error.reason is Reason.S3_ACCESS_DENIED
    assert len(server.received) < 50


def _in_a_process(endpoint: str, place: str, url: str, count: int, result: str) -> None:
    """A pod: distils until it is done, or stops on SIGTERM."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    store = Store.connect(SeaweedFS(endpoint).storage, place)
    try:
        with mock.patch("finetune_jobs.distillation.inquiry._KEEP_SECONDS", 0.5):
            run(store, prompts(count), config(url, concurrency=4), stopping=stopping)
    except StoppedError as stopped:
        Path(result).write_text(str(stopped))


@pytest.fixture
def pod(s3: SeaweedFS, place: str, tmp_path: Path) -> Iterator[Any]:
    """Starts a pod that asks ``count`` prompts of a server."""
    context = multiprocessing.get_context("spawn")
    started: list[Any] = []

    def start(server: TeacherServer, count: int) -> Any:
        arguments = (s3.endpoint, place, server.url, count, str(tmp_path / "result"))
        process = context.Process(target=_in_a_process, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(10)


def _wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_after_a_killed_pod_only_what_is_missing_is_asked(store: Store, pod: Any) -> None:
    """``kill -9`` in the middle: what was in the journal is not asked again, and the result is that of a quiet run."""
    hurry = threading.Event()

    def behaviour(prompt: str, nth: int) -> Reply:
        return says(f"answer to {prompt}", delay=0 if hurry.is_set() else 0.05)

    with TeacherServer.running(behaviour) as server:
        process = pod(server, 400)
        _wait_until(lambda: list(store.list()))
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
        hurry.set()
        kept = Journal.of(store, RUN, config(server.url)).found
        before = len(server.received)
        assert 0 < kept < 400
        outcome = run(store, prompts(400), config(server.url))
        assert len(server.received) - before == 400 - kept
    assert outcome.answers == [f"answer to question {n}" for n in range(400)]
    assert (outcome.result.reused, outcome.result.answered) == (kept, 400 - kept)


def test_sigterm_keeps_every_answer_within_seconds(store: Store, pod: Any, tmp_path: Path) -> None:
    with TeacherServer.running(lambda p, n: says(f"answer to {p}", delay=0.1)) as server:
        process = pod(server, 1000)
        _wait_until(lambda: len(server.received) > 20)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        process.join(20)
        assert time.monotonic() - began < 10
        assert process.exitcode == 0
        asked = len(server.received)
        assert Journal.of(store, RUN, config(server.url)).found == asked  # those on their way too
        assert (tmp_path / "result").read_text() == (
            f"The pod was told to stop: the teacher has answered {asked} of 1000 prompts; the answers are kept."
        )


def test_a_request_that_is_cut_off_counts_as_money(store: Store) -> None:
    stopping = threading.Event()

    def behaviour(prompt: str, nth: int) -> Reply:
        stopping.set()
        return says("too late", delay=30)

    with TeacherServer.running(behaviour) as server:
        spec = config(server.url, max_answer_tokens=100)
        with pytest.raises(StoppedError):
            run(store, prompts(1), spec, stopping=stopping)
        assert Journal.of(store, RUN, spec).spent == Tokens(11, 100, 111)


# Secrets


def secured(url: str) -> Distillation:
    teacher = {"url": url, "model": "m", "credentials": {"secretName": "teacher", "key": "token"}}
    return Distillation.model_validate({"teacher": teacher})


def test_the_key_goes_to_the_teacher_and_nowhere_else(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with TeacherServer.running(echo, key=KEY) as server:
        spec = secured(server.url)
        right = Teacher.from_environment(spec, {API_KEY_VARIABLE: f"{KEY}\n"})
        assert run(store, prompts(1), spec, right).answers == ["answer to question 0"]
        with pytest.raises(StageError) as error:
            run(store, prompts(2), spec, Teacher(spec, f"{KEY}-wrong"))
    assert error.value.message == f"{server.url}: the teacher refused the API key (401); model 'm'."
    kept = b"".join(store.get(entry.key) or b"" for entry in store.list())
    assert b"answer to question 0" in kept
    assert KEY not in caplog.text + error.value.message + kept.decode()


def test_a_server_that_asks_for_no_key_is_told_none(store: Store) -> None:
    with TeacherServer.running(echo) as server:
        spec = config(server.url)
        run(store, prompts(1), spec, Teacher.from_environment(spec, {API_KEY_VARIABLE: KEY}))
    assert KEY not in json.dumps(server.received[0].headers)


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (
            " \n",
            Reason.SECRET_MISSING,
            "TEACHER_API_KEY is empty: Secret 'teacher' must hold the API key of the teacher under 'token'.",
        ),
        (
            "sk-a\nb",
            Reason.TEACHER_REFUSED,
            "TEACHER_API_KEY holds characters that no HTTP header may hold: it is not an API key.",
        ),
        (
            "sk-ä",
            Reason.TEACHER_REFUSED,
            "TEACHER_API_KEY holds characters that no HTTP header may hold: it is not an API key.",
        ),
    ],
)
def test_a_key_that_is_none(value: str, reason: Reason, message: str) -> None:
    with pytest.raises(StageError) as error:
        Teacher.from_environment(secured("http://host/v1"), {API_KEY_VARIABLE: value})
    assert (error.value.reason, error.value.message) == (reason, message)
