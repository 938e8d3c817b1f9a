"""The base model read and asked as fairly as prompting can do, and whether that would have done."""

import json

import pytest

from finetune_api.dataset import TaskType
from finetune_api.gates import Gates
from finetune_jobs.artifacts.measurements import Difference, Figure, Measurements
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.lenient import read
from finetune_jobs.evaluation.prompting import PROMPTED, on_prompting
from finetune_jobs.evaluation.report import Evaluated
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

LABELS = ["card", "card_payment", "cash withdrawal", "Refund", "no"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("card", "card"),
        ("The label is refund.", "Refund"),
        ("This is a card payment.", "card_payment"),
        ("**card_payment**", "card_payment"),
        ("Cash-Withdrawal", "cash withdrawal"),
        ("It is a refund, not a card payment.", "Refund"),
        ("discard it", "discard it"),
        ("I cannot know", "I cannot know"),
        ("", ""),
    ],
)
def test_the_label_is_taken_out_of_a_sentence(text: str, answer: str) -> None:
    assert read(TaskType.CLASSIFICATION, text, LABELS) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('Here it is:\n```json\n{"a": [1, 2]}\n```\nIs that right?', '{"a": [1, 2]}'),
        ('A set {of words}, then ["b", {"c": null}] and {"d": 2}', '["b", {"c": null}]'),
        ('{"a": 1', '{"a": 1'),
        ("none", "none"),
        pytest.param("[" * 5000, "[" * 5000, marks=pytest.mark.slow),
    ],
    ids=["alone", "fence", "first value", "cut off", "none", "deep"],
)
def test_the_first_json_value_is_taken_out_of_a_text(text: str, answer: str) -> None:
    assert read(TaskType.EXTRACTION, text, []) == answer
    assert read(TaskType.TEXT, text, []) == text


TRUTH = ["a", "b"] * 50


def evaluated(**right: int) -> Evaluated:
    """So many of 100 right answers of each model; the base model has 0, the tuned one and the artifact 80."""
    wrong = {"base": 100, **{model: 100 - count for model, count in right.items()}, "tuned": 20, "artifact": 20}
    answers = {model: ["x"] * count + TRUTH[count:] for model, count in wrong.items()}
    return Evaluated.of(TaskType.CLASSIFICATION, TRUTH, answers, ["a", "b"])


@pytest.mark.parametrize(
    ("right", "best", "parts"),
    [
        (
            {"fewShot": 40, "verbose": 50, "constrained": 30},
            "verbose",
            "would not have been enough … free-form answers … +30.0",
        ),
        (
            {"verbose": 10, "constrained": 60},
            "constrained",
            "would not have been enough … limited to the labels … +20.0",
        ),
        ({"fewShot": 78, "constrained": 60}, "fewShot", "may do as well … examples … +2.0 … within chance"),
        ({"fewShot": 40, "constrained": 97}, "constrained", "does better … limited to the labels … -17.0"),
        ({}, "", ""),
    ],
)
def test_the_best_way_to_prompt_decides(right: dict[str, int], best: str, parts: str) -> None:
    found = evaluated(**right)
    assert found.prompted == best
    if parts:
        assert_says(found.prompting(), *parts.split(" … "))
    else:
        assert found.prompting() == ""
    assert all(
        f"accuracy{model[0].upper()}{model[1:]}" not in found.scalars() for model in PROMPTED if model != "fewShot"
    )
    assert set(right) <= json.loads(json.dumps(found.metrics()))["models"].keys()


@pytest.mark.parametrize("turned", [False, True])
def test_prompting_may_be_enough_if_one_way_to_prompt_is_not_beaten_for_sure(turned: bool) -> None:
    """Even if the artifact gains more over it than over the best one."""
    gains = [("verbose", 0.05, 0.01, 0.09), ("fewShot", 0.08, -0.02, 0.18)]
    differences = [
        Difference(
            metric="accuracy",
            model="artifact",
            against=against,
            estimate=Figure(value=value, low=low, high=high),
        )
        for against, value, low, high in gains[:: -1 if turned else 1]
    ]
    measurements = Measurements(rows=100, differences=differences)
    assert_says(on_prompting(measurements, TaskType.CLASSIFICATION), "may do as well", "examples", "+8.0")


@pytest.mark.parametrize(
    ("gains", "outcome", "value"),
    [
        ([(0.12, 0.08, 0.16), (0.15, 0.04, 0.26)], "Inconclusive", "0.1500"),
        ([(0.12, 0.08, 0.16), (0.15, 0.06, 0.24)], "Pass", "0.1500"),
        ([(0.03, 0.02, 0.04), (0.02, -0.04, 0.08)], "Fail", "0.0300"),
        ([(0.02, -0.04, 0.08), (0.03, 0.02, 0.07)], "Inconclusive", "0.0200"),
    ],
    ids=["a larger gain is less certain", "both are", "one is too small for sure", "neither is known"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_every_prompt_has_to_be_beaten(
    gains: list[tuple[float, float, float]], outcome: str, value: str, turned: bool
) -> None:
    """Not that alone over which the gain is the smallest."""
    goal = {"metric": "accuracy", "improveOverBase": "0.05", "baseline": "Prompted"}
    differences = [
        Difference(
            metric="accuracy",
            model="artifact",
            against=against,
            estimate=Figure(value=value, low=low, high=high),
        )
        for against, (value, low, high) in zip(("fewShot", "constrained"), gains[:: -1 if turned else 1], strict=True)
    ]
    measurements = Measurements(rows=100, differences=differences)
    (found,) = judge(Gates.model_validate({"goals": [goal]}), measurements, TaskType.CLASSIFICATION)
    assert (found.outcome, found.value) == (outcome, value)


def test_a_goal_can_ask_to_beat_the_best_prompt() -> None:
    gates = Gates.model_validate(
        {
            "goals": [
                {"metric": "accuracy", "improveOverBase": bound, "baseline": baseline}
                for bound, baseline in (("0.2", "FewShot"), ("0.05", "Prompted"), ("0.2", "Prompted"))
            ]
        }
    )
    found = judge(gates, evaluated(fewShot=40, constrained=65).measurements, TaskType.CLASSIFICATION)
    assert [each.outcome for each in found] == ["Pass", "Pass", "Inconclusive"]
    assert [each.value for each in found] == ["0.4000", "0.1500", "0.1500"]
    assert found[1].goal == "accuracy better than the best prompted base model's by 0.05"
