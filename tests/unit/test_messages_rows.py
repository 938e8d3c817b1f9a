"""What a user is told about a row: every error that one may have, with file, line, field, what is wrong and the value.

A table of rows with the parts of their messages; no sentence in the code that reads rows is without a row.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.dataset import Cleaning, Columns, Markup, Task, TaskType
from finetune_api.distillation import Distillation, TeacherRef
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.distillation.prompts import read_prompts
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.reading.rows import Fault, Row
from tests.support.preparing import Reader, intake_of, params_of
from tests.support.sentences import assert_says, unsaid
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

Fields = dict[str, Any]

QUESTION: Final = {"role": "user", "content": "q"}
ANSWER: Final = {"role": "assistant", "content": "a"}
CALL: Final = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
MAPPED: Final = {"columns": Columns(input="text", label="label")}
CLASSES: Final = MAPPED | {"task": Task(labels=["refund", "question"])}
RECORDS: Final = MAPPED | {"task": Task(type=TaskType.EXTRACTION)}
GROUPED: Final = MAPPED | {"group_by": "ticket"}
ALTERNATE: Final = ("messages", "alternate", "user", "assistant", "tool messages", "tool_calls")
FIX_ROWS: Final = ("Fix", "spec.dataset.maxInvalidPercent")
NESTED: Final = json.loads('{"inner": ' * 63 + "{}" + "}" * 63)
"""64 levels deep."""


def chat(*messages: Any, **more: Any) -> Fields:
    """A row of messages."""
    return {"messages": list(messages)} | more


def calling(**call: Any) -> Fields:
    """A row whose assistant calls a tool."""
    return chat(QUESTION, {"role": "assistant", "tool_calls": [call]})


def dialogue(who: str, what: str = "q") -> Fields:
    """A row of one turn of a raw dialogue."""
    return {"conversations": [{"from": who, "value": what}]}


def pair(text: Any = "q", label: Any = "a", **more: Any) -> Fields:
    """A row of mapped columns."""
    return {"text": text, "label": label} | more


WRONG: Final[list[tuple[str, Fields, Fields, tuple[str, ...]]]] = [
    # Columns
    ("missingColumn", MAPPED, {"text": "q", "lable": "a"}, ("label", "'text', 'lable'", "Did you mean 'lable'")),
    ("missingColumn", MAPPED, {}, ("text", "nothing")),
    ("notText", MAPPED, pair(text=7), ("text", "a number", "must be text")),
    ("notText", MAPPED, pair(label=None), ("label", "missing or null", "must be text")),
    ("notText", MAPPED, pair(label=float("nan")), ("label", "NaN", "text", "finite number")),
    ("notText", MAPPED, pair(label=True), ("label", "true or false", "must be text")),
    ("notText", MAPPED, pair(label={"name": "a"}), ("label", "an object", "must be text")),
    ("empty", MAPPED, pair(label=" "), ("label", "empty")),
    ("nulByte", MAPPED, pair(text="a\0"), ("text", "NUL byte", "character 2")),
    ("loneSurrogate", MAPPED, pair(text="\ud800"), ("text", "surrogate")),
    ("loneSurrogate", GROUPED, pair(ticket="\ud800"), ("ticket", "surrogate")),
    ("missingGroup", GROUPED, pair(ticket=float("nan")), ("ticket", "empty", "spec.dataset.groupBy")),
    ("missingGroup", GROUPED, pair(), ("ticket", "empty", "spec.dataset.groupBy")),
    ("notText", GROUPED, pair(ticket=["7"]), ("ticket", "a list", "spec.dataset.groupBy", "single value")),
    ("unknownLabel", CLASSES, pair(label="refunds"), ("label", "spec.task.labels", "'refunds'", "mean 'refund'")),
    (
        "answerNotJson",
        RECORDS,
        pair(label="{"),
        (
            *("label", "JSON", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
            *("spec.task.type Extraction", "'{'"),
        ),
    ),
    (
        "answerNotJson",
        RECORDS,
        pair(label='{"share": NaN}'),
        ("label", "JSON", "NaN", "spec.task.type Extraction", "'{\"share\": NaN}'"),
    ),
    (
        "answerNotJson",
        RECORDS,
        pair(label='{"card": 4111111111111111}'),
        ("label", "JSON", "masking", "write", "as strings", "remove", "spec.dataset.pii.entities"),
    ),
    (
        "empty",
        MAPPED | {"cleaning": Cleaning(markup=Markup.STRIP)},
        pair(text="<br>"),
        ("messages[0]", "empty", "cleaning"),
    ),
    # Messages
    ("missingMessages", {}, pair(), ("messages", "missing", "'text', 'label'", "set spec.dataset.columns")),
    ("missingMessages", {}, chat(), ("messages", "non-empty list")),
    ("notAMessage", {}, chat("q"), ("messages[0]", "object", "role", "content")),
    (
        "unknownRole",
        {},
        chat({"role": "critic", "content": "q"}),
        ("messages[0].role", "system, user, assistant, tool", "'critic'"),
    ),
    ("unknownKey", {}, chat(QUESTION | {"weight": 1}, ANSWER), ("messages[0]", "unsupported", "user", "'weight'")),
    (
        "unknownKey",
        {},
        chat(QUESTION | {"reasoning_content": "so"}, ANSWER),
        ("messages[0]", "unsupported", "user", "'reasoning_content'"),
    ),
    (
        "notText",
        {},
        chat(QUESTION, ANSWER | {"reasoning_content": ["so"]}),
        ("messages[1].reasoning_content", "a list", "must be text"),
    ),
    ("notText", {}, chat({"role": "user"}), ("messages[0].content", "missing or null", "must be text")),
    (
        "notText",
        {},
        chat({"role": "user", "content": [{"type": "text", "text": "q"}]}),
        ("messages[0].content", "a list", "must be text", "join"),
    ),
    ("wrongOrder", {}, chat(QUESTION), ("messages", "must end", "assistant")),
    ("wrongOrder", {}, chat(QUESTION, QUESTION, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat(QUESTION, {"role": "system", "content": "s"}, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat({"role": "tool", "content": "12"}, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat(QUESTION, CALL, QUESTION, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat(ANSWER, QUESTION, ANSWER), ALTERNATE),
    (
        "wrongOrder",
        {"instruction": "Be brief."},
        chat({"role": "system", "content": "s"}, QUESTION, ANSWER),
        ("messages", "system message", "spec.dataset.instruction", "keep one"),
    ),
    ("notTools", {}, chat(QUESTION, ANSWER, tools=["balance"]), ("tools", "list of objects", "function")),
    ("notTools", {}, chat(QUESTION, ANSWER, tools=[{"from": float("inf")}]), ("tools", "Infinity", "JSON")),
    (
        "wrongToolCall",
        {},
        calling(function={"arguments": {}}),
        ("messages[1].tool_calls[0]", "function.name", "function.arguments"),
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"name": "f", "arguments": "{"}),
        ("messages[1].tool_calls[0].function.arguments", "not a JSON object"),
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"name": "f", "arguments": NESTED}),
        ("messages[1].tool_calls[0]", "nested", "64"),
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"name": "f", "arguments": '{"x": "\\ud800"}'}),
        ("messages[1].tool_calls[0]", "surrogate"),
    ),
    ("notTools", {}, chat(QUESTION, ANSWER, tools=[{"at\0": 1}]), ("tools", "NUL byte", "character 3")),
    ("notText", {}, chat(QUESTION | {"name": 7}, ANSWER), ("messages[0].name", "a number", "must be text")),
    # Other forms
    ("empty", {}, {"prompt": "q", "completion": " "}, ("completion", "empty")),
    ("notText", {}, {"instruction": "q", "output": "a", "input": 7}, ("input", "a number", "must be text")),
    ("missingMessages", {}, {"conversations": "q"}, ("conversations", "list of turns", "from", "value")),
    ("notAMessage", {}, {"conversations": ["q"]}, ("conversations[0]", "object", "from", "value")),
    (
        "unknownRole",
        {},
        dialogue("narrator"),
        ("conversations[0].from", "system, human, user, gpt, assistant, bot", "'narrator'"),
    ),
    ("noAnswer", {}, dialogue("human"), ("conversations", "no assistant answer")),
]
"""Class of the error, what the spec asks for, the row, and what is said of it: the field first."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(build_tiny_llama(tmp_path_factory.mktemp("messages") / "base"))


