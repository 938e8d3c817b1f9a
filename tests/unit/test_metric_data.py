"""The files that metric containers read: what identifies them, which are taken, and how they come into the volume."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.custom_metrics import FigureRule, MetricData, MetricRun
from finetune_api.dataset import Task
from finetune_api.evaluation import Evaluation
from finetune_api.finetunejob import Output
from finetune_api.gates import Gates
from finetune_api.reasons import Reason
from finetune_api.stages import EvaluateParams, Params, Stage, StageInput, Upstream, input_key
from finetune_jobs.artifacts import model_card
from finetune_jobs.artifacts.artifact import Metrics
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.custom.data import data_digest, fetch_data
from finetune_jobs.resolve import resolve
from finetune_jobs.runtime.runner import Context, execute
from finetune_jobs.store.copyable import MAX_BYTES, MAX_FILES, require_copyable
from finetune_jobs.store.s3 import Store, StoredObject
from tests.support.first_stages import given
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says, unsaid
from tests.support.stages import RUN, Lent, context, model_ref

pytestmark = pytest.mark.unit

QUESTIONS: Final = {"sums/sums.yaml": b"task: sums", "sums/test.jsonl": b'{"question": "1+1"}\n', "empty.txt": b""}
FIELD: Final = "spec.evaluation.metrics, 'suite', data.uri"


def run(uri: str, name: str = "suite") -> MetricRun:
    return MetricRun(name=name, image="i@sha256:0", figures={"acc": FigureRule()}, data=MetricData(uri=uri))


@pytest.fixture
def questions(store: Store) -> Store:
    """A folder in a real store, as consoles and people leave them."""
    place = store.below("questions")
    for name, content in QUESTIONS.items():
        place.put(name, content)
    store.put("questions-of-others/test.jsonl", b"{}")
    return place


def asking(s3: SeaweedFS, tmp_path: Path, runs: list[MetricRun], digest: str) -> Context:
    """The part of an evaluation that hands over; ``digest``: what resolve told."""
    output, chain = Output(uri="s3://data/out", name="made"), Upstream(metrics=digest)
    asked = StageInput(stage=Stage.EVALUATE, run=RUN, storage=s3.storage, output=output, upstream=chain)
    return context(asked.model_copy(update={"hands_over": runs}), tmp_path)


@pytest.mark.slow
def test_the_files_of_a_folder_come_with_their_hashes(s3: SeaweedFS, questions: Store, tmp_path: Path) -> None:
    runs = [run(questions.uri()), MetricRun(name="other", image="i", figures={})]
    digest = data_digest(Lent(questions), runs)
    assert len(digest) == 64
    copied = fetch_data(asking(s3, tmp_path, runs, digest), runs, tmp_path / "data")
    assert list(copied) == ["suite"]
    folder = tmp_path / "data" / "suite"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == QUESTIONS
    told = copied["suite"]
    assert (told.path, told.uri, told.files, told.size) == ("/metrics/data", questions.uri(), 3, 30)
    again = fetch_data(asking(s3, tmp_path, runs, digest), runs, tmp_path / "again")
    assert again["suite"].sha256 == told.sha256 != digest
    assert data_digest(Lent(questions), runs[1:]) == ""


@pytest.mark.slow
def test_other_bytes_under_the_same_name_are_another_evaluation(
    s3: SeaweedFS, questions: Store, tmp_path: Path
) -> None:
    runs = [run(questions.uri())]
    before = data_digest(Lent(questions), runs)
    questions.put("sums/test.jsonl", b'{"question": "1+2"}\n')
    after = data_digest(Lent(questions), runs)
    assert key(runs, before) != key(runs, after)
    assert key([run("s3://data/elsewhere")], before) != key(runs, before)
    with pytest.raises(StageError) as error:
        fetch_data(asking(s3, tmp_path, runs, before), runs, tmp_path / "data")
    assert error.value.reason is Reason.METRIC_DATA_NOT_FOUND
    assert_says(error.value.message, "this run started with is gone", "spec.rerun")
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_resolve_tells_which_files_a_run_starts_with(
    s3: SeaweedFS, stocked: Store, questions: Store, tmp_path: Path
) -> None:
    asked, runs = given(stocked, Stage.RESOLVE, s3.storage), [run(questions.uri())]
    assert "metricsDigest" not in execute(context(asked, tmp_path), resolve).scalars
    evaluating = asked.params.evaluate
    assert evaluating is not None
    params = asked.params.model_copy(update={"evaluate": evaluating.model_copy(update={"metrics": runs})})
    found = execute(context(asked.model_copy(update={"params": params}), tmp_path), resolve)
    assert found.scalars["metricsDigest"] == data_digest(Lent(questions), runs)


@pytest.mark.slow
def test_resolve_refuses_a_goal_that_a_figure_cannot_meet(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    asked = given(stocked, Stage.RESOLVE, s3.storage)
    goals = Gates.model_validate({"goals": [{"metric": "custom", "custom": "suite.acc", "atLeast": "95"}]})
    share = MetricRun(name="suite", image="i@sha256:0", figures={"acc": FigureRule(minimum=0, maximum=1)})
    params, publishing, evaluating = asked.params, asked.params.publish, asked.params.evaluate
    assert publishing is not None
    assert evaluating is not None
    params = params.model_copy(
        update={
            "publish": publishing.model_copy(update={"gates": goals}),
            "evaluate": evaluating.model_copy(update={"metrics": [share]}),
        }
    )
    with pytest.raises(StageError, match=r"goals\[0\]\.atLeast asks for 95") as error:
        execute(context(asked.model_copy(update={"params": params}), tmp_path), resolve)
    assert error.value.reason is Reason.SPEC_INVALID


def test_the_model_card_names_what_was_read() -> None:
    served = model_ref()
    metrics = Metrics.model_validate({"goldenPrompts": 2, "scalars": {}})

    def card(runs: list[MetricRun]) -> str:
        alone = EvaluateParams(evaluation=Evaluation().examination, task=Task(), method="LoRA", metrics=runs)
        chain = Upstream(evaluation="6" * 64, metrics="7" * 64 if runs else "")
        asked = StageInput(stage=Stage.PUBLISH, run=RUN, params=Params(evaluate=alone), upstream=chain)
        return model_card.render(asked, served, {}, {}, metrics, 8)

    row = f"| evaluation | `{'6' * 64}` |\n"
    assert f"{row}| data of suite `s3://data/tasks` | `{'7' * 64}` |\n\nMade by" in card([run("s3://data/tasks")])
    assert f"{row}\nMade by" in card([])


def key(runs: list[MetricRun], metrics: str) -> str:
    alone = EvaluateParams(evaluation=Evaluation().examination, task=Task(), method="LoRA", metrics=runs)
    chain = Upstream(model="1", dataset="2", adapter="3", export="4", metrics=metrics)
    return input_key(Stage.EVALUATE, chain, Params(evaluate=alone))


def test_without_data_the_key_is_as_it_was() -> None:
    """Whatever the data of another evaluation of the run is: that of the answers alone is found again."""
    plain = run("s3://data/x").model_copy(update={"data": None})
    assert key([plain], "5") == key([plain], "")
    assert key([], "5") == key([], "")
    with pytest.raises(ValueError, match="no metrics yet"):
        key([run("s3://data/x")], "")


@pytest.mark.slow
def test_a_folder_without_files_and_a_bucket_that_is_missing(store: Store) -> None:
    with pytest.raises(StageError) as empty:
        data_digest(Lent(store), [run(store.uri("nothing"))])
    assert empty.value.reason is Reason.METRIC_DATA_NOT_FOUND
    assert_says(empty.value.message, FIELD, "nothing contains no files")
    with pytest.raises(StageError) as missing:
        data_digest(Lent(store), [run("s3://no-such-bucket/tasks")])
    assert missing.value.reason is Reason.BUCKET_NOT_FOUND


def entries(*keys: str, size: int = 1) -> list[StoredObject]:
    return [StoredObject(f"s3://b/t/{key}", key, size, "e") for key in keys]


REFUSED: Final[dict[str, Callable[[], list[StoredObject]]]] = {
    "more than 10,000 files … fewer, larger files": lambda: entries(*map(str, range(MAX_FILES + 1))),
    "4.5 GiB; at most 4 GiB … Name a smaller folder": lambda: entries("a", size=MAX_BYTES * 9 // 8),
    "'../answers.jsonl', which cannot be a file's path": lambda: entries("a", "../answers.jsonl"),
    "'a/./b', which cannot": lambda: entries("a/./b"),
    "'a//b', which cannot": lambda: entries("a//b"),
    "'a/b', which cannot": lambda: entries("a", "a/b"),
    "which cannot be a file's path. Rename it": lambda: entries("n" * 256),
    "'a\\\\b', which cannot": lambda: entries("a\\b"),
    "'a b', which cannot": lambda: entries("a\nb"),
}


@cache
def said(case: str) -> str:
    with pytest.raises(StageError) as error:
        require_copyable("s3://b/t", REFUSED[case](), FIELD)
    assert error.value.reason is Reason.SPEC_INVALID
    return error.value.message


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_copied_is_refused(case: str) -> None:
    assert_says(said(case), FIELD, *case.split(" … "))


def test_what_can_be_copied_is_taken() -> None:
    require_copyable("s3://b/t", entries("a", "b/c", "b/d", "ä b.txt", ".hidden"), FIELD)
    require_copyable("s3://b/t", entries("a", size=MAX_BYTES), FIELD)


def test_every_sentence_about_what_is_refused_is_provoked_here() -> None:
    changed_and_empty: list[Any] = [
        "The version of s3://b/t that this run started with is gone: its files have changed. Set spec.rerun to a new "
        "value to use the new version.",
        f"{FIELD}: s3://b/t contains no files.",
    ]  # the two tests with a store
    assert unsaid("finetune_jobs.evaluation.custom.data", changed_and_empty) == []
    assert unsaid("finetune_jobs.store.copyable", [*map(said, REFUSED)]) == []
