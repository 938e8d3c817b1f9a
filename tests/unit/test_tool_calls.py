"""Calls of tools: read in the form of a model's own chat template, and scored by name and arguments."""

import json
from typing import Any, Final

import pytest

from finetune_api.dataset import Task, TaskType
from finetune_api.evaluation import Examination
from finetune_api.gates import GateOutcome, Gates
from finetune_api.goals import OF_CALLS, Metric
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.calls import CallFormat, learnt, read, written
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.applicable import require_applicable
from finetune_jobs.evaluation.details import scored_fields
from finetune_jobs.evaluation.estimates import nearness
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.report import Evaluated
from finetune_jobs.evaluation.tasks import overlap_for, right_for
from finetune_jobs.evaluation.texts import chrf
from finetune_jobs.text.schemas import schema_check
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

NAME, ARGUMENTS = "find", {"place": "x"}
PLACE: Final = '{"place": "x"}'
HERMES: Final = '<tool_call>\n{"name": "find", "arguments": {"place": "x"}}\n</tool_call>'
LLAMA: Final = '{"name": "find", "parameters": {"place": "x"}}'
MISTRAL: Final = '[{"name": "find", "arguments": {"place": "x"}, "id": "a1b2c3d4e"}]'
FORMS: Final = {
    "Hermes and Qwen": HERMES,
    "Llama 3": LLAMA,
    "Mistral, its mark a special token": MISTRAL,
    "Mistral, its mark visible": f"[TOOL_CALLS] {MISTRAL}",
    "Mistral 11, special tokens left out": f"find{PLACE}",
    "Mistral 11": f"find[ARGS]{PLACE}",
    "DeepSeek": f"<call>function<sep>find\n```json\n{PLACE}\n```<end>",
    "arguments within a text": '<call>{"name": "find", "arguments": "{\\"place\\": \\"x\\"}"}</call>',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_form_is_learnt_from_one_call_and_reads_others(text: str) -> None:
    form = learnt(text, NAME, ARGUMENTS)
    assert form is not None
    assert CallFormat.model_validate_json(form.model_dump_json(by_alias=True)) == form
    other = text.replace("find", "look.up-2").replace("x", "y")
    assert form.read(other) == [("look.up-2", {"place": "y"})]
    assert form.read("I do not know.") is None
    assert form.read(text[: text.index("x")]) is None  # cut off: servers give it as text
    assert form.canonical("I do not know.") == "I do not know."
    assert read(form.canonical(text)) == [(NAME, ARGUMENTS)]


@pytest.mark.parametrize(
    "text",
    [
        "<function=find>\n<parameter=place>\nx\n</parameter>\n</function>",
        '[find(place="x")]',
        "find a place",
        '{"name": "find"}',
        "[",
    ],
)
def test_a_form_that_is_no_json_is_not_guessed(text: str) -> None:
    assert learnt(text, NAME, ARGUMENTS) is None


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"Let me see.\n{HERMES}", [(NAME, ARGUMENTS)]),
        (f"{HERMES}\n{HERMES}", [(NAME, ARGUMENTS)] * 2),
        ('<tool_call>{"arguments": {}, "name": "find"}', [(NAME, {})]),
        ('<tool_call>{"name": "find", "arguments": {"a": "<tool_call>"}}</tool_call>', [(NAME, {"a": "<tool_call>"})]),
        ('{"name": "find", "arguments": {}}', None),  # no mark: a text
        (f"{HERMES}<tool_call>broken</tool_call>", None),
        ('<tool_call>{"name": "find"}</tool_call>', None),
        ('<tool_call>{"name": 7, "arguments": {}}</tool_call>', None),
        ('<tool_call>{"name": "find", "arguments": [1]}</tool_call>', None),
        ("<tool_call>[1]</tool_call>", None),
        ("<tool_call>" + "[" * 5000, None),
        ("", None),
    ],
)
def test_what_is_no_whole_call_is_text(text: str, calls: list[Any] | None) -> None:
    form = learnt(HERMES, NAME, ARGUMENTS)
    assert form
    assert form.read(text) == calls


def said(*calls: tuple[str, dict[str, Any]]) -> str:
    return written(list(calls))


