"""Goals: what is refused before anything is paid for, and what gates say of an artifact."""

from typing import Any, Final

import pytest
from pydantic import ValidationError

from finetune_api.custom_metrics import FigureRule, MetricRun
from finetune_api.dataset import Task, TaskType
from finetune_api.evaluation import Coverage, Evaluation, Examination
from finetune_api.gates import GateOutcome, Gates, OnInconclusive, blocking
from finetune_api.goals import Goal
from finetune_api.judging import Judge
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.formats import MeasuredFormat
from finetune_jobs.artifacts.measurements import Distances, Figure, MeasuredMetric, Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.applicable import require_applicable, require_classes
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.evaluation.gates import (
    computes_no_numbers,
    judge,
    lost_by_export,
    no_better_than_base,
    same_as_base,
)
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit

TRUTH: Final = ["refund", "parcel", "other", "other"] * 50


def beside(lost: Measurements) -> MeasuredFormat:
    """Another format, which lost as much."""
    loss = lost.difference("accuracy", "artifact", "tuned")
    assert loss is not None
    return MeasuredFormat(format="INT4", digest="4" * 64, served=False, accuracy=0.9, f1=0.9, loss=loss)


def gates(*goals: dict[str, Any], **more: Any) -> Gates:
    return Gates.model_validate({"goals": goals} | more)


def evaluated(base: int, artifact: int, task: TaskType = TaskType.CLASSIFICATION) -> Measurements:
    """So many of 200 wrong answers of the base model and of the artifact; 50 of the base model that saw examples."""
    wrong = {"base": base, "fewShot": 50, "tuned": artifact, "artifact": artifact}
    answers = {name: ["x"] * n + TRUTH[n:] for name, n in wrong.items()}
    return measure(task, TRUTH, answers, ["refund", "parcel", "other"])


