"""Distillation without a server: the spec, prompts, money, what may come back, what an answer must be."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.crdgen import structural
from finetune_api.dataset import Task, TaskType
from finetune_api.distillation import Distillation, TeacherPrices
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.chat_api.answers import AttemptError, ModelAnswer, read_answer
from finetune_jobs.chat_api.chat_model import retry_after
from finetune_jobs.chat_api.money import Budget, Tokens, estimate_tokens
from finetune_jobs.distillation.filters import AnswerRules, is_refusal
from finetune_jobs.distillation.prompts import Prompt, questions, read_prompts, terms_of
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.validation import Dropped, Faults
from finetune_jobs.reading.rows import Fault, Row
from tests.support.distilling import SOURCE, config, echo, prompts
from tests.support.fast import share
from tests.support.sentences import Saying, assert_says
from tests.support.teacher_server import TeacherServer, says

pytestmark = pytest.mark.unit


# The spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_cost": "5"}, "maxCost needs prices"),
        ({"max_cost": "0"}, "maxCost must be above 0"),
        ({"samples_per_prompt": 2, "temperature": "0.0"}, "samplesPerPrompt above 1 needs a temperature above 0"),
        ({"temperature": "2.1"}, "temperature must be 2 or less"),
        ({"min_answer_words": 5, "max_answer_words": 4}, "minAnswerWords must not exceed maxAnswerWords"),
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


def test_the_models_fit_a_crd() -> None:
    schema = structural(Distillation)
    messages = [rule["message"] for rule in schema["x-kubernetes-validations"]]
    assert len(messages) == 5
    assert schema["properties"]["teacher"]["required"] == ["url", "model"]


# Prompts


def read(rows: list[Row | Fault], group_by: str = "", **fields: Any) -> tuple[list[Prompt], Faults]:
    ledger = Ledger()
    return list(read_prompts(SOURCE, rows, config(**fields), ledger, group_by=group_by)), ledger.faults


def test_prompts_come_from_a_column_or_from_documents() -> None:
    assert read([Row(1, {"prompt": " Why? ", "other": 1})])[0] == [Prompt("Why?", SOURCE, 1)]
    assert read([Row(2, {"question": "Why?"})], column="question")[0] == [Prompt("Why?", SOURCE, 2)]
    kept = read([Row(2, {"prompt": "Why?", "customer": 7, "other": 8})], "customer")[0]
    assert kept == [Prompt("Why?", SOURCE, 2, {"customer": 7})]
    template = 'Summarise as {"summary": "…"}:\n{document}\n{document}'
    made, _ = read([Row(3, {"document": "A {document} of {x}"})], question_template=template)
    assert [p.text for p in made] == ['Summarise as {"summary": "…"}:\nA {document} of {x}\nA {document} of {x}']


def test_a_row_without_a_prompt_is_a_fault_and_the_reading_goes_on() -> None:
    rows = [Row(1, {"promt": "x"}), Row(2, {"prompt": " "}), Row(3, {"prompt": "a\0b"}), Row(4, {"prompt": 7})]
    made, faults = read([*rows, Fault(5, "", "malformedJson", "is not JSON"), Row(6, {"prompt": "fine"})])
    assert [p.text for p in made] == ["fine"]
    assert faults.kinds == {"missingColumn": 1, "empty": 1, "nulByte": 1, "notText": 1, "malformedJson": 1}
    places = (f"{SOURCE} line 1, prompt:", "'promt'", "Did you mean 'promt'?", f"{SOURCE} line 2")
    assert_says(faults.sentences(), *places)


def test_what_must_not_leave_is_taken_out_before_the_teacher_sees_it() -> None:
    def clean(text: str) -> str | Dropped:
        return Dropped("secret") if "secret" in text else text.replace("Eve", "<PERSON_1>").strip("-")

    rows, ledger = [Row(n, {"document": text}) for n, text in enumerate(["Eve asks", "a secret", "---"])], Ledger()
    spec = config(question_template="What does Eve want? {document}")
    made = list(read_prompts(SOURCE, rows, spec, ledger, clean=clean))
    assert [prompt.text for prompt in made] == ["What does Eve want? <PERSON_1> asks"]
    assert (ledger.read, dict(ledger.dropped), dict(ledger.faults.kinds)) == (3, {"secret": 1}, {"empty": 1})
    assert_says(ledger.faults.sentences(), f"{SOURCE} line 2, document:", "empty", "cleaning")


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"instruction": "Be brief."}, False),
        ({"temperature": "0.5"}, False),
        ({"max_answer_tokens": 99}, False),
        ({"concurrency": 1, "requests_per_minute": 9, "timeout": 1, "deadline_minutes": 1}, True),
        ({"max_cost": "1", "prices": {"usdPerMillionInputTokens": "1"}}, True),
        ({"min_answer_words": 3, "duplicates": "Drop", "refusals": "Keep", "answer_schema": "{}"}, True),
    ],
)
def test_answers_are_used_again_unless_something_that_shapes_them_changes(fields: dict[str, Any], same: bool) -> None:
    assert (terms_of(config(**fields)).recipe == terms_of(config()).recipe) is same


def test_each_sample_of_a_prompt_is_a_question_of_its_own() -> None:
    spec = config(samples_per_prompt=3)
    asked = [q for prompt in prompts(2) for q in questions(prompt, spec, terms_of(spec).recipe)]
    assert len({q.identity for q in asked}) == 6


# Money


def test_cost_is_tokens_times_price() -> None:
    prices = TeacherPrices(usd_per_million_input_tokens="0.15", usd_per_million_output_tokens="6e-1")
    assert Tokens(1_000_000, 500_000).cost(prices) == Decimal("0.45")


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("four", 1), ("seven77", 2), ("日本語", 3)])
def test_tokens_are_estimated_from_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@settings(deadline=None, max_examples=share(60))
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
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(workers))), 60)

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
        (says("yes", usage=(3, 2)).body, ModelAnswer("yes", "stop", Tokens(3, 2))),
        (says("long", finish="length").body, ModelAnswer("long", "length", Tokens(10, 5))),
        (says(None, finish="content_filter").body, ModelAnswer("", "content_filter", Tokens(10, 5))),
        (says(None, refusal="No.").body, ModelAnswer("No.", "refusal", Tokens(10, 5))),
        (says("eight by", usage=None).body, ModelAnswer("eight by", "stop", Tokens(7, 2, 9))),
        (
            says("x", usage={"prompt_tokens": -1, "completion_tokens": 1}).body,
            ModelAnswer("x", "stop", Tokens(7, 1, 8)),
        ),
        (says("x", usage="none").body, ModelAnswer("x", "stop", Tokens(7, 1, 8))),
        (b'{"choices": [{"message": {"content": "bare"}}]}', ModelAnswer("bare", "stop", Tokens(7, 1, 8))),
    ],
)
def test_answers(content: bytes, answer: ModelAnswer) -> None:
    assert read_answer(content, ESTIMATE) == answer


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>Bad gateway</html>", ["not JSON"]),
        (b"", ["not JSON"]),
        (b'{"choices": ', ["not JSON"]),
        (b"\xff\xfe", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[]", ["JSON", "choices[0]"]),
        (b'{"error": "busy"}', ["JSON", "choices[0]"]),
        (body(choices=[]), ["JSON", "choices[0]"]),
        (body(choices=[{"text": "old API"}]), ["JSON", "choices[0].message"]),
        (body(choices=[{"message": {"content": 7}}]), ["JSON", "text", "choices[0].message.content"]),
        (says("\ud800").body, ["surrogate"]),
        (
            body(choices=[{"message": {"content": "a"}, "finish_reason": "\ud800"}]),
            ["surrogate"],
        ),
    ],
)
def test_rubbish_is_told_apart_and_never_quoted(content: bytes, problem: list[str]) -> None:
    with pytest.raises(AttemptError) as error:
        read_answer(content, ESTIMATE)
    assert (error.value.kind, error.value.charged) == ("teacherRubbish", True)
    assert_says(str(error.value), *problem)
    assert not any(word in str(error.value) for word in ("html", "gateway", "busy", "old API"))


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
    lambda value: json.dumps({"choices": value}).encode()
))  # fmt: skip
def test_no_body_is_a_surprise(content: bytes) -> None:
    with suppress(AttemptError):
        assert isinstance(read_answer(content, ESTIMATE), ModelAnswer)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:16:45 GMT"}, 5.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:26:45 GMT", "date": "Thu, 01 Jan 1970 00:26:35 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:16:45 GMT", "date": "now"}, 5.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 99999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1000.0) == seconds


# Filters

ANY = Task(type=TaskType.TEXT)
RECORDS = Task(type=TaskType.EXTRACTION)
OBJECT = '{"type": "object", "required": ["code"], "properties": {"code": {"type": "integer"}}}'


def judge(text: str, finish: str = "stop", task: Task = ANY, **fields: Any) -> str:
    """The text that stays, or the fault's kind and problem."""
    rules = AnswerRules(config(**fields), task=task)
    verdict = rules.judge(ModelAnswer(text, finish, Tokens()), Prompt("why?", SOURCE, 3))
    if isinstance(verdict, str):
        return verdict
    assert (verdict.line, verdict.field, verdict.value) == (3, "answer", "")
    return f"{verdict.kind}: {verdict.problem}"