@pytest.fixture(scope="module")
def refused(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], StageError]:
    """How prepare refuses the rows of CASES by number; every case is provoked once."""

    @cache
    def refuse(number: int) -> StageError:
        spec, rows = CASES[number]
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with pytest.raises(StageError) as error:
            reader.read(tmp_path_factory.mktemp("rows"), content, **spec)
        return error.value

    return refuse


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_row(refused: Callable[[int], StageError], number: int) -> None:
    kind, spec, row, (field, *parts) = WRONG[number]
    found = intake_of(params_of(**spec)).take(Row(1, row))
    assert isinstance(found, Fault)
    assert found.kind == kind
    error = refused(number)
    assert error.reason is Reason.DATASET_INVALID
    assert_says(error.message, "1 of 1", "0 %", f"s3://data/rows.jsonl line 1, {field}:", *parts, *FIX_ROWS)


def contradicting(spec: Fields) -> list[Fields]:
    """Equal rows with different answers, below one that has nothing to do with them."""
    labels = spec["task"].labels or ["1", "2"]
    return [pair("other", labels[0]), pair(label=labels[0]), pair(label=labels[1]), pair(label=labels[0])]


SPLIT: Final[list[tuple[Fields, tuple[str, ...]]]] = [
    (
        CLASSES,
        (
            *("line 3, label:", "earlier identical row", "'refund'", "one answer", "'question'"),
            *("s3://data/rows.jsonl line 4, label:", "several answers", "one answer", "'refund'"),
        ),
    ),
    (
        RECORDS,
        (
            *("line 3, label:", "several answers", "one answer", "'2'"),
            *("s3://data/rows.jsonl line 4, label:", "several answers", "one answer", "'1'"),
        ),
    ),
]
"""What the spec asks for, and what is said where equal rows have different answers."""
CASES: Final = [(spec, [row]) for _, spec, row, _ in WRONG] + [(spec, contradicting(spec)) for spec, _ in SPLIT]