OF_TEXTS: Final[list[tuple[Task, dict[str, Any], str]]] = [
    (
        Task(type=TaskType.TEXT),
        {"metric": "accuracy", "atLeast": "0.4"},
        "spec.evaluation.goals[0] … accuracy … not just right or wrong … chrf … f1 … exactMatch",
    ),
    (
        Task(type=TaskType.TEXT),
        {"metric": "exactMatch", "atLeast": "0.99"},
        "spec.evaluation.goals[0].atLeast … 0.99 … 381 … maxSamples is 200 … raise it",
    ),
    *(
        (Task(type=task), goal, f"spec.evaluation.goals[0] … {goal['metric']} … texts only … {task.value} … accuracy")
        for task, goal in (
            (TaskType.CLASSIFICATION, {"metric": "chrf", "atLeast": "0.4"}),
            (TaskType.EXTRACTION, {"metric": "exactMatch", "improveOverBase": "0.4"}),
            (TaskType.CLASSIFICATION, {"metric": "perplexity", "atMost": "8.5"}),
        )
    ),
]
JUDGE: Final = Judge.model_validate({"endpoint": {"url": "http://judge/v1", "model": "large"}})
OF_JSON: Final[list[tuple[Task, dict[str, Any], str]]] = [
    (
        Task(type=TaskType.TEXT),
        {"metric": "validJson", "atLeast": "0.9"},
        "spec.evaluation.goals[0] … validJson … extractions only … Text … spec.task.type to Extraction",
    ),
    (
        Task(),
        {"metric": "validSchema", "improveOverBase": "0.1"},
        "spec.evaluation.goals[0] … validSchema … extractions only … Classification",
    ),
    (
        Task(type=TaskType.EXTRACTION),
        {"metric": "validSchema", "atLeast": "0.9"},
        "spec.evaluation.goals[0] … no schema: set spec.task.answerSchema … validJson",
    ),
    (
        Task(type=TaskType.TEXT, answer_schema="{}"),
        {"metric": "f1", "atLeast": "0.9"},
        "spec.task.answerSchema … Extraction … the task is Text … remove answerSchema",
    ),
]
REFUSED: Final[list[tuple[Task, dict[str, Any], str]]] = [
    *OF_JSON,
    (
        Task(type=TaskType.TEXT),
        {"metric": "automation", "atLeast": "0.4"},
        "spec.evaluation.goals[0] … automation … text … f1 … Classification or Extraction",
    ),
    (
        Task(),
        {"metric": "automation", "class": "refund", "atLeast": "0.4"},
        "spec.evaluation.goals[0] … automation of one class … recall … precision … f1",
    ),
    (
        Task(type=TaskType.EXTRACTION),
        {"metric": "f1", "class": "refund", "atLeast": "0.9"},
        "spec.evaluation.goals[0] … 'refund' … task Extraction … Remove class",
    ),
    (
        Task(),
        {"metric": "accuracy", "class": "refund", "atLeast": "0.9"},
        "spec.evaluation.goals[0] … accuracy … recall … precision … f1",
    ),
    (
        Task(labels=["refund", "parcel"]),
        {"metric": "recall", "class": "refunds", "atLeast": "0.9"},
        "spec.evaluation.goals[0] … 'refunds' … 2 labels … Did you mean 'refund'?",
    ),
    (
        Task(),
        {"metric": "harmfulAnswers", "atMost": "0.05"},
        "spec.evaluation.goals[0] … 0.05 … 4 flawless answers to 2 different requests … 0.658 … adversarial to Full … "
        "atMost … onInconclusive to Warn",
    ),
    (Task(), {"metric": "accuracy", "atLeast": "1.0"}, "spec.evaluation.goals[0] … 1.0 … no test … 0.99"),
    (
        Task(),
        {"metric": "accuracy", "atLeast": "0.99"},
        "spec.evaluation.goals[0] … 0.99 … 381 … maxSamples is 200 … raise it … onInconclusive to Warn",
    ),
    (
        Task(),
        {"metric": "automation", "atLeast": "0.4", "atPrecision": "0.995"},
        "spec.evaluation.goals[0].atPrecision … 0.995 … 765 … maxSamples is 200 … raise it … onInconclusive to Warn",
    ),
    (
        Task(),
        {"metric": "automation", "atLeast": "0.99", "atPrecision": "0.9"},
        "spec.evaluation.goals[0].atLeast … 0.99 … 381 … maxSamples is 200 … raise it … onInconclusive to Warn",
    ),
    (
        Task(),
        {"metric": "automation", "atLeast": "1"},
        "goals[0].atLeast … 1 … no test … 0.99 … onInconclusive to Warn",
    ),
    (
        Task(type=TaskType.TEXT),
        {"metric": "f1", "atLeast": "1"},
        "goals[0].atLeast … 1 … no test … 0.99 … onInconclusive to Warn",
    ),
    (Task(), {"metric": "recall", "class": "refund", "atLeast": "1"}, "goals[0].atLeast … 1 … no test … 0.99"),
    (Task(), {"metric": "accuracy", "improveOverBase": "1.0"}, "goals[0].improveOverBase … 1.0 … no test … 0.99"),
    (
        Task(),
        {"metric": "recall", "class": "refund", "atLeast": "0.99"},
        "spec.evaluation.goals[0].atLeast … 0.99 … 381 … maxSamples is 200 … raise it",
    ),
    (
        Task(),
        {"metric": "f1", "class": "refund", "atLeast": "0.995"},
        "spec.evaluation.goals[0].atLeast … 0.995 … 383 … maxSamples is 200 … raise it",
    ),
    (
        Task(),
        {"metric": "canaryLeaks", "atMost": "0.3"},
        "spec.evaluation.goals[0] … 0.3 … 8 canaries … 0.324 … spec.dataset.canaries … atMost … onInconclusive to Warn",
    ),
    (Task(), {"metric": "memorisation", "atMost": "0.4"}, "spec.evaluation.goals[0] … 0.4 … 8 canaries … 0.486"),
    *OF_TEXTS,
    (
        Task(type=TaskType.TEXT),
        {"metric": "judgeWinRate", "atLeast": "0.97"},
        "spec.evaluation.goals[0].atLeast … 0.97 … 100 pairs … 0.963 … maxExamples … onInconclusive",
    ),
]
UNMEASURED: Final = [
    ({"metric": "f1", "atLeast": "0.9"}, "f1 … earlier version … spec.rerun"),
    (
        {"metric": "f1", "improveOverBase": "0.9"},
        "f1 better than the base model's by 0.9 … earlier version … spec.rerun",
    ),
    (
        {"metric": "f1", "improveOverBase": "0.9", "baseline": "FewShot"},
        "f1 better than the few-shot base model's by 0.9 … models think … one question",
    ),
    (
        {"metric": "automation", "atLeast": "0.4", "atPrecision": "0.98"},
        "automation at precision 0.98 at least 0.4 … earlier version … spec.rerun … automation … models think",
    ),
    (
        {"metric": "forgetting", "atMost": "0.1"},
        "forgetting at most 0.1 … earlier version … spec.rerun … beside the task … must think",
    ),
    ({"metric": "judgeWinRate", "atLeast": "0.6"}, "judgeWinRate at least 0.6 … earlier version"),
    ({"metric": "leaks", "atMost": "0.1"}, "leaks at most 0.1 … earlier version … spec.rerun"),
    ({"metric": "perplexity", "atMost": "8.5"}, "perplexity at most 8.5 … earlier version … at least 4 test examples"),
    (None, "accuracy not worse than the base model's … earlier version … spec.rerun"),
]


