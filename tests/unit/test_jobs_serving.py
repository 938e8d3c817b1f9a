"""From evaluate's answers to a verified server: the real stages, real checkpoints, the real stand-in for TGI."""

import json
import shutil
from pathlib import Path

import pytest

from finetune_api.finetunejob import Output
from finetune_api.reasons import Reason
from finetune_api.stages import Params, Stage, StageInput, StageResult, Upstream, VerifyParams
from finetune_jobs.artifact import ANSWERS, METRICS, Answer, write_answers
from finetune_jobs.errors import StageError
from finetune_jobs.evaluation.generate import Questions, generate_answers
from finetune_jobs.fetch import fetch
from finetune_jobs.folders import publish_folder
from finetune_jobs.modelling.loading import load_checkpoint, load_tokenizer
from finetune_jobs.publish import publish
from finetune_jobs.runner import execute
from finetune_jobs.store import Store
from finetune_jobs.verify import verify
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import DEPLOYMENT, context, pipeline_params, stage_input
from tests.support.tgi_process import tgi_cpu
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

PROMPTS = [[{"role": "user", "content": f"what is number {n} about?"}] for n in range(12)]
LIMIT = 6
"""Tokens of an answer."""


def answers_of(model: Path) -> list[str]:
    questions = Questions(PROMPTS, LIMIT, 4)
    return generate_answers(load_checkpoint(model), load_tokenizer(model), questions, lambda done, total: None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_tiny_llama(tmp_path / "base", seed=1)


@pytest.fixture
def published(s3: SeaweedFS, place: str, base: Path, tmp_path: Path) -> StageResult:
    """An artifact whose recorded answers are those of real models."""
    store = Store.connect(s3.storage, place)
    tuned = build_tiny_llama(tmp_path / "tuned", seed=2)
    empty, evaluation = tmp_path / "empty", tmp_path / "evaluation"
    for folder in (empty, evaluation):
        folder.mkdir()
    pairs = zip(PROMPTS, answers_of(base), answers_of(tuned), strict=True)
    write_answers(
        evaluation / ANSWERS,
        [Answer(messages=p, label=t, base=b, tuned=t, artifact=t, max_tokens=LIMIT) for p, b, t in pairs],
    )
    (evaluation / METRICS).write_text(json.dumps({"goldenPrompts": 6, "scalars": {}}))
    upstream = Upstream(
        source="s",
        model="m",
        dataset=publish_folder(store, empty, Stage.PREPARE),
        adapter=publish_folder(store, empty, Stage.TRAIN),
        export=publish_folder(store, tuned, Stage.EXPORT),
        evaluation=publish_folder(store, evaluation, Stage.EVALUATE),
    )
    output = Output(uri=place, name="transactions")
    params = pipeline_params([f"{place}/rows.csv"], output)
    return execute(context(stage_input(Stage.PUBLISH, s3.storage, output, params, upstream), tmp_path), publish)


def test_only_the_artifact_itself_passes(s3: SeaweedFS, published: StageResult, base: Path, tmp_path: Path) -> None:
    def run(stage: Stage, endpoint: str = "") -> StageResult:
        params = VerifyParams(endpoint=endpoint, samples=12, min_agreement_percent=75, timeout_seconds=180)
        given = StageInput(
            stage=stage,
            run=DEPLOYMENT,
            storage=s3.storage,
            artifact_uri=published.scalars["artifactUri"],
            params=Params(verify=params),
        )
        return execute(context(given, tmp_path), fetch if stage is Stage.FETCH else verify)

    run(Stage.FETCH)
    model = tmp_path / "models" / published.output_digest / "model"
    with tgi_cpu(model, tmp_path) as server:
        result = run(Stage.VERIFY, server.url)
    assert result.scalars == {
        "samples": "12",
        "accuracy": "1.0000",
        "expectedAccuracy": "1.0000",
        "agreementPercent": "100",
        "adapterActive": "true",
    }
    for file in base.iterdir():
        shutil.copyfile(file, model / file.name)
    with tgi_cpu(model, tmp_path) as server, pytest.raises(StageError, match="answered like the base model") as error:
        run(Stage.VERIFY, server.url)
    assert error.value.reason is Reason.ADAPTER_INACTIVE