@pytest.mark.parametrize("number", range(len(SPLIT)))
def test_rows_that_contradict_each_other(refused: Callable[[int], StageError], number: int) -> None:
    message = refused(len(WRONG) + number).message
    assert_says(message, "3 of 4", "0 %", "s3://data/rows.jsonl", *SPLIT[number][1], *FIX_ROWS)


@cache
def empty_prompt() -> str:
    """What is said of a prompt of which nothing is left: what is cleaned away is decided elsewhere, here it is all."""
    ledger = Ledger()
    config = Distillation(teacher=TeacherRef(url="http://teacher/v1", model="large"))
    row = Row(7, {"prompt": "Who is ana@example.org?"})
    assert list(read_prompts("s3://data/rows.jsonl", [row], config, ledger, clean=lambda _text: "")) == []
    return ledger.faults.sentences()


def test_a_prompt_of_which_nothing_is_left_for_the_teacher() -> None:
    assert_says(empty_prompt(), "s3://data/rows.jsonl line 7, prompt:", "empty", "cleaning")


@pytest.mark.parametrize(
    "module",
    ["examples.shapes", "examples.validation", "preparation.intake", "examples.ledger", "distillation.prompts"],
)
def test_every_sentence_about_a_row_is_provoked(refused: Callable[[int], StageError], module: str) -> None:
    messages = [*(refused(number).message for number in range(len(CASES))), empty_prompt()]
    assert unsaid(f"finetune_jobs.{module}", messages) == []


def test_every_kind_of_error_of_a_row_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/prepare-data.md").read_text()
    assert [kind for kind, *_ in WRONG if f"`{kind}`" not in guide] == []