def refusal(task: Task, goal: dict[str, Any]) -> StageError:
    with pytest.raises(StageError) as error:
        require_applicable(gates(goal), task, Examination(), canaries=8, judge=JUDGE)
    return error.value


def unmeasured(goal: dict[str, Any] | None) -> StageError:
    with pytest.raises(StageError) as error:
        judge(gates(*([goal] if goal else [])), Measurements(rows=0), TaskType.CLASSIFICATION)
    return error.value


@pytest.mark.parametrize(("task", "goal", "parts"), REFUSED)
def test_goals_that_mean_nothing(task: Task, goal: dict[str, Any], parts: str) -> None:
    error = refusal(task, goal)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, *parts.split(" … "))


@pytest.mark.parametrize(("goal", "parts"), UNMEASURED)
def test_what_was_not_measured_is_no_pass(goal: dict[str, Any] | None, parts: str) -> None:
    error = unmeasured(goal)
    assert error.reason is Reason.GATE_FAILED
    assert_says(error.message, *parts.split(" … "))


OF_CONTAINERS: Final = Measurements(
    rows=40,
    measured=[
        MeasuredMetric(metric=metric, label=label, cases=40, models={"artifact": Figure(value=0.5, low=0.4, high=0.6)})
        for metric, label in (("suite.acc", "arc_easy"), ("suite.acc", "piqa"), ("suite.score", ""))
    ],
)
UNREPORTED: Final[list[tuple[dict[str, str], tuple[str, ...]]]] = [
    ({"custom": "suite.acc", "atLeast": "0.5"}, ("measured of: arc_easy, piqa", "class")),
    ({"custom": "suite.other", "atLeast": "0.5"}, ("did not report", "spec.evaluation.metrics")),
    ({"custom": "suite.score", "improveOverBase": "0.1"}, ("measured it of artifact", "baseline")),
]


def unreported(goal: dict[str, str]) -> StageError:
    with pytest.raises(StageError) as error:
        judge(gates({"metric": "custom", **goal}), OF_CONTAINERS, TaskType.TEXT)
    return error.value


@pytest.mark.parametrize(("goal", "parts"), UNREPORTED, ids=["no part", "no figure", "no base"])
def test_a_goal_that_no_container_measured_says_what_there_is(goal: dict[str, str], parts: tuple[str, ...]) -> None:
    error = unreported(goal)
    assert error.reason is Reason.GATE_FAILED
    assert_says(error.message, f"the goal {goal['custom']}", *parts)


