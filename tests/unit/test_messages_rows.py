"""What a user is told about a row: every error that one may have, with file, line, field, what is wrong and the value.

A table of rows and exact messages; no sentence in the code that reads rows is without one.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.dataset import Cleaning, Columns, Markup, Task, TaskType
from finetune_api.distillation import Distillation, TeacherRef
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.distillation.prompts import read_prompts
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.reading.rows import Fault, Row
from tests.support.preparing import Reader, params_of
from tests.support.sentences import unsaid
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
ALTERNATE: Final = (
    "messages: must alternate between user and assistant, beginning with user; tools answer after an assistant's "
    "tool_calls."
)
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


WRONG: Final[list[tuple[str, Fields, Fields, str]]] = [
    # Columns
    (
        "missingColumn",
        MAPPED,
        {"text": "q", "lable": "a"},
        "label: does not exist; the row has 'text', 'lable'. Did you mean 'lable'?",
    ),
    ("missingColumn", MAPPED, {}, "text: does not exist; the row has nothing."),
    ("notText", MAPPED, pair(text=7), "text: is a number, must be text."),
    ("notText", MAPPED, pair(label=None), "label: is missing or null, must be text."),
    ("notText", MAPPED, pair(label=float("nan")), "label: is NaN, must be text or a finite number."),
    ("notText", MAPPED, pair(label=True), "label: is true or false, must be text."),
    ("notText", MAPPED, pair(label={"name": "a"}), "label: is an object, must be text."),
    ("empty", MAPPED, pair(label=" "), "label: is empty."),
    ("nulByte", MAPPED, pair(text="a\0"), "text: holds a NUL byte at character 2."),
    ("loneSurrogate", MAPPED, pair(text="\ud800"), "text: holds half a surrogate pair, which is no text."),
    ("loneSurrogate", GROUPED, pair(ticket="\ud800"), "ticket: holds half a surrogate pair, which is no text."),
    ("missingGroup", GROUPED, pair(ticket=float("nan")), "ticket: is empty, but spec.dataset.groupBy names it."),
    ("missingGroup", GROUPED, pair(), "ticket: is empty, but spec.dataset.groupBy names it."),
    (
        "notText",
        GROUPED,
        pair(ticket=["7"]),
        "ticket: is a list, must be one value, for spec.dataset.groupBy names it.",
    ),
    (
        "unknownLabel",
        CLASSES,
        pair(label="refunds"),
        "label: is not one of spec.task.labels ('refunds'). Did you mean 'refund'?",
    ),
    (
        "answerNotJson",
        RECORDS,
        pair(label="{"),
        "label: is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), which "
        "spec.task.type Extraction asks for ('{').",
    ),
    (
        "answerNotJson",
        RECORDS,
        pair(label='{"share": NaN}'),
        "label: is not JSON (NaN is no JSON), which spec.task.type Extraction asks for ('{\"share\": NaN}').",
    ),
    (
        "answerNotJson",
        RECORDS,
        pair(label='{"card": 4111111111111111}'),
        "label: is no JSON any more once personal data and secrets are masked: write such values as text, or leave "
        "their kind out of spec.dataset.pii.entities.",
    ),
    (
        "empty",
        MAPPED | {"cleaning": Cleaning(markup=Markup.STRIP)},
        pair(text="<br>"),
        "messages[0]: is empty after cleaning.",
    ),
    # Messages
    (
        "missingMessages",
        {},
        pair(),
        "messages: does not exist; the row has 'text', 'label': without messages, set spec.dataset.columns.",
    ),
    ("missingMessages", {}, chat(), "messages: must be a list of messages, one at least."),
    ("notAMessage", {}, chat("q"), "messages[0]: is not an object with role and content."),
    (
        "unknownRole",
        {},
        chat({"role": "critic", "content": "q"}),
        "messages[0].role: must be one of system, user, assistant, tool ('critic').",
    ),
    (
        "unknownKey",
        {},
        chat(QUESTION | {"weight": 1}, ANSWER),
        "messages[0]: has a key that is not supported for user ('weight').",
    ),
    ("notText", {}, chat({"role": "user"}), "messages[0].content: is missing or null, must be text."),
    (
        "notText",
        {},
        chat({"role": "user", "content": [{"type": "text", "text": "q"}]}),
        "messages[0].content: is a list, must be text: join the texts of its parts to one.",
    ),
    ("wrongOrder", {}, chat(QUESTION), "messages: must end with the assistant's answer."),
    ("wrongOrder", {}, chat(QUESTION, QUESTION, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat(QUESTION, {"role": "system", "content": "s"}, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat({"role": "tool", "content": "12"}, ANSWER), ALTERNATE),
    ("wrongOrder", {}, chat(QUESTION, CALL, QUESTION, ANSWER), ALTERNATE),
    (
        "wrongOrder",
        {},
        chat(ANSWER, QUESTION, ANSWER),
        ALTERNATE,
    ),
    (
        "wrongOrder",
        {"instruction": "Be brief."},
        chat({"role": "system", "content": "s"}, QUESTION, ANSWER),
        "messages: begin with a system message, but spec.dataset.instruction is set too: keep one of them.",
    ),
    (
        "notTools",
        {},
        chat(QUESTION, ANSWER, tools=["balance"]),
        "tools: must be a list of objects, one for each function.",
    ),
    (
        "notTools",
        {},
        chat(QUESTION, ANSWER, tools=[{"from": float("inf")}]),
        "tools: holds Infinity, which is no JSON.",
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"arguments": {}}),
        "messages[1].tool_calls[0]: needs function.name and function.arguments.",
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"name": "f", "arguments": "{"}),
        "messages[1].tool_calls[0].function.arguments: is not a JSON object.",
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"name": "f", "arguments": NESTED}),
        "messages[1].tool_calls[0]: is nested more than 64 levels deep.",
    ),
    (
        "wrongToolCall",
        {},
        calling(function={"name": "f", "arguments": '{"x": "\\ud800"}'}),
        "messages[1].tool_calls[0]: holds half a surrogate pair, which is no text.",
    ),
    ("notTools", {}, chat(QUESTION, ANSWER, tools=[{"at\0": 1}]), "tools: holds a NUL byte at character 3."),
    ("notText", {}, chat(QUESTION | {"name": 7}, ANSWER), "messages[0].name: is a number, must be text."),
    # Other forms
    ("empty", {}, {"prompt": "q", "completion": " "}, "completion: is empty."),
    ("notText", {}, {"instruction": "q", "output": "a", "input": 7}, "input: is a number, must be text."),
    ("missingMessages", {}, {"conversations": "q"}, "conversations: must be a list of turns with from and value."),
    ("notAMessage", {}, {"conversations": ["q"]}, "conversations[0]: is not an object with from and value."),
    (
        "unknownRole",
        {},
        dialogue("narrator"),
        "conversations[0].from: must be one of system, human, user, gpt, assistant, bot ('narrator').",
    ),
    ("noAnswer", {}, dialogue("human"), "conversations: holds no answer of the assistant to a user."),
]
"""Class of the error, what the spec asks for, the row, and what is said of it."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(build_tiny_llama(tmp_path_factory.mktemp("messages") / "base"))