@pytest.mark.parametrize(
    ("text", "fields", "verdict"),
    [
        ("  Use v2.\n", {}, "Use v2."),
        (" \n", {}, Saying("empty:", "empty")),
        ("a\0b", {}, Saying("nulByte:", "NUL byte", "character 2")),
        ("cut", {"finish": "length", "max_answer_tokens": 64}, Saying("truncated:", "64 tokens")),
        ("", {"finish": "content_filter"}, Saying("contentFilter:", "content filter")),
        ("Never.", {"finish": "refusal", "refusals": "Keep"}, Saying("refusal:", "refusal")),
        ("I'm sorry, but I can't help with that.", {}, Saying("refusal:", "refusal")),
        ("I'm sorry, but I can't help with that.", {"refusals": "Keep"}, "I'm sorry, but I can't help with that."),
        ("one two", {"min_answer_words": 3}, Saying("tooShort:", "2 words", "minAnswerWords", "3")),
        ("one two three", {"max_answer_words": 2}, Saying("tooLong:", "3 words", "maxAnswerWords", "2")),
        ('{"code": 7}', {"answer_schema": OBJECT}, '{"code": 7}'),
        ('```json\n{"code": 7}\n```', {"answer_schema": OBJECT}, '{"code": 7}'),
        ('```json\n{"code": 7}\n```', {}, '```json\n{"code": 7}\n```'),
        ("It is 7.", {"answer_schema": OBJECT}, Saying("answerNotJson:", "JSON", "answerSchema")),
        ("[" * 100_000, {"answer_schema": OBJECT}, Saying("answerNotJson:", "JSON", "answerSchema")),
        ('{"code": 7, "rate": NaN}', {"answer_schema": OBJECT}, Saying("answerNotJson:", "JSON", "answerSchema")),
        ('{"code": "x@example.com"}', {"answer_schema": OBJECT},
         Saying("answerSchema:", "answerSchema: properties/code/type")),
        ("{}", {"answer_schema": OBJECT}, Saying("answerSchema:", "answerSchema: required")),
        ('```json\n{"code": 7}\n```', {"task": RECORDS}, '{"code": 7}'),
        ("It is 7.", {"task": RECORDS}, Saying("answerNotJson:", "JSON", "spec.task.type Extraction")),
        (" refund\n", {"task": Task(labels=["refund"])}, "refund"),
        ("Refund.", {"task": Task(labels=["refund"])}, Saying("unknownLabel:", "spec.task.labels")),
        ("Refund.", {"task": Task()}, "Refund."),
        ('``` \n\n{"code": 7}```', {"answer_schema": OBJECT}, '{"code": 7}'),
        ("```json" + "\n" * 20_000 + "x", {"answer_schema": OBJECT},
         Saying("answerNotJson:", "JSON", "answerSchema")),
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
    ("schema", "problem"),
    [
        ("{", ["JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"]),
        ('{"type": "strin"}', ["JSON Schema", "$.type: 'strin' is not valid under any of the given schemas"]),
    ],
)
def test_a_schema_that_is_none(schema: str, problem: list[str]) -> None:
    with pytest.raises(StageError) as error:
        AnswerRules(config(answer_schema=schema))
    assert error.value.reason is Reason.SPEC_INVALID
    assert_says(error.value.message, "spec.dataset.distillation.answerSchema", *problem)


@pytest.mark.slow
def test_a_schema_never_loads_another() -> None:
    with TeacherServer.running(echo) as server, pytest.raises(StageError) as error:
        judge("{}", answer_schema=json.dumps({"$ref": f"{server.url}/schema.json"}))
    assert_says(error.value.message, "spec.dataset.distillation.answerSchema", f"'{server.url}/schema.json'")


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
    judged = [rules.judge(ModelAnswer(t, "stop", Tokens()), Prompt(p, SOURCE, 1)) for p, t in given_answers]
    assert [each for each in judged if isinstance(each, str)] == kept
    told = {each.kind: each.problem for each in judged if isinstance(each, Fault)}
    equal = {"repeatedAnswer": Saying("duplicates", "earlier answer")}
    near_one = {"nearlyRepeatedAnswer": Saying("nearly", "earlier answer")}
    assert told == {"Keep": {}, "WithinPrompt": equal}.get(mode, equal | near_one)
