"""A metric container of the platform measures the answers of an evaluation, in the evaluation's own restricted pod."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_api.gates import GateOutcome, GoalStatus
from finetune_api.job_status import Phase
from finetune_api.meta import LABEL_OWNER_NAME, LABEL_STAGE
from finetune_api.stages import Stage
from hack.cluster.images import references
from hack.cluster.provider import provider
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, wait_for
from hack.platform.tiny import tiny_job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

QUESTIONS = 3
"""Of 40, as the image has, a third cannot be right."""
CONTAINER = "metric-brevity"
EVALUATION = {
    "maxSamples": 10,
    "goldenPrompts": 2,
    "general": "Off",
    "adversarial": "Off",
    "metrics": [{"name": "brevity", "parameters": [{"name": "words", "value": "40"}]}],
    "goals": [
        {"metric": "custom", "custom": "brevity.brief", "atLeast": "0.5"},
        {"metric": "custom", "custom": "brevity.words", "atMost": "40"},
    ],
}
"""An answer has no more tokens than the longest label, so each is brief, whatever the model has learnt."""


def test_what_a_container_measures_becomes_goals(team: Kubectl) -> None:
    team.apply(tiny_job(name_in(team), evaluation=EVALUATION))
    brief, words = wait_for("the goals", lambda: goals(team), 1600)
    assert (brief.outcome, words.outcome) == (GateOutcome.PASS, GateOutcome.PASS), [brief.sentence, words.sentence]
    assert (float(brief.value), 0 <= float(words.value) <= 40) == (1.0, True)
    [pod] = team.items("pods", f"{LABEL_OWNER_NAME}={name_in(team)},{LABEL_STAGE}={Stage.EVALUATE}")
    [ended] = [each for each in pod["status"]["initContainerStatuses"] if each["name"] == CONTAINER]
    assert ended["state"]["terminated"]["exitCode"] == 0
    [asked] = [each for each in pod["spec"]["initContainers"] if each["name"] == CONTAINER]
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in asked["volumeMounts"]} == {
        "/metrics/in": True,
        "/metrics/out": False,
        "/tmp": False,  # a volume
    }, "no token, no scratch of the stage, no models"
    assert "secretKeyRef" not in str(asked["env"])


@pytest.fixture
def with_lm_eval(team: Kubectl) -> Iterator[Kubectl]:
    """A namespace of this test's own, and an operator that offers lm-eval."""
    store = provider().images()
    if not store.has(references(store.base_image())["lm-eval"]):
        pytest.skip("the image lm-eval is not built: `make images-metrics`")
    local.install_lm_eval(team)
    yield team
    local.install_operator(team)


def test_lm_eval_asks_both_models_questions_from_a_bucket(with_lm_eval: Kubectl, tmp_path: Path) -> None:
    """With files of the models, and with others than the image's questions."""
    questions = tmp_path / "test.jsonl"
    rows = [
        {"question": f"How much is {n} and 1?", "choices": [str(n + 1), "0"], "answer": 0} for n in range(QUESTIONS)
    ]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    object_store.upload(with_lm_eval, questions, "datasets", "questions/sums/test.jsonl")
    metric = {
        "name": "lm-eval",
        "parameters": [{"name": "tasks", "value": "sums"}],
        "data": {"uri": "s3://datasets/questions"},
    }
    # Random models choose at random: any figure will do.
    goal = {"metric": "custom", "custom": "lm-eval.acc", "class": "sums", "atLeast": "0"}
    with_lm_eval.apply(tiny_job(name_in(with_lm_eval), evaluation=EVALUATION | {"metrics": [metric], "goals": [goal]}))
    [found] = wait_for("the goal", lambda: goals(with_lm_eval), 1600)
    assert found.outcome == GateOutcome.PASS, found.sentence
    assert found.value in {f"{right / QUESTIONS:.4f}" for right in range(QUESTIONS + 1)}, found.sentence


def name_in(team: Kubectl) -> str:
    """Of the FineTuneJob, and of what it publishes: the store remembers whose a name is."""
    return f"measured-{team.namespace}"


def goals(team: Kubectl) -> list[GoalStatus]:
    """What the evaluation says of them, once it does. Fails the test if the run ends before."""
    status = FineTuneJob.model_validate(team.get("ftj", name_in(team))).status
    if status.evaluation:
        return status.evaluation.goals
    assert status.phase is not Phase.FAILED, [each.message for each in status.conditions]
    return []