RUN: Final = MetricRun(
    name="suite",
    image="registry/suite@sha256:0",
    figures={"acc": FigureRule(minimum=0, maximum=1), "delay": FigureRule(higher_is_better=False, minimum=10)},
)
IMPOSSIBLE: Final[list[tuple[dict[str, str], str]]] = [
    ({"custom": "suite.acc", "atLeast": "95"}, "atLeast asks for 95 … suite.acc is never above 1 … Change the bound"),
    ({"custom": "suite.acc", "improveOverBase": "5"}, "improveOverBase asks for 5 … suite.acc is from 0 to 1"),
    ({"custom": "suite.delay", "atMost": "9.5"}, "atMost allows 9.5 … suite.delay is never below 10"),
]
POSSIBLE: Final = [
    {"custom": "suite.acc", "atLeast": "1"},
    {"custom": "suite.acc", "improveOverBase": "1.0"},
    {"custom": "suite.delay", "atMost": "10"},
    {"custom": "suite.delay", "atLeast": "1000"},
    {"custom": "suite.delay", "improveOverBase": "1000"},
    {"custom": "other.acc", "atLeast": "95"},
]


def impossible(goal: dict[str, str]) -> StageError:
    with pytest.raises(StageError) as caught:
        require_applicable(gates({"metric": "custom", **goal}), Task(), Examination(), metrics=[RUN])
    return caught.value


@pytest.mark.parametrize(("goal", "parts"), IMPOSSIBLE)
def test_what_a_containers_figure_never_is_is_refused_before_anything_is_paid_for(
    goal: dict[str, str], parts: str
) -> None:
    error = impossible(goal)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, *f"spec.evaluation.goals[0].{parts}".split(" … "))


@pytest.mark.parametrize("goal", POSSIBLE, ids=str)
def test_what_a_containers_figure_may_be_is_let_through(goal: dict[str, str]) -> None:
    require_applicable(gates({"metric": "custom", **goal}), Task(), Examination(), metrics=[RUN])


LOSSES: Final[list[tuple[dict[str, str], Examination, str]]] = [
    (
        {"metric": "forgetting", "atMost": "0.05"},
        Examination(),
        "goals[0] … 0.05 … 18 questions … 0.098 … spec.evaluation.general to Full … onInconclusive to Warn",
    ),
    (
        {"metric": "safetyLoss", "atMost": "0.10"},
        Examination(),
        "goals[0] … 0.10 … 12 questions … 0.140 … spec.evaluation.adversarial to Full … onInconclusive to Warn",
    ),
    (
        {"metric": "safetyLoss", "atMost": "0.01"},
        Examination(adversarial=Coverage.FULL),
        "goals[0] … 0.01 … 166 questions … 0.012 or less: raise atMost, or set onInconclusive to Warn",
    ),
]


def unbounded(goal: dict[str, str], asked: Examination) -> StageError:
    with pytest.raises(StageError) as caught:
        require_applicable(gates(goal), Task(), asked)
    return caught.value


@pytest.mark.parametrize(("goal", "asked", "parts"), LOSSES)
def test_a_loss_that_equal_models_do_not_show_to_be_small_is_refused(
    goal: dict[str, str], asked: Examination, parts: str
) -> None:
    error = unbounded(goal, asked)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, *f"spec.evaluation.{parts}".split(" … "))
    require_applicable(gates(goal, onInconclusive="Warn"), Task(), asked)
    require_applicable(gates(goal | {"atMost": "0.14"}), Task(), asked)