FIND, OTHER = said((NAME, {"a": 1, "b": 2})), said(("other", {"a": 1, "b": 2}))
HALF, MORE = said((NAME, {"a": 1, "b": 3})), said((NAME, {"a": 1, "b": 2}), ("other", {}))
BARE, TEXT = said((NAME, {})), "the weather is fine"


@pytest.mark.parametrize("task", list(TaskType))
@pytest.mark.parametrize(
    ("truth", "answer", "right", "f1"),
    [
        (FIND, FIND, True, 1.0),
        (FIND, said((NAME, {"b": 2, "a": 1})), True, 1.0),
        (FIND, HALF, False, 2 / 3),
        (FIND, OTHER, False, 0.0),
        (FIND, TEXT, False, 0.0),
        (TEXT, FIND, False, 0.0),
        (FIND, said((NAME, {"a": 1.0, "b": 2})), False, 2 / 3),  # 1.0 is another JSON value than 1
        (FIND, said((NAME, {"a": True, "b": 2})), False, 2 / 3),
        (MORE, said(("other", {}), (NAME, {"a": 1, "b": 2})), True, 1.0),
        (MORE, FIND, False, 6 / 7),
    ],
)
def test_calls_are_right_by_name_and_arguments(task: TaskType, truth: str, answer: str, right: bool, f1: float) -> None:
    assert right_for(task)(truth, answer) is right
    assert overlap_for(task)(truth, answer).f1 == pytest.approx(f1)
    assert nearness(truth, answer) == pytest.approx(f1)


def test_texts_are_as_near_as_ever_beside_calls() -> None:
    assert nearness(TEXT, "the weather is bad") == chrf(TEXT, "the weather is bad")
    assert read('{"tool_calls": "none"}') is None
    assert read('{"tool_calls": [{"name": "a", "arguments": {}}], "more": 1}') is None
    assert read('{"tool_calls": [}') is None


def evaluated(truth: list[str], artifact: list[str], base: list[str], task: TaskType = TaskType.TEXT) -> Evaluated:
    return Evaluated.of(task, truth, {"base": base, "tuned": artifact, "artifact": artifact}, [])


MIXED = [FIND, FIND, FIND, FIND, TEXT, TEXT]
ANSWERED = [FIND, HALF, OTHER, TEXT, TEXT, FIND]


def test_what_is_measured_of_calls() -> None:
    found = evaluated(MIXED, ANSWERED, [TEXT] * 6)
    assert {metric: found.value(metric, "artifact") for metric in OF_CALLS} == {
        Metric.TOOL_USE: pytest.approx(4 / 6),
        Metric.TOOL_NAME: 0.5,
        Metric.TOOL_ARGUMENTS: 0.25,
        Metric.TOOL_FIELDS: pytest.approx((1 + 0.5) / 4),
    }
    assert [found.value(metric, "base") for metric in OF_CALLS] == [pytest.approx(2 / 6), 0, 0, 0]
    cases = {metric: it.cases for metric in OF_CALLS if (it := found.measurements.of(metric))}
    assert cases == {Metric.TOOL_USE: 6} | dict.fromkeys(OF_CALLS[1:], 4)
    named = found.measurements.of(Metric.TOOL_NAME)
    assert named
    assert 0.14 < named.models["artifact"].low < 0.16  # Wilson's, of 2 in 4
    gain = found.measurements.difference(Metric.TOOL_NAME, "artifact", "base")
    assert gain
    assert gain.estimate.low < gain.estimate.value == 0.5 < gain.estimate.high
    texts = evaluated([TEXT] * 4, [TEXT] * 4, [TEXT] * 4)
    assert not any(texts.measurements.of(metric) for metric in OF_CALLS)


def test_a_call_without_arguments_has_no_field_that_could_be_right() -> None:
    answers = [BARE, TEXT, said(("other", {})), FIND]
    found = evaluated([BARE] * 4, answers, answers)
    assert found.value(Metric.TOOL_FIELDS, "artifact") == 0.25


