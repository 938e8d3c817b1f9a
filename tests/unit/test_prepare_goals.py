"""Goals that the prepared data cannot show: prepare refuses them, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.gates import Gates
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput
from finetune_jobs.base.errors import StageError
from finetune_jobs.prepare import prepare
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.first_stages import given
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def asked(s3: SeaweedFS, stocked: Store, *goals: dict[str, Any], **more: Any) -> StageInput:
    """What prepare is asked: 300 rows of three classes, of which a tenth are for the test."""
    found = given(stocked, Stage.PREPARE, s3.storage)
    assert found.params.publish
    publish = found.params.publish.model_copy(update={"gates": Gates.model_validate({"goals": goals} | more)})
    return found.model_copy(update={"params": found.params.model_copy(update={"publish": publish})})


@pytest.mark.parametrize(
    ("goal", "parts"),
    [
        (
            {"metric": "accuracy", "atLeast": "0.95"},
            "goals[0].atLeast asks for 0.95, but it takes 73 flawless answers … test examples … there are 30",
        ),
        (
            {"metric": "recall", "class": "b", "atLeast": "0.9"},
            "goals[0].atLeast asks for 0.9, but it takes 35 flawless answers … class 'b' … there are 10",
        ),
    ],
)
def test_a_goal_that_the_test_part_cannot_show_ends_prepare(
    s3: SeaweedFS, stocked: Store, tmp_path: Path, goal: dict[str, Any], parts: str
) -> None:
    with pytest.raises(StageError) as refused:
        execute(context(asked(s3, stocked, goal), tmp_path), prepare)
    assert refused.value.reason is Reason.SPEC_INVALID
    assert_says(refused.value.message, *parts.split(" … "), "raise spec.dataset.split.testPercent")


def test_a_goal_that_it_can_show_or_may_leave_open_does_not(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    within = {"metric": "recall", "class": "b", "atLeast": "0.5"}
    made = execute(context(asked(s3, stocked, within), tmp_path), prepare)
    beyond = asked(s3, stocked, {"metric": "accuracy", "atLeast": "0.95"}, onInconclusive="Warn")
    again = execute(context(beyond.model_copy(update={"reuse": False}), tmp_path), prepare)
    assert again.output_digest == made.output_digest
    assert stocked.get(f"out/{output_folder(Stage.PREPARE, made.output_digest)}/manifest.json")
