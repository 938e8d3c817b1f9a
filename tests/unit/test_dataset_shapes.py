"""The forms of rows, and what is said about a row that has none of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.dataset import Columns, Task, TaskType
from finetune_jobs.examples.shapes import Shaped, fill, shape
from finetune_jobs.examples.validation import Example, Rules
from finetune_jobs.reading.rows import Fault, Row
from tests.support.sentences import Saying, assert_says

pytestmark = pytest.mark.unit

TWO = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "balance", "arguments": {"account": 7}}}
TOOL: list[dict[str, Any]] = [
    {"role": "user", "content": "How much?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12", "tool_call_id": "1"},
    {"role": "assistant", "content": "12 euros."},
]


def calling(arguments: Any) -> list[dict[str, Any]]:
    """A conversation that calls a tool with these arguments."""
    call = {**CALL, "function": {"name": "balance", "arguments": arguments}}
    return [TOOL[0], {**TOOL[1], "tool_calls": [call]}, *TOOL[2:]]


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in pairs]


@pytest.mark.parametrize(
    ("fields", "columns", "expected"),
    [
        ({"messages": TWO}, None, TWO),
        ({"prompt": " q ", "completion": "a"}, None, TWO),
        ({"instruction": "q", "output": "a", "input": ""}, None, TWO),
        ({"instruction": "Sum up.", "input": "Text.", "output": "a"}, None, [("user", "Sum up.\n\nText."), TWO[1]]),
        ({"conversations": turns(("human", "q"), ("gpt", "a"))}, None, TWO),
        (
            {
                "conversations": turns(
                    ("bot", "Hello!"), ("user", "q"), ("user", "again"), ("bot", "a"), ("user", "bye")
                )
            },
            None,
            [("user", "q\nagain"), TWO[1]],
        ),
        ({"text": "q", "label": "a", "more": 1}, Columns(input="text", label="label"), TWO),
        ({"text": "q", "label": 3.5}, Columns(input="text", label="label"), [TWO[0], ("assistant", "3.5")]),
        (
            {"text": "{label}", "amount": 12, "label": "a"},
            Columns(template="{text} of {amount} {}", label="label"),
            [("user", "{label} of 12 {}"), TWO[1]],
        ),
    ],
)
def test_every_form_becomes_chat(fields: dict[str, Any], columns: Columns | None, expected: list[Any]) -> None:
    wanted = [{"role": m[0], "content": m[1]} if isinstance(m, tuple) else m for m in expected]
    assert shape(Row(1, fields), columns) == Shaped(wanted)


CODE = "    return a\n\n    # done"


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"messages": [TWO[0], {"role": "assistant", "content": f" \n{CODE} \n"}]}, None),
        ({"prompt": "  q", "completion": CODE}, None),
        ({"instruction": "\tq", "output": f"\r\n\n{CODE}\n"}, None),
        ({"conversations": turns(("human", " q"), ("gpt", CODE))}, None),
        ({"text": " q ", "label": CODE}, Columns(input="text", label="label")),
    ],
)
def test_an_answer_keeps_the_indentation_of_its_first_line(fields: dict[str, Any], columns: Columns | None) -> None:
    assert shape(Row(1, fields), columns) == Shaped([TWO[0], {"role": "assistant", "content": CODE}])


@pytest.mark.parametrize(("task", "answer"), [(TaskType.CLASSIFICATION, " a"), (TaskType.EXTRACTION, ' {"a": 1}')])
def test_a_label_and_a_record_are_not_indented(task: TaskType, answer: str) -> None:
    made = Rules(Columns(input="text", label="label"), Task(type=task)).example(Row(1, {"text": "q", "label": answer}))
    assert isinstance(made, Example)
    assert made.label == answer[1:]


def test_tool_calls_stay_with_their_arguments_as_objects() -> None:
    as_text = {**CALL, "function": {"name": "balance", "arguments": '{"account": 7}'}}
    messages = [TOOL[0], {"role": "assistant", "content": None, "tool_calls": [as_text]}, *TOOL[2:]]
    tools = [{"type": "function", "function": {"name": "balance"}}]
    assert shape(Row(1, {"messages": messages, "tools": tools}), None) == Shaped(TOOL, tools)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" so\n", {"reasoning_content": "so"}),
        ("", {}),
        (" \n", {}),
        (None, {}),
        ("e\u0301", {"reasoning_content": "\u00e9"}),
    ],
)
def test_thoughts_stay_before_the_answer(given: Any, kept: dict[str, str]) -> None:
    messages = [TWO[0], TWO[1] | {"reasoning_content": given}]
    assert shape(Row(1, {"messages": messages}), None) == Shaped([TWO[0], TWO[1] | kept])


def test_prompts_differ_by_the_thoughts_in_them() -> None:
    more = [{"role": "user", "content": "and?"}, TWO[1]]
    thinking = [TWO[0], TWO[1] | {"reasoning_content": "so"}]
    assert Example([*TWO, *more]).identity != Example([*thinking, *more]).identity
    assert Example(TWO).identity == Example(thinking).identity  # those before the answer are no part of the prompt
    assert Example(thinking).said == "q\nso\na"


def test_a_template_names_its_columns_and_never_fills_what_a_value_says() -> None:
    columns = Columns(template="{a} {b} {a}", label="a")
    assert columns.names == ["a", "b"]
    assert fill("{a}{b}", {"a": "{b}", "b": "{a}"}) == "{b}{a}"
    with pytest.raises(ValidationError, match="exactly one of input and template"):
        Columns(input="a", template="{a}", label="b")


def test_conversations_differ_by_what_was_called_and_what_may_be() -> None:
    other = [TOOL[0], {**TOOL[1], "tool_calls": [{**CALL, "id": "2"}]}, *TOOL[2:]]
    identities = {Example(TOOL).identity, Example(other).identity, Example(TOOL, [{"type": "function"}]).identity}
    assert len(identities) == 3
    assert Example(TOOL[:2]).label == (
        '[{"function":{"arguments":{"account":7},"name":"balance"},"id":"1","type":"function"}]'
    )


def test_an_extraction_needs_json() -> None:
    rules = Rules(task=Task(type=TaskType.EXTRACTION))
    fault = rules.example(Row(2, {"prompt": "q", "completion": "{"}))
    assert isinstance(fault, Fault)
    assert (fault.field, fault.kind) == ("messages", "answerNotJson")
    assert isinstance(rules.example(Row(2, {"prompt": "q", "completion": '{"a": 1}'})), Example)
    no_number = rules.example(Row(2, {"prompt": "q", "completion": '{"a": NaN}'}))
    assert isinstance(no_number, Fault)
    assert_says(no_number.problem, "JSON", "NaN", "spec.task.type Extraction")


def test_a_group_is_taken_from_its_column() -> None:
    rules = Rules(Columns(input="text", label="label"), group_by="ticket")
    found = rules.example(Row(1, {"text": "q", "label": "a", "ticket": 12}))
    assert isinstance(found, Example)
    assert found.group == "12"


@pytest.mark.parametrize("same", [12, 12.0, "12", " 12", "12\t", "\n12\u00a0"])
def test_a_group_is_the_same_however_a_table_writes_it(same: Any) -> None:
    rules = Rules(Columns(input="text", label="label"), group_by="ticket")
    found = rules.example(Row(1, {"text": "q", "label": "a", "ticket": same}))
    assert isinstance(found, Example)
    assert found.group == "12"


def test_a_group_is_the_same_in_both_forms_of_unicode() -> None:
    rules = Rules(Columns(input="text", label="label"), group_by="who")
    both = [rules.example(Row(1, {"text": "q", "label": "a", "who": who})) for who in ("M\u00fcller", "Mu\u0308ller")]
    assert [each.group for each in both if isinstance(each, Example)] == ["M\u00fcller"] * 2


@pytest.mark.parametrize("blank", [None, "", " ", "\n\n"])
def test_what_says_nothing_beside_a_call_or_an_instruction_may_be_missing(blank: str | None) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": blank, "tool_calls": [call]}]
    found = shape(Row(1, {"messages": messages}), None)
    assert isinstance(found, Shaped)
    assert found.messages[1]["content"] == ""
    found = shape(Row(1, {"instruction": "q", "input": blank, "output": "a"}), None)
    assert isinstance(found, Shaped)
    assert found.messages[0]["content"] == "q"


@pytest.mark.parametrize("columns", [None, Columns(input="text", label="label")])
def test_the_keys_of_a_row_are_shown_without_personal_data(columns: Columns | None) -> None:
    found = shape(Row(1, {"jane@example.com": 1, "other": 2}), columns)
    assert isinstance(found, Fault)
    assert_says(found.problem, "missing", "'****************', 'other'")


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ({}, "missingGroup"),
        ({"ticket": float("nan")}, "missingGroup"),
        ({"ticket": [1]}, "notText"),
        ({"ticket": "\ud800"}, "loneSurrogate"),
    ],
)
def test_a_row_of_no_group_is_a_fault(group: dict[str, Any], kind: str) -> None:
    rules = Rules(Columns(input="text", label="label"), group_by="ticket")
    found = rules.example(Row(1, {"text": "q", "label": "a"} | group))
    assert isinstance(found, Fault)
    assert (found.field, found.kind) == ("ticket", kind)


@pytest.mark.parametrize(("label", "shown"), [(float("nan"), "NaN"), (float("-inf"), "-Infinity")])
def test_a_number_that_stands_for_a_missing_label_is_none(label: float, shown: str) -> None:
    found = shape(Row(3, {"text": "q", "label": label}), Columns(input="text", label="label"))
    assert found == Fault(3, "label", "notText", Saying(shown, "text", "finite number"))


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=3), st.dates()),
    st.text(st.characters(), max_size=5) | st.just("half \ud800 of one"),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@pytest.mark.slow
@given(VALUES, VALUES, VALUES, VALUES, VALUES)
def test_what_a_row_gives_can_be_written_as_json(name: Any, arguments: Any, key: Any, tools: Any, group: Any) -> None:
    messages = calling(arguments)
    messages[0] = {**messages[0], "name": name}
    messages[2] = {**messages[2], "tool_call_id": key}
    rules = Rules(task=Task(type=TaskType.TEXT), group_by="group")
    for row in ({"messages": messages, "tools": [tools], "group": group}, {"messages": calling(arguments), "group": 1}):
        found = rules.example(Row(1, row))
        if isinstance(found, Example):
            json.dumps([found.messages, found.tools], ensure_ascii=False, allow_nan=False).encode()
            assert found.identity
            assert found.group.encode()
