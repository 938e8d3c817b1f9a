"""Another model as a baseline: what it is asked, what becomes of its answers, and what the report says of it."""

import threading
from typing import Any, Final

import pytest
from pydantic import ValidationError

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Evaluation
from finetune_api.gates import GateOutcome, Gates
from finetune_api.judging import OtherModel
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.chat_api.answer_collector import AnswerSource
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.terms import Terms
from finetune_jobs.evaluation.elsewhere import ask_elsewhere
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.page import EvaluationSubject
from finetune_jobs.evaluation.report import Evaluated
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.store.s3 import Store
from tests.support.distilling import QUICK
from tests.support.evaluation_pages import evaluation_html
from tests.support.readiness import Parsed
from tests.support.sentences import assert_says
from tests.support.stages import RUN
from tests.support.teacher_server import Behaviour, Reply, TeacherServer, fails, says

pytestmark = [pytest.mark.unit, pytest.mark.slow]

TRUTH: Final = ["a", "b"] * 50


def example(text: str, answer: str = "a") -> Conversation:
    return Conversation(
        [
            {"role": "system", "content": "Answer a or b."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]
    )


SHOTS: Final = [example("shown", "b")]


def asked_at(url: str, store: Store) -> AnswerSource:
    endpoint = OtherModel.model_validate({"endpoint": {"url": url, "model": "large"}}).endpoint
    terms = Terms(endpoint, "model of spec.evaluation.baseline", "spec.evaluation.baseline", "", max_answer_tokens=64)
    return AnswerSource(terms, ChatModel(terms), Journal.of(store, RUN, "baseline", terms.recipe), QUICK)


@pytest.mark.slow
def test_it_sees_what_the_base_model_sees_and_is_paid_once(store: Store) -> None:
    rows = [example(f"question {n % 3}") for n in range(4)]
    with TeacherServer.running(lambda prompt, _nth: says(f"It is {prompt[-1]}.")) as server:
        found = [ask_elsewhere(rows, SHOTS, asked_at(server.url, store), None, threading.Event()) for _ in range(2)]
        bodies = [each.body for each in server.received]
    assert found == [["It is 0.", "It is 1.", "It is 2.", "It is 0."]] * 2
    assert len(bodies) == 3
    assert [(turn["role"], turn["content"]) for turn in bodies[0]["messages"]][:3] == [
        ("system", "Answer a or b."),
        ("user", "shown"),
        ("assistant", "b"),
    ]


@pytest.mark.slow
def test_what_it_will_not_take_is_wrong_and_what_it_does_not_answer_is_asked_again(store: Store) -> None:
    rows = [example("fine"), example("too long")]

    def refusing(prompt: str, _nth: int) -> Reply:
        return fails(400, code="context_length_exceeded") if prompt == "too long" else says("a")

    with TeacherServer.running(refusing) as server:
        assert ask_elsewhere(rows, [], asked_at(server.url, store), None, threading.Event()) == ["a", ""]

    def broken(prompt: str, _nth: int) -> Reply:
        return fails(500) if prompt == "too long" else says("a")

    with TeacherServer.running(broken) as server, pytest.raises(StageError) as error:
        ask_elsewhere(rows, SHOTS, asked_at(server.url, store), None, threading.Event())
    assert (error.value.reason, error.value.retriable) == (Reason.TEACHER_UNAVAILABLE, True)
    assert_says(error.value.message, "1 of 2 test examples", "answered 500", "same ones", "kept")


@pytest.mark.slow
def test_examples_with_tools_are_not_asked(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    never: Behaviour = lambda _prompt, _nth: fails(500)  # noqa: E731
    with TeacherServer.running(never) as server:
        with_tools = Conversation(example("x").messages, [{"type": "function"}])
        assert ask_elsewhere([example("x"), with_tools], [], asked_at(server.url, store), None, threading.Event()) == []
        assert server.received == []
    assert_says(caplog.text, "spec.evaluation.baseline is not asked", "tools")


def evaluated(elsewhere: int) -> Evaluated:
    """So many of 100 right answers of the other model; the artifact has 80."""
    wrong = {"base": 100, "endpoint": 100 - elsewhere, "tuned": 20, "artifact": 20}
    answers = {model: ["x"] * count + TRUTH[count:] for model, count in wrong.items()}
    return Evaluated.of(TaskType.CLASSIFICATION, TRUTH, answers, ["a", "b"])


@pytest.mark.parametrize(
    ("right", "parts", "badge"),
    [
        (40, "Another model would not have been enough … +40.0", "✓ no"),
        (78, "Another model may do as well … +2.0 … within chance", "! perhaps"),
        (97, "Another model does better … -17.0", "✕ yes"),
    ],
)
def test_the_report_says_whether_another_model_would_have_done(right: int, parts: str, badge: str) -> None:
    found = evaluated(right)
    assert found.prompting() == ""
    assert_says(found.summary(), *parts.split(" … "))
    page = Parsed(evaluation_html(found, ["?"] * 100, EvaluationSubject())).text
    assert f"{badge}Would another model have been enough?" in page


def test_a_goal_can_ask_to_beat_it() -> None:
    def gate(bound: str) -> GateOutcome:
        goals: list[dict[str, Any]] = [{"metric": "accuracy", "improveOverBase": bound, "baseline": "Endpoint"}]
        [found] = judge(Gates.model_validate({"goals": goals}), evaluated(40).measurements, TaskType.CLASSIFICATION)
        assert found.goal == f"accuracy better than the other model's by {bound}"
        return found.outcome

    assert (gate("0.2"), gate("0.6")) == (GateOutcome.PASS, GateOutcome.FAIL)


def test_a_goal_about_a_model_that_could_not_be_asked_says_why() -> None:
    answers = dict.fromkeys(("base", "tuned", "artifact"), TRUTH)
    found = Evaluated.of(TaskType.CLASSIFICATION, TRUTH, answers, ["a", "b"]).measurements
    goals: list[dict[str, Any]] = [{"metric": "accuracy", "improveOverBase": "0.1", "baseline": "Endpoint"}]
    with pytest.raises(StageError) as error:
        judge(Gates.model_validate({"goals": goals}), found, TaskType.CLASSIFICATION)
    assert_says(error.value.message, "the other model's by 0.1", "spec.evaluation.baseline is not asked", "tools")


def test_a_goal_about_another_model_needs_one() -> None:
    goals = [{"metric": "f1", "improveOverBase": "0.1", "baseline": "Endpoint"}]
    with pytest.raises(ValidationError, match="needs baseline"):
        Evaluation.model_validate({"goals": goals})
    other = {"endpoint": {"url": "http://large/v1", "model": "m"}}
    assert Evaluation.model_validate({"goals": goals, "baseline": other}).examination.baseline is not None
