"""Which format of a model is served, what is said of the others, and when none is."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from finetune_api.dataset import TaskType
from finetune_api.export import Export
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.evaluation.formats import choose, may_serve, measured
from finetune_jobs.evaluation.gates import lost_by_export
from finetune_jobs.evaluation.page import EvaluationSubject
from finetune_jobs.evaluation.report import Evaluated
from tests.support.evaluation_pages import evaluation_html
from tests.support.readiness import parsed_page
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # the page imports torch

TRUTH = ["ab"[n % 2] for n in range(60)]
FORMATS = ("INT4", "INT8", "Merged")


def answering(wrong: int) -> list[str]:
    """The right answers, but for the first ``wrong`` ones."""
    return ["x"] * wrong + TRUTH[wrong:]


def found(wrong: Sequence[int]) -> dict[str, Evaluated]:
    """An evaluation of each format with so many wrong answers; the tuned model has two."""
    common = {"base": answering(60), "tuned": answering(2)}
    return {
        name: Evaluated.of(TaskType.CLASSIFICATION, TRUTH, common | {"artifact": answering(errors)}, ["a", "b"])
        for name, errors in zip(FORMATS, wrong, strict=False)
    }


@pytest.mark.parametrize(
    ("wrong", "fall_back", "served", "passed_over"),
    [
        ([2], False, "INT4", []),
        ([20], False, "INT4", []),
        ([2, 2, 2], True, "INT4", []),
        ([4, 0, 2], True, "INT4", []),
        ([20, 4, 2], True, "INT8", ["INT4"]),
        ([20, 20, 2], True, "Merged", ["INT4", "INT8"]),
        ([20, 2, 2], False, "INT4", []),
        ([20, 30, 40], True, "INT4", []),
    ],
    ids=str,
)
def test_the_first_format_that_is_not_worse_beyond_chance(
    wrong: list[int], fall_back: bool, served: str, passed_over: list[str]
) -> None:
    """Two answers more of sixty may be chance; without FallBack, and where all are worse, it is the first."""
    chosen = choose(found(wrong), fall_back=fall_back)
    assert (chosen.format, list(chosen.passed_over)) == (served, passed_over)
    assert chosen.beside.keys() == set(FORMATS[: len(wrong)]) - {served}
    assert chosen.scores["artifact"] == found(wrong)[served].scores["artifact"]


def test_a_format_that_computes_no_numbers_for_a_text_is_passed_over() -> None:
    """However right its answers are: publish would refuse it, and the next one may do."""
    formats = found([2, 2, 2])
    broken = formats["INT4"].measurements.model_copy(update={"without_numbers": 3})
    formats["INT4"] = replace(formats["INT4"], measurements=broken)
    chosen = choose(formats, fall_back=True)
    assert (chosen.format, chosen.passed_over) == ("INT8", ["INT4"])
    assert_says(chosen.summary(), "INT4 computes no numbers for 3 of the recorded texts, so it is not the artifact.")
    assert choose(formats, fall_back=False).format == "INT4"
    told = {each.format: each.without_numbers for each in measured(chosen, dict.fromkeys(FORMATS, "0" * 64))}
    assert told == {"INT8": 0, "INT4": 3, "Merged": 0}


@pytest.mark.parametrize("fall_back", [True, False])
@pytest.mark.parametrize("wrong", [[2, 2, 2], [20, 4, 2], [20, 20, 2], [20, 30, 40]], ids=str)
def test_whether_a_format_may_be_the_artifact_is_known_before_the_next_one(wrong: list[int], fall_back: bool) -> None:
    """The first always may: it is where all the others are worse, too."""
    whole = found(wrong)
    served = choose(whole, fall_back=fall_back).format
    known = [{name: whole[name] for name in FORMATS[:number]} for number in (1, 2, 3)]
    told = {FORMATS[n] for n, each in enumerate(known) if may_serve(each, fall_back=fall_back)}
    assert told == {"INT4", served}


def test_what_is_said_of_the_formats() -> None:
    """In the status, in the ledger of the page, and for publish."""
    chosen = choose(found([20, 4, 2]), fall_back=True)
    assert_says(chosen.summary(), "INT4 cost accuracy -30.0 points", "so it is not the artifact")
    assert "INT8 cost" not in chosen.summary()

    page = parsed_page(evaluation_html(chosen, [f"question {n}" for n in range(60)], EvaluationSubject()))
    for step in ("artifact, INT8", "INT4, not served", "Merged, not served"):
        assert f"with adapter → {step}" in page.text
    only = choose(found([20]), fall_back=False)
    assert "INT4 cost accuracy -30.0 points" in only.summary()
    assert (
        "not served"
        not in parsed_page(evaluation_html(only, [f"question {n}" for n in range(60)], EvaluationSubject())).text
    )

    first, *others = measured(chosen, {name: name[0] * 64 for name in FORMATS})
    assert (first.format, first.served, first.digest) == ("INT8", True, "I" * 64)
    assert first.accuracy == pytest.approx(56 / 60)
    assert [(each.format, each.served, each.loss.worse_beyond_chance) for each in others] == [
        ("INT4", False, True),
        ("Merged", False, False),
    ]


@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.TEXT])
def test_an_artifact_that_is_worse_than_the_tuned_model_is_blocked(task: TaskType) -> None:
    """By the task's main metric, beyond chance; where nothing was compared, nothing is said."""

    def lost(artifact: int) -> str:
        answers = {"base": answering(60), "tuned": answering(2), "artifact": answering(artifact)}
        return lost_by_export(measure(task, TRUTH, answers, ["a", "b"]), task)

    metric = "chrf" if task is TaskType.TEXT else "accuracy"
    parts = (f"export cost {metric} -0.3000", "95 % interval", "set spec.export.onRegression to FallBack", "format")
    assert_says(lost(20), *parts)
    assert lost(2) == lost(4) == lost(0) == ""
    assert lost_by_export(Measurements(rows=0), task) == ""


@pytest.mark.parametrize(
    ("given", "formats"),
    [
        ({}, ["INT8"]),
        ({"format": "INT4", "onRegression": "FallBack"}, ["INT4", "Merged"]),
        ({"format": "INT4", "alternatives": ["INT8", "FP8"]}, ["INT4", "INT8", "FP8"]),
        ({"alternatives": ["Merged", "FP8", "INT8"], "onRegression": "FallBack"}, ["INT8", "FP8", "Merged"]),
        ({"alternatives": ["Merged", "FP8"]}, ["INT8", "Merged", "FP8"]),
        ({"format": "Merged", "onRegression": "FallBack"}, ["Merged"]),
        ({"format": "Merged", "alternatives": ["INT8"], "onRegression": "FallBack"}, ["Merged", "INT8"]),
    ],
    ids=str,
)
def test_formats_in_the_order_in_which_they_are_tried(given: dict[str, object], formats: list[str]) -> None:
    assert Export.model_validate(given).formats == formats
