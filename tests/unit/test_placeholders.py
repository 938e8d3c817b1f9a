"""Placeholders for personal data in a test that is to say how a model does on real values: counted and scored apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset import Columns, Task, TaskType
from finetune_jobs.evaluation.page import EvaluationSubject
from finetune_jobs.evaluation.report import Evaluated, RowFacts
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness.checklist import State
from finetune_jobs.readiness.preparation_report import PreparationReport
from finetune_jobs.splitting.division import divide
from finetune_jobs.text.placeholders import holds_placeholder
from tests.support.evaluation_pages import evaluation_html
from tests.support.preparing import Reader, params_of, text
from tests.support.sentences import assert_says
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(build_tiny_llama(tmp_path_factory.mktemp("placeholders") / "base"))


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ("mail <EMAIL_ADDRESS_1>", True),
        ([{"content": "", "tool_calls": [{"<PHONE_NUMBER_12>": 1}]}], True),
        ("List<String> and <EMAIL_ADDRESS> and <a_1>", False),
        (None, False),
    ],
)
def test_what_holds_a_placeholder(value: Any, held: bool) -> None:
    assert holds_placeholder(value) is held


def report_of(reader: Reader, folder: Path, task: TaskType, rows: list[dict[str, str]]) -> PreparationReport:
    asked: dict[str, Any] = {"task": Task(type=task), "columns": Columns(input="text", label="label")}
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    made = reader.read(folder, content, **asked)
    params = params_of(**asked)
    near = made.near(params.dataset.duplicates.near_percent)
    return PreparationReport.of(made, divide(made.ledger, near, made.texts, params.dataset), params, "")


def row(number: int, mail: str, answer: str) -> dict[str, str]:
    return {"text": f"{text(number)} {mail}".strip(), "label": json.dumps({"mail": answer})}


@pytest.mark.parametrize("task", [TaskType.EXTRACTION, TaskType.TEXT])
def test_masked_rows_of_the_test_and_masked_answers_are_counted(reader: Reader, tmp_path: Path, task: TaskType) -> None:
    addresses = [f"jo{n}@example.org" for n in range(120)]
    rows = [row(n, mail, mail if n < 60 else "") for n, mail in enumerate(addresses)]
    made = report_of(reader, tmp_path, task, [*rows, *(row(n, "", "") for n in range(200, 320))])
    assert 0 < made.facts.placeholders < made.facts.rows.parts[Part.TEST]
    assert made.scalars()["rowsTestMasked"] == str(made.facts.placeholders)
    assert made.scalars()["answersMasked"] == "60"
    assert made.report()["placeholders"] == {"test": made.facts.placeholders, "answers": 60}
    assert_says(made.message(), f"{made.facts.placeholders} test examples", "placeholders", "scores them separately")
    item = next(each for each in made.items if each.name == "anonymised")
    assert_says(item.evidence, f"{made.facts.placeholders} of", "placeholders", "real values", "scores them separately")
    assert item.state is State.WARN
    if task is TaskType.EXTRACTION:
        assert_says(item.evidence, "60 records", "placeholders")
        assert_says(item.remedy, "spec.dataset.pii.mode to Report", "spec.dataset.pii.entities")


TRUTH = ["a", "a", "b", "b"]
ANSWERS = {"base": ["b"] * 4, "tuned": TRUTH, "artifact": ["a", "a", "a", "b"]}


def test_they_are_scored_apart() -> None:
    found = Evaluated.of(TaskType.CLASSIFICATION, TRUTH, ANSWERS, ["a", "b"], RowFacts([True, True, False, False]))
    placeholders = found.metrics()["placeholders"]
    assert [placeholders[kind]["artifact"]["accuracy"] for kind in ("with", "without")] == [1.0, 0.5]
    assert [placeholders[kind]["base"]["samples"] for kind in ("with", "without")] == [2, 2]
    assert_says(found.summary(), "2 with placeholders 100.0%", "2 others 50.0%")
    page = evaluation_html(found, ["q"] * 4, EvaluationSubject())
    assert all(f"exported artifact, as served, {kind}" in page for kind in ("with placeholders", "without"))


@pytest.mark.parametrize("masked", [(), (True,) * 4, (False,) * 4])
def test_a_test_of_one_kind_has_one_score(masked: tuple[bool, ...]) -> None:
    found = Evaluated.of(TaskType.CLASSIFICATION, TRUTH, ANSWERS, ["a", "b"], RowFacts(masked))
    assert found.apart == {}
    assert "placeholders" not in found.summary()
    assert "for personal data" not in evaluation_html(found, ["q"] * 4, EvaluationSubject())
