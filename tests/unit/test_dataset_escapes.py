"""Texts with JSON's escapes: what they say is searched and cleaned, and JSON stays JSON."""

import json
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_api.dataset import Cleaning, Markup, Pii, Task, TaskType
from finetune_jobs.examples.validation import Example, shown
from finetune_jobs.reading.rows import Row
from finetune_jobs.text.escapes import finding_in_escaped, is_document, map_strings, unescaped
from finetune_jobs.text.pii import Finding
from tests.support.cost import assert_grows_with_the_size_only
from tests.support.personal_texts import DEFAULTS
from tests.support.preparing import intake_of, params_of

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("own_environment")]  # what recognises IBANs imports torch

PRIVATE: Final = (
    "jane@example.com",
    "+49 30 12345678",
    "4111 1111 1111 1111",
    "DE89370400440532013000",
    "10.20.30.40",
    "AKIAIOSFODNN7EXAMPLQ",
    "ghp_" + "a1B2" * 9,
    "j\u00fcrgen@example.com",
    "https://example.com/a?b",
)
RECORDS: Final = params_of(task=Task(type=TaskType.EXTRACTION))


def taken(prompt: str, answer: str, **fields: Any) -> Example:
    """What prepare makes of a prompt and a record."""
    params = params_of(task=Task(type=TaskType.EXTRACTION), **fields) if fields else RECORDS
    found = intake_of(params).take(Row(1, {"prompt": prompt, "completion": answer}))
    assert isinstance(found, Example), found
    return found


def slashed(text: str) -> str:
    """JSON as PHP writes it."""
    return json.dumps(text).replace("/", "\\/")


@pytest.mark.parametrize("value", PRIVATE)
@pytest.mark.parametrize("before", ["Main Street 1\n", "a\tb\t", 'say "', "", "caf\u00e9 \U0001f600\r\n"])
def test_a_record_hides_nothing_behind_an_escape(before: str, value: str) -> None:
    text = f"{before}{value}\n"
    for written in (json.dumps(text), json.dumps(text, ensure_ascii=False), slashed(text)):
        found = taken(f"What do they write? {value} is it.", f'{{"text": {written}, "more": 1}}')
        prompt, answer = (message["content"] for message in found.messages)
        said = json.loads(answer)["text"]
        assert value not in said
        name = prompt.removeprefix("What do they write? ").removesuffix(" is it.")
        assert name.endswith("_1>")
        assert said == f"{before}{name}\n"
        assert name in answer


def test_json_in_what_a_tool_answers_is_searched_at_any_depth() -> None:
    inner = json.dumps({"note": "Call\n+49 30 12345678 or\njane@example.com"})
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"raw": inner}}}]},
        {"role": "tool", "content": json.dumps({"body": inner})},
        {"role": "assistant", "content": "Seen."},
    ]
    found = intake_of(params_of()).take(Row(1, {"messages": messages}))
    assert isinstance(found, Example)
    masked = {"note": "Call\n<PHONE_NUMBER_1> or\n<EMAIL_ADDRESS_1>"}
    assert json.loads(json.loads(found.messages[2]["content"])["body"]) == masked
    assert json.loads(found.messages[1]["tool_calls"][0]["function"]["arguments"]["raw"]) == masked


def test_a_secret_in_quotes_leaves_a_record_whole() -> None:
    secret = "9fK2mQ7xLp4Rt8Zw3Vb6"
    answer = json.dumps({"line": f'api_key: "{secret}" is set', "url": f"https://bob:{secret}@example.com"})
    found = json.loads(taken("q", answer).messages[-1]["content"])
    assert found["line"] == 'api_key: "<SECRET_1>" is set'
    assert secret not in found["url"]


def test_a_text_that_is_no_json_is_searched_both_ways() -> None:
    found = finding_in_escaped(DEFAULTS.find)
    text = r"C:\new\table mail\nick@example.com, then\n+49 30 12345678"
    assert [(text[f.start : f.end], f.entity) for f in found(text, "")] == [
        ("ick@example.com", "EMAIL_ADDRESS"),
        ("+49 30 12345678", "PHONE_NUMBER"),
    ]
    only_as_written = finding_in_escaped(lambda text, _: [Finding(0, 2, "NAME")] if text.startswith("\\") else [])
    assert only_as_written(r"\times", "") == [Finding(0, 2, "NAME", 0.0)]