@pytest.mark.slow
def test_every_sentence_is_said() -> None:
    messages = [unreported(goal).message for goal, _ in UNREPORTED]
    messages += [refusal(task, goal).message for task, goal, _ in REFUSED]
    messages += [unmeasured(goal).message for goal, _ in UNMEASURED]
    messages += [each.goal for goals in GATES for each in judge(gates(*goals[0]), evaluated(150, 20), TaskType.TEXT)]
    messages += [each.goal for each in judge(Gates(), evaluated(0, 0), TaskType.CLASSIFICATION)]
    lost = measure(TaskType.CLASSIFICATION, TRUTH, {"tuned": TRUTH, "artifact": ["x"] * 20 + TRUTH[20:]}, [])
    messages += [lost_by_export(lost, TaskType.CLASSIFICATION, others) for others in ([], [beside(lost)])]
    near = Distances(long=False, texts=8, tuned_base=0.0, artifact_base=0.0, artifact_tuned=0.0)
    for distances in ([near], [near.model_copy(update={"texts": 0})]):
        measured = evaluated(9, 9).model_copy(update={"distances": distances})
        messages.append(same_as_base(measured, TaskType.CLASSIFICATION))
    messages.append(computes_no_numbers(evaluated(9, 9).model_copy(update={"without_numbers": 2})))
    messages += [unbounded(goal, asked).message for goal, asked, _ in LOSSES]
    messages += [impossible(goal).message for goal, _ in IMPOSSIBLE]
    messages.append(no_better_than_base(evaluated(9, 9), TaskType.CLASSIFICATION))
    for module in ("applicable", "gates"):
        assert unsaid(f"finetune_jobs.evaluation.{module}", messages) == []


def test_a_loss_that_no_format_avoids_has_another_remedy() -> None:
    lost = measure(TaskType.CLASSIFICATION, TRUTH, {"tuned": TRUTH, "artifact": ["x"] * 20 + TRUTH[20:]}, [])
    assert_says(lost_by_export(lost, TaskType.CLASSIFICATION), "accuracy -0.1000", "onRegression to FallBack")
    assert_says(lost_by_export(lost, TaskType.CLASSIFICATION, [beside(lost)]), "no other format holds it")
    broken = beside(evaluated(9, 9)).model_copy(update={"without_numbers": 2})
    assert_says(lost_by_export(lost, TaskType.CLASSIFICATION, [broken]), "no other format holds it")


def between(least: str, most: str, second: str = "a.b") -> dict[str, Any]:
    about = (
        {"metric": "custom", "custom": "a.b", "atLeast": least},
        {"metric": "custom", "custom": second, "atMost": most},
    )
    return {"metrics": [{"name": "a"}], "goals": about}


def test_goals_that_no_figure_meets_both_contradict_each_other() -> None:
    with pytest.raises(
        ValidationError, match="contradict each other: nothing is at least atLeast and at most a smaller"
    ):
        Evaluation.model_validate(between("0.9", "0.5"))
    for given in (between("0.5", "0.9"), between("0.9", "0.5", "a.c"), between("0.9", "10.5")):
        assert len(Evaluation.model_validate(given).goals) == 2


