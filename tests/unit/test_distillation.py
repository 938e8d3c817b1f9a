"""Distillation against a real HTTP server: answers, troubles that pass and troubles that stay, money and time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.chat_api.money import Tokens, estimate_tokens
from finetune_jobs.chat_api.pace import Pacer
from finetune_jobs.reading.rows import Row
from finetune_jobs.store.s3 import Store
from tests.support.closed_port import closed_port
from tests.support.distilling import QUICK, SOURCE, config, distilled, echo, failure, prompts, run
from tests.support.sentences import assert_says
from tests.support.teacher_server import Reply, TeacherServer, fails, says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


# Asking


def test_answers_come_in_the_order_of_the_prompts_whatever_comes_first(store: Store) -> None:
    def later_is_faster(prompt: str, nth: int) -> Reply:
        return says(f"answer to {prompt}", delay=0.3 if prompt.endswith("0") else 0.0)

    outcome, server = distilled(store, later_is_faster, 20, instruction="Be brief.", temperature="0.7")
    assert outcome.answers == [f"answer to question {n}" for n in range(20)]
    turns = [{"role": "user", "content": "question 3"}, {"role": "assistant", "content": "answer to question 3"}]
    assert outcome.rows[3] == Row(4, {"messages": turns})
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
    """Nobody gets an answer before as many ask as may: on a busy machine the first would be answered by then."""
    together = threading.Barrier(concurrency, timeout=60)

    def at_the_same_time(prompt: str, nth: int) -> Reply:
        with suppress(threading.BrokenBarrierError):
            together.wait()
        return says("x", delay=0.03)

    _, server = distilled(store, at_the_same_time, 16, concurrency=concurrency)
    assert server.peak == concurrency


def test_requests_keep_to_the_rate(store: Store) -> None:
    def sometimes_failing(prompt: str, nth: int) -> Reply:
        return fails(500) if nth == 1 and prompt.endswith("3") else says("fine")

    began = time.monotonic()
    outcome, server = distilled(store, sometimes_failing, 12, requests_per_minute=1200, concurrency=12)
    times = [each.at for each in server.received]
    assert len(times) == 13
    assert times[-1] - began >= 12 * 0.05  # and not since the first one, which another thread may have seen late
    assert outcome.result.examples == 12


def test_a_pause_holds_everybody_back() -> None:
    async def scenario() -> float:
        pacer = Pacer(0)
        pacer.hold(1.0)
        began = time.monotonic()
        await asyncio.gather(*(pacer.turn() for _ in range(5)))
        return time.monotonic() - began

    assert 1.0 <= asyncio.run(scenario()) < 5.0


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


@pytest.mark.parametrize("status", [429, 503])
def test_a_teacher_that_asks_for_no_wait_is_not_asked_at_once(store: Store, status: int) -> None:
    """``Retry-After: 0`` of a limit that is over within the second. All attempts took some milliseconds."""

    def behaviour(prompt: str, nth: int) -> Reply:
        return fails(status, headers={"Retry-After": "0"}) if nth < 3 else says("at last")

    with TeacherServer.running(behaviour) as server:
        slow = replace(QUICK, first_pause=0.2, longest_pause=0.2)
        outcome = run(store, prompts(1), config(server.url, concurrency=1), patience=slow)
    assert outcome.answers == ["at last"]
    assert all(b.at - a.at >= 0.09 for a, b in pairwise(server.received))


def test_a_teacher_that_asks_for_hours_is_not_waited_for(store: Store) -> None:
    error, server = failure(store, lambda p, n: fails(429, headers={"Retry-After": "3600"}), 3, concurrency=1)
    assert (error.reason, error.retriable) == (Reason.TEACHER_UNAVAILABLE, True)
    assert_says(error.message, f"{server.url}:", "429", "too many requests", "3600 s", "1 s")
    assert len(server.received) == 1


# Trouble that stays


@pytest.mark.parametrize(
    ("reply", "fields", "problem"),
    [
        (fails(500), {}, ["500"]),
        (fails(429), {}, ["429", "too many requests"]),
        (fails(529, kind="overloaded_error"), {}, ["529 (overloaded_error)"]),
        (fails(429, code="rate_limit_exceeded"), {}, ["429 (rate_limit_exceeded)", "too many requests"]),
        (Reply(200, b"rubbish"), {}, ["not JSON"]),
        (Reply(200, b"{}"), {}, ["JSON", "choices[0]"]),
        (Reply(200, b"{" * 100, hang_up=True), {}, ["connection", "(RemoteProtocolError)"]),
        (Reply(200, b"[" + b" " * (9 << 20) + b"]"), {}, ["more than", "8388608 bytes"]),
        (says("late", delay=30), {"timeout": 1}, ["not answer", "1 s"]),
        (says("drop by drop", drip=0.1), {"timeout": 1}, ["not answer", "1 s"]),
    ],
)  # fmt: skip
def test_a_teacher_that_never_answers_ends_the_distillation(
    store: Store, reply: Reply, fields: dict[str, Any], problem: list[str]
) -> None:
    error, server = failure(store, lambda p, n: reply, 60, concurrency=8, **fields)
    assert (error.reason, error.retriable) == (Reason.TEACHER_UNAVAILABLE, True)
    assert_says(error.message, f"{server.url}:", "24", "requests failed", "the teacher", *problem)
    assert len(server.received) <= 24 + 8


def test_nobody_listens(store: Store) -> None:
    with closed_port() as port, pytest.raises(StageError) as error:
        run(store, prompts(60), config(url := f"http://127.0.0.1:{port}/v1"))
    assert error.value.reason is Reason.TEACHER_UNAVAILABLE
    assert_says(error.value.message, f"{url}:", "24", "requests failed", "name", "connection", "TLS")


def test_a_few_prompts_that_fail_all_are_told_with_their_places(store: Store) -> None:
    error, server = failure(store, lambda p, n: fails(500), 2)
    places = [part for line in (1, 2) for part in (f"{SOURCE} line {line}, answer:", "the teacher answered", "500")]
    assert_says(error.message, f"{server.url}:", "none", "2", *places)


def test_a_few_prompts_that_are_all_refused_are_not_tried_by_another_pod(store: Store) -> None:
    refusal = fails(400, code="unsupported_value", param="temperature")
    error, server = failure(store, lambda p, n: refusal, 2)
    assert (error.reason, error.retriable) == (Reason.TEACHER_REFUSED, False)
    assert_says(error.message, f"{server.url}:", "none", "2", "400 (unsupported_value)", "parameter temperature")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (fails(401), ["API key", "(401)"]),
        (fails(402), ["payment", "(402)"]),
        (fails(403), ["API key", "model", "(403)"]),
        (fails(404), ["model", "URL", "OpenAI-compatible API", "(404)"]),
        (fails(429, code="insufficient_quota"), ["credit", "(429 insufficient_quota)"]),
    ],
)
def test_what_no_other_request_could_change_ends_at_once(store: Store, reply: Reply, problem: list[str]) -> None:
    error, server = failure(store, lambda p, n: reply, 20, concurrency=1)
    assert (error.reason, error.retriable) == (Reason.TEACHER_REFUSED, False)
    assert_says(error.message, f"{server.url}:", "the teacher", *problem, "model 'teacher-1'")
    assert len(server.received) == 1


def test_a_prompt_that_is_refused_is_left_out_and_not_asked_again(store: Store) -> None:
    def behaviour(prompt: str, nth: int) -> Reply:
        return fails(400, code="context_length_exceeded") if prompt == "question 2" else echo(prompt, nth)

    outcome, server = distilled(store, behaviour)
    assert len(server.received) == 5
    assert [(fault.line, fault.field, fault.kind) for fault in outcome.faults] == [(3, "answer", "teacherRefused")]
    assert outcome.answers == [f"answer to question {n}" for n in (0, 1, 3, 4)]
    told = outcome.result.faults.sentences()
    assert_says(told, f"{SOURCE} line 3, answer:", "the teacher", "request", "400 (context_length_exceeded)")


def test_a_teacher_with_the_newer_name_of_the_limit(store: Store) -> None:
    """OpenAI's o and GPT-5 models refuse max_tokens, many other servers know nothing else."""

    def newer(prompt: str, nth: int) -> Reply:
        if "max_tokens" in server.received[-1].body:
            return fails(400, code="unsupported_parameter", param="max_tokens")
        return echo(prompt, nth)

    with TeacherServer.running(newer) as server:
        outcome = run(store, prompts(6), config(server.url, concurrency=1, max_answer_tokens=99))
    assert outcome.result.examples == 6
    assert len(server.received) == 7
    assert server.received[-1].body["max_completion_tokens"] == 99