def test_messages_show_no_value_behind_an_escape() -> None:
    assert "12345678" not in shown(r'{"a": "x\n+49 30 12345678"')


def test_escapes_are_read_as_json_reads_them() -> None:
    text = 'a"/\b\f\n\r\t\u00e9\u2028\U0001f600z'
    assert unescaped(json.dumps(text)[1:-1]) == unescaped(slashed(text)[1:-1]) == text
    assert unescaped(r"\ud83d \ude00 \d \\") == "\ufffd \ufffd \\d \\\\"


PIECES: Final = [
    *PRIVATE,
    "\n",
    '"',
    "\\",
    "\\n",
    " ",
    "n",
    "\u00fc",
    "\U0001f600",
    "\ud83d",
    "\u2028",
    "api_key: ",
    "/",
]


@pytest.mark.slow
@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.booleans(), st.integers(0, 2))
@example('jane@example.com"', True, 1)
@example("\ud83djane@example.com", False, 0)
def test_what_is_masked_in_json_leaves_json(text: str, plain: bool, depth: int) -> None:
    document = json.dumps({"a": text, "b": [1, "x"]}, ensure_ascii=not plain or "\ud83d" in text)
    for _ in range(depth):
        document = json.dumps([document])
    found = intake_of(RECORDS).take(Row(1, {"prompt": "q", "completion": document}))
    assert isinstance(found, Example)
    assert is_document(found.messages[-1]["content"])


@pytest.mark.parametrize(
    ("answer", "markup", "clean"),
    [
        ('{"a": "one\u2028two", "b": 1}', Markup.KEEP, '{"a": "one\\ntwo", "b": 1}'),
        ('{"a": "one\u0085two\u00a0\u00fc"}', Markup.KEEP, '{"a": "one\\ntwo \u00fc"}'),
        ('{"a":  "one<br>two"}', Markup.STRIP, '{"a":  "one\\ntwo"}'),
        ('{"a": "the &quot;best&quot; one"}', Markup.STRIP, '{"a": "the \\"best\\" one"}'),
        ('["<p>\\u00fc &amp; \\u2028</p>", "\\ud83d"]', Markup.STRIP, '["\\u00fc &", "\\ud83d"]'),
        ('{"a": "b\u00a0c"}', Markup.KEEP, '{"a": "b c"}'),
        ('{"a": "\\u2028"}', Markup.KEEP, '{"a": "\\u2028"}'),
    ],
)
def test_a_record_is_still_json_when_it_is_cleaned(answer: str, markup: Markup, clean: str) -> None:
    assert taken("q", answer, cleaning=Cleaning(markup=markup)).messages[-1]["content"] == clean


def test_half_a_surrogate_pair_in_a_changed_string_stays_an_escape() -> None:
    assert map_strings('{"\u00fc": "x\\ud83d"}', str.upper) == '{"\u00dc": "X\\ud83d"}'


@pytest.mark.parametrize("text", ["{", "[1,", "plain", '{"a": NaN}', "1"])
def test_what_is_no_document(text: str) -> None:
    assert not is_document(text)


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["\\", '\\"', "\\n1", "\\u00fc", '"\\\\",'])
def test_cost_grows_with_the_length_only(piece: str) -> None:
    def search_and_map(size: int) -> None:
        text = piece * (size // len(piece))
        for each in (json.dumps([text]), text):
            finding_in_escaped(lambda _text, _before: [])(each, "")
        map_strings(json.dumps([text]), str.upper)

    assert_grows_with_the_size_only(search_and_map, 25_000)


def test_what_is_not_looked_for_stays() -> None:
    answer = json.dumps({"a": "x\n+49 30 12345678"})
    assert taken("q", answer, pii=Pii(entities=["EMAIL_ADDRESS"])).messages[-1]["content"] == answer