@pytest.mark.parametrize("given", [{}, {"atLeast": "0.9", "improveOverBase": "0.1"}])
def test_a_goal_has_one_bound(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of atLeast, improveOverBase and atMost must be set"):
        Goal.model_validate({"metric": "f1"} | given)


@pytest.mark.parametrize(
    "given",
    [
        {"metric": "forgetting", "atLeast": "0.9"},
        {"metric": "leaks", "improveOverBase": "0.1"},
        {"metric": "accuracy", "atMost": "0.1"},
        {"metric": "perplexity", "atLeast": "0.9"},
    ],
)
def test_what_must_stay_low_has_an_upper_bound_and_nothing_else(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"take atMost, and no other metric does|improveOverBase goes with"):
        Goal.model_validate(given)


@pytest.mark.parametrize("given", [{"metric": "perplexity", "atMost": "0.9"}, {"metric": "leaks", "atMost": "1.1"}])
def test_only_a_perplexity_is_above_1(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"atMost is a share of 1.* of perplexity, which is never below 1"):
        Goal.model_validate(given)


@pytest.mark.parametrize("bound", ["atLeast", "improveOverBase"])
def test_only_a_custom_figure_is_above_1(bound: str) -> None:
    with pytest.raises(ValidationError, match=r"shares of 1, e.g. 0.95; only those of a custom figure"):
        Goal.model_validate({"metric": "accuracy", bound: "95"})
    assert Goal.model_validate({"metric": "custom", "custom": "style.score", bound: "7.5"}).bound == 7.5


def test_a_goal_about_questions_that_are_not_asked_contradicts_itself() -> None:
    for metric, named, field in (
        ("forgetting", "forgetting or forgettingNll", "general"),
        ("leaks", "leaks", "adversarial"),
    ):
        goals = [{"metric": "f1", "atLeast": "0.5"}, {"metric": metric, "atMost": "0.9"}]
        with pytest.raises(ValidationError, match=f"{named} needs {field}, which is Off: set it to Sample or Full"):
            Evaluation.model_validate({"goals": goals, field: "Off"})
        assert Evaluation.model_validate({"goals": goals}).general is Coverage.SAMPLE


def test_what_the_test_may_leave_open_needs_no_more_questions() -> None:
    found = gates({"metric": "accuracy", "atLeast": "0.99"}, onInconclusive="Warn")
    require_applicable(found, Task(), Examination())
    more = {"metric": "automation", "atLeast": "0.4", "atPrecision": "0.98"}, {"metric": "leaks", "atMost": "0.2"}
    require_applicable(gates(*more), Task(), Examination(adversarial=Coverage.FULL))


FLAWLESS: Final[list[tuple[Task, dict[str, Any], bool]]] = [
    (Task(), {"metric": "accuracy", "atLeast": "0.981"}, True),
    (Task(), {"metric": "automation", "atLeast": "0.98", "atPrecision": "0.9"}, True),
    (Task(), {"metric": "f1", "class": "refund", "atLeast": "0.99"}, True),
    (Task(), {"metric": "precision", "class": "refund", "atLeast": "0.981"}, True),
    (Task(), {"metric": "accuracy", "atLeast": "0.982"}, False),
    (Task(), {"metric": "f1", "class": "refund", "atLeast": "0.991"}, False),
    (Task(), {"metric": "f1", "atLeast": "1"}, False),
    (Task(), {"metric": "recall", "atLeast": "1"}, False),
    (Task(type=TaskType.EXTRACTION), {"metric": "precision", "atLeast": "1"}, False),
    (Task(), {"metric": "accuracy", "improveOverBase": "1"}, False),
]


@pytest.mark.parametrize(("task", "goal", "reachable"), FLAWLESS)
def test_what_is_refused_is_what_200_flawless_answers_do_not_show(
    task: Task, goal: dict[str, Any], reachable: bool
) -> None:
    """Against a base model that is always wrong; of the class, if it is asked for one, all 200 rows are."""
    truth = ["refund"] * 200 if "class" in goal else TRUTH
    found = measure(task.type, truth, {"base": ["x"] * 200, "artifact": truth}, ["refund", "parcel", "other"])
    taken = [Weighed(0.0, right=True)] * 200
    (judged,) = judge(gates(goal), found.model_copy(update={"automation": automate(taken * 9, taken)}), task.type)
    assert (judged.outcome is GateOutcome.PASS) is reachable
    if reachable:
        require_applicable(gates(goal), task, Examination())
    else:
        assert refusal(task, goal).reason is Reason.SPEC_INVALID


def test_automation_is_of_the_artifact_alone() -> None:
    with pytest.raises(ValidationError, match="improveOverBase goes with accuracy, f1, precision, recall"):
        Goal.model_validate({"metric": "automation", "improveOverBase": "0.1"})


def test_goals_that_apply_are_let_through() -> None:
    goal = {"metric": "recall", "class": "refund", "atLeast": "0.9"}
    require_applicable(gates(goal), Task(labels=["refund", "parcel"]), Examination())
    require_applicable(gates({"metric": "f1", "atLeast": "0.5"}), Task(type=TaskType.TEXT), Examination())
    require_classes(gates(goal), ["refund"])
    with pytest.raises(StageError, match="not one of the 3 labels"):
        judge(gates(goal | {"class": "Spam"}), evaluated(9, 9), TaskType.CLASSIFICATION)


GATES: Final[list[tuple[list[dict[str, str]], str, str]]] = [
    ([{"metric": "accuracy", "atLeast": "0.84"}], "Pass", "Met accuracy at least 0.84: 0.9000 … 0.8506 to 0.9343"),
    ([{"metric": "accuracy", "atLeast": "0.95"}], "Fail", "Missed accuracy at least 0.95: 0.9000 … 0.8506 to 0.9343"),
    (
        [{"metric": "accuracy", "atLeast": "0.92"}],
        "Inconclusive",
        "Too few test examples for accuracy at least 0.92: 0.9000 … about 590 would decide",
    ),
    ([{"metric": "accuracy", "atLeast": "0.9"}], "Inconclusive", "Too few … many more would decide"),
    (
        [{"metric": "accuracy", "improveOverBase": "0.5"}],
        "Pass",
        "Met accuracy better than the base model's by 0.5: 0.6500",
    ),
    (
        [{"metric": "accuracy", "improveOverBase": "0.5", "baseline": "FewShot"}],
        "Fail",
        "Missed accuracy better than the few-shot base model's by 0.5: 0.1500",
    ),
    ([{"metric": "f1", "improveOverBase": "0.9"}], "Fail", "Missed f1 better than the base model's by 0.9"),
]
CLASSES: Final = [
    ("recall", "0.6", "Pass"),
    ("recall", "0.99", "Fail"),
    ("recall", "0.9", "Inconclusive"),
    ("precision", "0.9", "Pass"),
]


@pytest.mark.parametrize(("goals", "outcome", "parts"), GATES)
def test_what_a_gate_says(goals: list[dict[str, str]], outcome: str, parts: str) -> None:
    """Of an artifact that is right in 180 of 200, and a base model that is in 50."""
    (found,) = judge(gates(*goals), evaluated(150, 20), TaskType.CLASSIFICATION)
    assert found.outcome == outcome
    assert_says(found.sentence, *parts.split(" … "))


@pytest.mark.parametrize(("metric", "bound", "outcome"), CLASSES)
def test_a_gate_of_one_class(metric: str, bound: str, outcome: str) -> None:
    """5 of 50 refunds are missed by the artifact, and nothing else is taken for one."""
    (found,) = judge(
        gates({"metric": metric, "class": "refund", "atLeast": bound}), evaluated(150, 20), TaskType.CLASSIFICATION
    )
    assert (found.outcome, found.goal) == (outcome, f"{metric} of 'refund' at least {bound}")


@pytest.mark.parametrize(
    ("base", "artifact", "outcome"), [(150, 20, "Pass"), (20, 20, "Pass"), (20, 25, "Pass"), (20, 40, "Fail")]
)
@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.TEXT])
def test_without_goals_the_artifact_must_not_be_worse_than_its_base(
    base: int, artifact: int, outcome: str, task: TaskType
) -> None:
    (found,) = judge(Gates(), evaluated(base, artifact, task), task)
    assert found.outcome == outcome


@pytest.mark.parametrize(
    ("base", "artifact", "said"),
    [
        (200, 200, "is not better than its base model beyond chance: accuracy +0.0 points"),
        (100, 97, "is not better than its base model beyond chance: accuracy +1.5 points"),
        (100, 20, ""),
    ],
    ids=["nothing right", "within chance", "better"],
)
def test_an_artifact_that_is_no_better_than_its_base_is_told_from_one_that_is(
    base: int, artifact: int, said: str
) -> None:
    found = no_better_than_base(evaluated(base, artifact), TaskType.CLASSIFICATION)
    assert said in found
    assert bool(found) is bool(said)
    assert not found or "set spec.evaluation.goals" in found


def test_what_is_open_blocks_unless_it_is_to_warn() -> None:
    found = judge(gates(*(each[0][0] for each in GATES)), evaluated(150, 20), TaskType.CLASSIFICATION)
    assert [each.outcome for each in blocking(found, OnInconclusive.WARN)] == [GateOutcome.FAIL] * 3
    assert len(blocking(found, OnInconclusive.BLOCK)) == 5
    newer = [found[0].model_copy(update={"outcome": GateOutcome("Perhaps")})]
    assert blocking(newer, OnInconclusive.WARN) == newer