def test_no_call_is_right_where_the_answer_is_a_text() -> None:
    found = evaluated([TEXT] * 8, [TEXT] * 8, [FIND] * 8)
    assert [found.value(Metric.TOOL_USE, model) for model in ("base", "artifact")] == [0, 1]
    assert found.measurements.of(Metric.TOOL_NAME) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("goal", "outcome"),
    [
        ({"metric": "toolName", "atLeast": "0.9"}, GateOutcome.PASS),
        ({"metric": "toolArguments", "atLeast": "0.9"}, GateOutcome.FAIL),
        ({"metric": "toolFields", "improveOverBase": "0.3"}, GateOutcome.PASS),
        ({"metric": "toolUse", "atLeast": "0.99"}, GateOutcome.INCONCLUSIVE),
    ],
)
def test_goals_about_calls(goal: dict[str, str], outcome: GateOutcome) -> None:
    found = evaluated([FIND] * 100, [HALF] * 100, [TEXT] * 100)
    [judged] = judge(Gates.model_validate({"goals": [goal]}), found.measurements, TaskType.TEXT)
    assert judged.outcome is outcome


def test_a_goal_about_calls_where_none_is_right_says_why_it_has_no_figure() -> None:
    found = evaluated([TEXT] * 9, [TEXT] * 9, [TEXT] * 9)
    gates = Gates.model_validate({"goals": [{"metric": "toolName", "atLeast": "0.9"}]})
    with pytest.raises(StageError, match=r"Calls of tools are measured where the right answer"):
        judge(gates, found.measurements, TaskType.TEXT)


def test_how_many_answers_are_json() -> None:
    truth = ['{"a": 1}'] * 4 + [FIND]
    found = evaluated(truth, ['{"a": 2}', "[", FIND, '{"a": 1}', FIND], truth, TaskType.EXTRACTION)
    assert found.value(Metric.VALID_JSON, "artifact") == 0.5  # a call is not the record that was asked for
    assert found.value(Metric.VALID_JSON, "base") == 1
    assert found.value("accuracy", "artifact") == pytest.approx(2 / 5)


SCHEMA = json.dumps({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}})


def test_how_many_answers_match_a_schema() -> None:
    truth = ['{"a": 1}'] * 4 + [FIND]
    answers = ['{"a": 2}', '{"a": "1"}', "[", FIND, FIND]
    found = evaluated(truth, answers, truth, TaskType.EXTRACTION).matched(schema_check(SCHEMA, "spec"))
    assert found.value(Metric.VALID_SCHEMA, "artifact") == 0.25
    assert found.value(Metric.VALID_SCHEMA, "base") == 1
    it = found.measurements.of(Metric.VALID_SCHEMA)
    assert it
    assert it.cases == 4
    alone = evaluated([FIND] * 4, [FIND] * 4, [FIND] * 4).matched(schema_check(SCHEMA, "spec"))
    assert alone.measurements.of(Metric.VALID_SCHEMA) is None


@pytest.mark.parametrize(
    ("schema", "parts"),
    [
        ("{", "is not JSON"),
        ('{"type": "strin"}', "is not a JSON Schema: … 'strin'"),
        ('{"properties": {"a": {"$ref": "#/$defs/none"}}}', "refers to '#/$defs/none' … does not define"),
        ('{"items": [{"$ref": "http://127.0.0.1/x.json"}]}', "is not a JSON Schema"),
        ('{"items": {"$ref": "http://127.0.0.1/x.json"}}', "refers to 'http://127.0.0.1/x.json'"),
        ('{"$id": "http://a/b", "items": {"$ref": "#/$defs/none"}}', "refers to '#/$defs/none'"),
        ('{"items": {"$ref": "#/a"}, "a": {"items": {"$ref": "#/none"}}}', "refers to '#/none'"),
        ('{"$ref": "#"}', "refers to itself without an end"),
        ('{"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}', "refers to itself"),
    ],
)
def test_a_schema_that_is_none_is_refused_before_anything_is_paid_for(schema: str, parts: str) -> None:
    task = Task(type=TaskType.EXTRACTION, answer_schema=schema)
    with pytest.raises(StageError) as error:
        require_applicable(Gates(), task, Examination())
    assert error.value.reason is Reason.SPEC_INVALID
    assert_says(error.value.message, "spec.task.answerSchema", *parts.split(" … "))


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{"$ref": "no reference, but a value"}]},
        {"properties": {"$ref": {"type": "string"}}},
        {
            "$id": "http://a/b",
            "items": {"$ref": "c"},
            "$defs": {"c": {"$id": "c", "$ref": "#/$defs/n", "$defs": {"n": {}}}},
        },
        {"items": {"$ref": "#"}},
    ],
)
def test_a_schema_that_can_be_followed_is_taken(schema: dict[str, Any]) -> None:
    problem_of = schema_check(json.dumps(schema), "spec")
    assert problem_of([]) == ("enum" if "enum" in schema else "")


