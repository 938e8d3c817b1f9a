"""Goals that the prepared data cannot measure, or whose test part is too small for them: refused before training."""

from typing import Any, Final

import pytest

from finetune_api.gates import Gates
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.measurable import DataFacts, require_enough_tests, require_measurable
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit


def gates(*goals: dict[str, Any], **more: Any) -> Gates:
    return Gates.model_validate({"goals": goals} | more)


def against(baseline: str) -> dict[str, str]:
    return {"metric": "f1", "improveOverBase": "0.1", "baseline": baseline}


AUTOMATED: Final = {"metric": "automation", "atLeast": "0.4"}
FORGOTTEN: Final = {"metric": "forgetting", "atMost": "0.1"}
UNLIKELY: Final = {"metric": "perplexity", "atMost": "9"}
UNMEASURABLE: Final[list[tuple[dict[str, str], DataFacts, str]]] = [
    (
        against("FewShot"),
        DataFacts(thoughts=True),
        "goals[0].baseline … FewShot … reasoning_content … Set baseline",
    ),
    (against("Prompted"), DataFacts(thoughts=True), "goals[0].baseline … Prompted … reasoning_content … ZeroShot"),
    (
        against("FewShot"),
        DataFacts(has_shots=False),
        "goals[0].baseline … FewShot … no training example … Prompted",
    ),
    (
        against("Endpoint"),
        DataFacts(is_plain=False),
        "goals[0].baseline … Endpoint … tools or thoughts … Set baseline",
    ),
    (
        AUTOMATED,
        DataFacts(thoughts=True),
        "goals[0] … automation … reasoning_content … Set metric to accuracy or f1",
    ),
    (
        AUTOMATED,
        DataFacts(validated=0),
        "goals[0] … automation … no validation examples … spec.dataset.split.validationPercent",
    ),
    (FORGOTTEN, DataFacts(must_think=True), "goals[0] … forgetting … chat template … Remove the goal"),
    (UNLIKELY, DataFacts(tested=3), "goals[0] … perplexity … 4 … 3 … spec.dataset.split.testPercent"),
    (
        {"metric": "toolUse", "atLeast": "0.9"},
        DataFacts(tested=1200, calling=0),
        "goals[0] … toolUse … none … 1,200 … tool call … Remove the goal … spec.dataset.split.testPercent",
    ),
    (
        {"metric": "toolFields", "improveOverBase": "0.1"},
        DataFacts(reads_calls=False),
        "goals[0] … toolFields … chat template … JSON … cannot be read … choose another base model",
    ),
    (
        {"metric": "validSchema", "atLeast": "0.9"},
        DataFacts(tested=20, calling=20),
        "goals[0] … validSchema … every test example … tool call, not JSON … toolArguments or toolFields",
    ),
]


def unmeasurable(goal: dict[str, str], asked: DataFacts) -> StageError:
    with pytest.raises(StageError) as caught:
        require_measurable(gates(goal), asked)
    return caught.value


@pytest.mark.parametrize(("goal", "asked", "parts"), UNMEASURABLE)
def test_what_these_data_leave_unmeasured_is_refused_before_training(
    goal: dict[str, str], asked: DataFacts, parts: str
) -> None:
    error = unmeasurable(goal, asked)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, *f"spec.evaluation.{parts}".split(" … "))
    require_measurable(gates(goal), DataFacts())


def test_goals_that_ask_the_base_model_as_the_artifact_need_nothing_of_the_data() -> None:
    nothing = DataFacts(thoughts=True, has_shots=False, is_plain=False, validated=0)
    require_measurable(gates(against("ZeroShot"), {"metric": "f1", "atLeast": "0.5"}), nothing)


TOO_FEW_TESTS: Final[list[tuple[dict[str, str], DataFacts, str]]] = [
    (
        {"metric": "accuracy", "atLeast": "0.9"},
        DataFacts(tested=9),
        "atLeast … 0.9 … 35 flawless answers … of the test examples … 9: … spec.dataset.split.testPercent",
    ),
    (
        {"metric": "accuracy", "atLeast": "0.9"},
        DataFacts(tested=200, groups=34),
        "atLeast … 0.9 … 35 flawless answers … groups of alike test examples … 34: … part Test",
    ),
    (
        {"metric": "recall", "class": "refund", "atLeast": "0.8"},
        DataFacts(tested=200, left_out=90, of_class={"refund": 3, "other": 197}),
        "atLeast … 0.8 … 16 flawless answers … class 'refund' … 3: raise spec.evaluation.maxSamples",
    ),
    (
        {"metric": "automation", "atLeast": "0.4", "atPrecision": "0.98"},
        DataFacts(tested=100),
        "atPrecision … 0.98 … 189 flawless answers … 100: … ask for less",
    ),
    (
        {"metric": "toolUse", "atLeast": "0.9"},
        DataFacts(tested=200, calling=34),
        "atLeast … 35 flawless answers … calling a tool … 34: … ask for less",
    ),
    (
        {"metric": "validJson", "atLeast": "0.9"},
        DataFacts(tested=200, calling=166),
        "atLeast … 35 flawless answers … JSON … 34: … ask for less",
    ),
]


def not_shown(goal: dict[str, str], asked: DataFacts) -> StageError:
    with pytest.raises(StageError) as caught:
        require_enough_tests(gates(goal), asked)
    return caught.value


@pytest.mark.parametrize(("goal", "asked", "parts"), TOO_FEW_TESTS)
def test_what_a_faultless_model_would_not_show_is_refused_before_training(
    goal: dict[str, str], asked: DataFacts, parts: str
) -> None:
    error = not_shown(goal, asked)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, "spec.evaluation.goals[0].", *parts.split(" … "), "onInconclusive to Warn")
    require_enough_tests(gates(goal), DataFacts())
    require_enough_tests(gates(goal, onInconclusive="Warn"), asked)


@pytest.mark.parametrize(
    ("goal", "enough"),
    [
        ({"metric": "accuracy", "atLeast": "0.9"}, DataFacts(tested=35)),
        ({"metric": "accuracy", "atLeast": "0.9"}, DataFacts(tested=200, groups=35)),
        ({"metric": "recall", "class": "a", "atLeast": "0.8"}, DataFacts(tested=40, of_class={"a": 16, "b": 24})),
        ({"metric": "f1", "atLeast": "0.9"}, DataFacts(tested=9)),
        ({"metric": "toolUse", "atLeast": "0.9"}, DataFacts(tested=35, calling=35)),
    ],
    ids=["rows", "groups", "a class", "a mean over classes, whose interval is drawn", "calls"],
)
def test_a_test_that_can_show_a_goal_is_let_through(goal: dict[str, str], enough: DataFacts) -> None:
    require_enough_tests(gates(goal), enough)


@pytest.mark.slow
def test_every_sentence_is_said() -> None:
    messages = [unmeasurable(goal, asked).message for goal, asked, _ in UNMEASURABLE]
    messages += [not_shown(goal, asked).message for goal, asked, _ in TOO_FEW_TESTS]
    assert unsaid("finetune_jobs.evaluation.measurable", messages) == []
