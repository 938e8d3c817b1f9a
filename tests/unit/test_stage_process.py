"""A stage as its container runs it: exit codes, results and log lines, with good keys and wrong ones."""

import json
import re
from pathlib import Path

import pytest

from finetune_api.layout import (
    REPORTS_INDEX,
    run_folder,
)
from finetune_api.meta import ExitCode
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import Outcome, Stage, StageInput
from finetune_api.storage import Storage
from finetune_jobs.store.s3 import Store
from tests.support.first_stages import given
from tests.support.seaweedfs import ADMIN, READER, STRANGER, SeaweedFS, User
from tests.support.sentences import assert_says
from tests.support.stages import RUN, run_process

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize(
    ("stage", "user", "message"),
    [
        (Stage.RESOLVE, STRANGER, "reading {place}/out/owners/transactions.json failed: "),
        (Stage.RESOLVE, READER, "conditional put of {place}/out/runs/transactions/0b8a/probe-"),
        (Stage.PREPARE, READER, "writing {place}/out/datasets/"),
    ],
)
def test_wrong_keys_end_the_process_for_good(
    s3: SeaweedFS, stocked: Store, place: str, tmp_path: Path, stage: Stage, user: User, message: str
) -> None:
    ended = run_process(given(stocked, stage, s3.storage), tmp_path, user)
    assert (ended.code, ended.result.outcome, ended.result.reason) == (
        ExitCode.FATAL,
        Outcome.FAILED,
        Reason.S3_ACCESS_DENIED,
    )
    assert ended.result.message.startswith(message.format(place=place))
    assert_says(ended.result.message, "the store", "credentials (")
    assert REMEDIES[Reason.S3_ACCESS_DENIED] not in ended.result.message, "the operator appends it"


def test_the_process_writes_a_result_and_json_lines(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    ended = run_process(given(stocked, Stage.PREPARE, s3.storage), tmp_path, ADMIN)
    assert (ended.code, ended.result.outcome) == (ExitCode.OK, Outcome.SUCCEEDED)
    assert ended.log[-1]["message"] == f"StageSucceeded: {ended.result.message}"
    assert {"time", "level", "stage", "logger", "message"} <= ended.log[0].keys()
    assert ended.result.output_digest.encode() in (stocked.get(f"out/{run_folder(RUN)}/{REPORTS_INDEX}") or b"")


def test_the_documented_input_runs(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/prepare-data.md").read_text(encoding="utf-8")
    document = json.loads(re.findall(r"```json\n(\{\n.*?)```", page, re.DOTALL)[-1])
    document["storage"]["endpoint"] = s3.endpoint
    document["output"]["uri"] = stocked.uri("out")
    document["baseModelUri"] = stocked.uri("model")
    document["params"]["prepare"]["dataset"]["sources"] = [{"uri": stocked.uri("rows.csv")}]
    ended = run_process(StageInput.model_validate(document), tmp_path, ADMIN)
    assert (ended.code, ended.result.scalars["rowsTrain"]) == (ExitCode.OK, "240")


def test_a_store_that_is_away_is_worth_a_retry(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    ended = run_process(given(stocked, Stage.PREPARE, Storage(endpoint="http://127.0.0.1:9")), tmp_path, ADMIN)
    assert (ended.code, ended.result.reason) == (ExitCode.RETRIABLE, Reason.S3_UNREACHABLE)