DEEP: Final = (300, 900, 990, 5000, 100_000)
"""The parser refuses some of them, and functions that call themselves would refuse others."""


@pytest.mark.parametrize("levels", DEEP)
def test_an_answer_that_opens_hundreds_of_brackets_is_no_json_and_no_call(levels: int) -> None:
    """A model that repeats itself writes such, and an evaluation has an answer to it as to any."""
    deep = "[" * levels + "]" * levels
    truth, answers = ["[1]", FIND], [deep, said((NAME, {})).replace("{}", f'{{"a": {deep}}}')]
    found = evaluated(truth, answers, truth, TaskType.EXTRACTION).matched(schema_check('{"items": {"$ref": "#"}}', "s"))
    assert {metric: found.value(metric, "artifact") for metric in ("accuracy", "validJson", "validSchema")} == {
        "accuracy": 0,
        "validJson": 0,
        "validSchema": 0,
    }
    assert scored_fields(truth, answers)["find().a"].recall == 0
    form = learnt(HERMES, NAME, ARGUMENTS)
    assert form
    call = f'<tool_call>{{"name": "find", "arguments": {{"a": {deep}}}}}</tool_call>'
    assert form.canonical(call) == call


@pytest.mark.parametrize("text", ['{"share": NaN}', "Infinity", "[-Infinity]"])
def test_what_only_python_takes_for_json_is_none(text: str) -> None:
    """Rows with it are refused; a client's parser refuses it too."""
    found = evaluated(["1"] * 2, [text, "1"], ["1"] * 2, TaskType.EXTRACTION)
    assert found.value(Metric.VALID_JSON, "artifact") == 0.5


def test_half_a_surrogate_pair_in_an_answer_does_not_cost_the_page() -> None:
    """JSON may hold it as an escape; the page and answers.jsonl are written as UTF-8."""
    form = learnt(HERMES, NAME, ARGUMENTS)
    assert form
    odd = form.canonical('<tool_call>{"name": "find", "arguments": {"a\\ud83d": "\\ud83d", "b": "ß"}}</tool_call>')
    assert b"\\ud83d" in odd.encode()
    assert "ß" in odd
    assert read(odd) == [(NAME, {"a\ud83d": "\ud83d", "b": "ß"})]
    assert [path.encode().decode() for path in scored_fields([odd], [odd])] == ['find()."a\\ud83d"', "find().b"]
    assert list(scored_fields(['{"Straße": 1}'], ['{"Straße": 2}'])) == ["Straße"]


def test_a_schema_is_of_extractions() -> None:
    require_applicable(Gates(), Task(type=TaskType.EXTRACTION, answer_schema=SCHEMA), Examination())
    with pytest.raises(StageError) as error:
        require_applicable(Gates(), Task(type=TaskType.TEXT, answer_schema=SCHEMA), Examination())
    assert_says(error.value.message, "spec.task.answerSchema", "Extraction", "the task is Text", "remove answerSchema")


def test_which_fields_are_wrong() -> None:
    truth = [json.dumps({"total": n, "currency": "EUR", "lines": [{"price": 1}, {"price": 2}]}) for n in range(4)]
    answers = [
        json.dumps({"total": 0, "currency": "EUR", "lines": [{"price": 2}, {"price": 1}]}),
        json.dumps({"total": 7, "currency": "EUR", "lines": [{"price": 1}], "note": "paid"}),
        json.dumps({"total": 2, "lines": [{"price": 1}, {"price": 2}]}),
        "not JSON",
    ]
    found = scored_fields(truth, answers)
    assert list(found) == ["note", "total", "currency", "lines[].price"]
    assert {path: (it.support, round(it.precision, 3), it.recall) for path, it in found.items()} == {
        "note": (0, 0.0, 0.0),
        "total": (4, 0.667, 0.5),
        "currency": (4, 1.0, 0.5),
        "lines[].price": (8, 1.0, 0.625),
    }
    assert scored_fields(["[1, 2]", '"a"'], ["[2]", '"a"']).keys() == {"[]", ""}
    called = scored_fields([FIND], [HALF])
    assert {path: it.f1 for path, it in called.items()} == {"find().a": 1.0, "find().b": 0.0}