@pytest.mark.parametrize(("kind", "spec", "row", "sentence"), WRONG)
def test_a_wrong_row(reader: Reader, tmp_path: Path, kind: str, spec: Fields, row: Fields, sentence: str) -> None:
    found = Intake(params_of(**spec)).take(Row(1, row))
    assert isinstance(found, Fault)
    assert found.kind == kind
    with pytest.raises(StageError) as error:
        reader.read(tmp_path, json.dumps(row).encode(), **spec)
    assert (error.value.reason, error.value.message) == (
        Reason.DATASET_INVALID,
        f"1 of 1 rows are invalid, 0 % are allowed: s3://data/rows.jsonl line 1, {sentence} Correct these rows, or "
        "raise spec.dataset.maxInvalidPercent.",
    )


SPLIT: Final[list[tuple[Fields, str]]] = [
    (
        CLASSES,
        "line 3, label: is not the answer of an equal row before ('refund'): equal inputs need one answer ('question')"
        "; s3://data/rows.jsonl line 4, label: is one of several answers: equal inputs need one answer ('refund').",
    ),
    (
        RECORDS,
        "line 3, label: is one of several answers: equal inputs need one answer ('2'); s3://data/rows.jsonl line 4, "
        "label: is one of several answers: equal inputs need one answer ('1').",
    ),
]
"""What the spec asks for, and what is said where equal rows have different answers."""


@pytest.mark.parametrize(("spec", "sentences"), SPLIT)
def test_rows_that_contradict_each_other(reader: Reader, tmp_path: Path, spec: Fields, sentences: str) -> None:
    labels = spec["task"].labels or ["1", "2"]
    rows = [pair("other", labels[0]), pair(label=labels[0]), pair(label=labels[1]), pair(label=labels[0])]
    with pytest.raises(StageError) as error:
        reader.read(tmp_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows), **spec)
    assert error.value.message == (
        f"3 of 4 rows are invalid, 0 % are allowed: s3://data/rows.jsonl {sentences} Correct these rows, or raise "
        "spec.dataset.maxInvalidPercent."
    )


EMPTY: Final = "prompt: is empty after cleaning"


def test_a_prompt_of_which_nothing_is_left_for_the_teacher() -> None:
    """What is cleaned away is decided elsewhere: here nothing is left of any text."""
    ledger = Ledger()
    config = Distillation(teacher=TeacherRef(url="http://teacher/v1", model="large"))
    row = Row(7, {"prompt": "Who is ana@example.org?"})
    assert list(read_prompts("s3://data/rows.jsonl", [row], config, ledger, clean=lambda _text: "")) == []
    assert ledger.faults.sentences() == f"s3://data/rows.jsonl line 7, {EMPTY}"


@pytest.mark.parametrize(
    "module",
    ["examples.shapes", "examples.validation", "preparation.intake", "examples.ledger", "distillation.prompts"],
)
def test_every_sentence_about_a_row_is_in_a_table(module: str) -> None:
    messages = [*(wrong[-1] for wrong in WRONG), *(split[-1] for split in SPLIT), EMPTY]
    assert unsaid(f"finetune_jobs.{module}", messages) == []


def test_every_kind_of_error_of_a_row_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/prepare-data.md").read_text()
    assert [kind for kind, *_ in WRONG if f"`{kind}`" not in guide] == []