def test_parameters_that_the_teacher_never_takes_end_the_distillation(store: Store) -> None:
    refusal = fails(400, code="unsupported_value", param="temperature", message="'temperature': only 1, Eve")
    error, server = failure(store, lambda p, n: refusal, 60)
    assert error.reason is Reason.TEACHER_REFUSED
    parts = ("requests failed", "the teacher", "request", "400 (unsupported_value)", "parameter temperature")
    assert_says(error.message, f"{server.url}:", "24", *parts)
    assert "Eve" not in error.message


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
    figures = ("5 of 5 answers", "0.00 USD", "1", "Dropped", "empty 1, refusal 1, tooLong 1, truncated 1")
    assert_says(outcome.result.message(), *figures)


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
    assert_says(result.message(), "9 of 30 answers", "4.50 USD", "9", "21", "maxCost")


def test_a_budget_counts_what_earlier_runs_have_spent(store: Store) -> None:
    prices = {"usdPerMillionOutputTokens": "10000"}
    fields: dict[str, Any] = {"prices": prices, "max_answer_tokens": 100}
    with TeacherServer.running(lambda p, n: says("x", usage=(12, 50))) as server:
        asked = [
            run(store, prompts(30), config(server.url, max_cost=limit, **fields)).result.answered
            for limit in ("2", "2", "3.2", None)
        ]
    assert asked == [3, 0, 2, 25]


def test_a_budget_for_not_even_one_answer(store: Store) -> None:
    prices = {"usdPerMillionOutputTokens": "10000"}
    error, server = failure(store, echo, prices=prices, max_cost="0.5", max_answer_tokens=100)
    assert (error.reason, server.received) == (Reason.BUDGET_EXCEEDED, [])
    parts = ("spec.dataset.distillation.maxCost", "0.5 USD", "0.000000", "one answer", "100 tokens")
    assert_says(error.message, *parts)


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
    monkeypatch.setattr("finetune_jobs.chat_api.answer_collector._MINUTE", 1.0)
    error, server = failure(store, lambda p, n: says("slow", delay=0.3), 60, deadline_minutes=1, concurrency=1)
    assert error.reason is Reason.DEADLINE_EXCEEDED
    asked = len(server.received)
    parts = ("spec.dataset.distillation.deadlineMinutes (1)", f"{asked} of 60 prompts", "answers", "saved")
    assert_says(error.message, *parts)
