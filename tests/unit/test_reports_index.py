"""The index of a run: it links every report that is there, made or reused."""

import logging
from pathlib import Path
from posixpath import join, normpath

import pytest

from finetune_api.finetunejob import Output
from finetune_api.layout import (
    CURVE_PAGE,
    EVALUATION_PAGE,
    READINESS_PAGE,
    REPORTS_INDEX,
    REVIEW_PAGE,
    output_folder,
    run_folder,
)
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageInput, StageResult, Upstream
from finetune_jobs.artifacts.artifact import MODEL_CARD
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.base.errors import StageError
from finetune_jobs.reports.index import index_stage, render_index, reports_of, write_index
from finetune_jobs.store.s3 import Store
from tests.support.readiness import Parsed
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN, context, pipeline_params

pytestmark = pytest.mark.unit

FILES = {
    Stage.PREPARE: [READINESS_PAGE],
    Stage.TRAIN: [CURVE_PAGE],
    Stage.EVALUATE: [EVALUATION_PAGE, REVIEW_PAGE],
    Stage.PUBLISH: [MODEL_CARD],
}
INDEX = f"{run_folder(RUN)}/{REPORTS_INDEX}"


def linked(html: bytes | str | None) -> list[str]:
    """Where the links of an index lead to, relative to the output URI."""
    parsed = Parsed(html.decode() if isinstance(html, bytes) else html or "")
    return [normpath(join(run_folder(RUN), target)) for target in parsed.values("a", "href")]


def given(stage: Stage, s3: SeaweedFS, place: str, upstream: Upstream) -> StageInput:
    output = Output(uri=f"{place}/out", name="transactions")
    params = pipeline_params([f"{place}/rows.csv"], output)
    return StageInput(
        stage=stage,
        run=RUN,
        storage=s3.storage,
        output=output,
        params=params,
        upstream=upstream,
        base_model_uri="s3://data/model",
    )


def put(store: Store, folder: Path, stage: Stage, files: list[str]) -> str:
    """Publish a folder with these files; returns its digest."""
    folder.mkdir()
    for file in files:
        (folder / file).write_text(stage)
    return publish_folder(store, folder, stage)


def test_links_are_relative_to_the_runs_folder() -> None:
    chain = Upstream(dataset="d" * 64, adapter="a" * 64, export="x" * 64, evaluation="e" * 64)
    reports = reports_of(chain, "f" * 64)
    html = render_index(StageInput(stage=Stage.PUBLISH, run=RUN), reports)
    digests = {Stage.PREPARE: "d", Stage.TRAIN: "a", Stage.EVALUATE: "e", Stage.PUBLISH: "f"}
    assert linked(html) == [
        f"{output_folder(stage, digests[stage] * 64)}/{file}" for stage, files in FILES.items() for file in files
    ]
    assert all(target.startswith("../../../") for target in Parsed(html).values("a", "href"))
    assert f"{RUN.namespace}/{RUN.name}" in Parsed(html).text


def test_each_stage_adds_its_report(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    """A training without a learning curve has no page to link."""
    store, chain = Store.connect(s3.storage, f"{place}/out"), Upstream(source="s", model="m")
    expected: list[str] = []
    for stage, files in (FILES | {Stage.TRAIN: ["adapter_model.safetensors"]}).items():
        digest = put(store, tmp_path / stage, stage, files)
        result = StageResult(
            stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, output_digest=digest
        )
        index_stage(context(given(stage, s3, place, chain), tmp_path), result)
        chain = chain.with_output(stage, digest)
        expected += [f"{output_folder(stage, digest)}/{file}" for file in files] if stage is not Stage.TRAIN else []
        assert linked(store.get(INDEX)) == expected
    assert all(store.exists(target) for target in expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StageError(Reason.S3_UNREACHABLE, "no space"), "the index of the reports was not written: no space"),
        (ValueError("not foreseen"), "ValueError: not foreseen"),
    ],
)
def test_an_index_that_cannot_be_written_stops_no_stage(
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_store: Store, _path: str, _content: bytes) -> None:
        raise error

    output = Output(uri="s3://data/out", name="transactions")
    made = context(StageInput(stage=Stage.PREPARE, run=RUN, output=output), tmp_path)
    monkeypatch.setattr(Store, "put", refuse)
    monkeypatch.setattr(Store, "exists", lambda _store, _path: False)
    with caplog.at_level(logging.WARNING):
        write_index(made, Upstream())
    assert "the index of the reports was not written" in caplog.text
    assert said in caplog.text
