"""The whole way of a custom metric: a real evaluation, a metric program as a process, and the goals about it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from finetune_api.custom_metrics import FigureRule, MetricData, MetricRequest, MetricRun
from finetune_api.dataset import Task, TaskType
from finetune_api.evaluation import Coverage, Evaluation
from finetune_api.finetunejob import Output
from finetune_api.gates import Gates
from finetune_api.layout import EVALUATION_PAGE, output_folder, run_folder
from finetune_api.reasons import Reason
from finetune_api.stages import EvaluateParams, Params, PublishParams, Stage, StageInput, StageResult
from finetune_api.usage import Usage
from finetune_jobs.artifacts.artifact import METRICS, Metrics
from finetune_jobs.artifacts.folders import publish_folder, read_record, require_manifest
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluate import evaluate, index_and_hand_over
from finetune_jobs.evaluation.custom.data import data_digest
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.page_parts import PARTS, PageParts
from finetune_jobs.measure import measure
from finetune_jobs.reports.index import index_stage
from finetune_jobs.runtime.runner import Context, execute
from finetune_jobs.store.s3 import Store
from hack.cluster.layout import REPOSITORY
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import Lent, context, stage_input
from tests.support.training import BASE, publish_inputs

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROGRAM: Final = REPOSITORY / "examples" / "metric-container" / "brevity.py"
GARAK: Final = REPOSITORY / "images" / "garak" / "measure.py"
LM_EVAL: Final = REPOSITORY / "images" / "lm-eval" / "measure.py"
RUN: Final = MetricRun(
    name="brevity",
    image="registry/brevity@sha256:1",
    figures={
        "brief": FigureRule(minimum=0, maximum=1),
        "words": FigureRule(higher_is_better=False, minimum=0),
    },
    needs_models=True,
    parameters={"words": "1000"},
)
GOALS: Final = Gates.model_validate(
    {
        "goals": [
            {"metric": "custom", "custom": "brevity.brief", "atLeast": "0.5"},
            {"metric": "custom", "custom": "brevity.words", "atMost": "0"},
        ]
    }
)


def run_program(given: Path, out: Path, program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    """A metric container, as a process with its folders and nothing of the environment."""
    env = {"METRICS_IN": str(given), "METRICS_OUT": str(out), "METRICS_LOG": str(out / "log")}
    command = [sys.executable, "-I", str(program)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@dataclass(frozen=True)
class Evaluating:
    """A run whose model is trained and exported, and the volume of the evaluation's pod."""

    folder: Path
    first: StageInput
    """Of the container that asks the models."""
    last: StageInput
    """Of the one that takes in what the metrics wrote."""

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def _context(self, given: StageInput) -> Context:
        return replace(context(given, self.folder), metrics=self.shared)

    def ask(self) -> StageResult:
        return execute(self._context(self.first), evaluate, after=index_and_hand_over)

    def take_in(self) -> StageResult:
        return execute(self._context(self.last), measure, after=index_stage)


def usage_of(store: Store, given: StageInput) -> Usage:
    record = read_record(store, Stage.EVALUATE, given.input_key)
    assert record is not None
    assert record.lineage.usage is not None
    return record.lineage.usage


@pytest.fixture
def evaluating(s3: SeaweedFS, store: Store, model_folder: Path, tmp_path: Path) -> Evaluating:
    chain = publish_inputs(store, model_folder / "base", model_folder / "dataset")
    chain = chain.model_copy(
        update={
            "adapter": publish_folder(store, model_folder / "adapter", Stage.TRAIN),
            "export": publish_folder(store, model_folder / "artifact", Stage.EXPORT, facts={"format": "INT8"}),
        }
    )
    store.put("tasks/words.txt", b"brief\n")
    run = RUN.model_copy(update={"data": MetricData(uri=store.uri("tasks"))})
    chain = chain.model_copy(update={"metrics": data_digest(Lent(store), [run])})
    output = Output(uri=store.uri(), name="transactions")
    examination = Evaluation(
        max_samples=10, golden_prompts=2, general=Coverage.OFF, adversarial=Coverage.OFF
    ).examination
    alone = EvaluateParams(evaluation=examination, task=Task(type=TaskType.CLASSIFICATION), method="LoRA")
    params = Params(evaluate=alone, publish=PublishParams(output=output, format="INT8", gates=GOALS))
    measured = params.model_copy(update={"evaluate": alone.model_copy(update={"metrics": [run]})})
    base = {"base_model_uri": store.uri(BASE)}
    first = stage_input(Stage.EVALUATE, s3.storage, output, params, chain, hands_over=[run], **base)
    return Evaluating(tmp_path, first, stage_input(Stage.EVALUATE, s3.storage, output, measured, chain, **base))


def test_a_metric_program_reaches_the_gate(evaluating: Evaluating, store: Store) -> None:
    """Answers first, under a key of their own; then the figures, in an evaluation of its own; then the goals."""
    asked = evaluating.ask()
    kept = store.below(f"{run_folder(evaluating.first.run)}/evaluation")
    assert not list(kept.list()), "what is kept for a pod that follows is gone once there is a result"
    own = evaluating.shared / "in" / RUN.name
    request = MetricRequest.model_validate_json((own / "request.json").read_text())
    assert (request.parameters, request.figures) == (RUN.parameters, ["brief", "words"])
    assert request.models is not None
    for folder in (request.models.base, request.models.artifact):
        assert (evaluating.shared / "models" / folder / "config.json").is_file()
    assert request.data is not None
    assert (evaluating.shared / "data" / RUN.name / "words.txt").read_bytes() == b"brief\n"
    assert len((own / "answers.jsonl").read_text().splitlines()) == 10
    assert not list(own.glob("*.partial"))

    with pytest.raises(StageError, match="without writing") as error:
        evaluating.take_in()
    assert error.value.reason is Reason.METRIC_FAILED
    assert read_record(store, Stage.EVALUATE, evaluating.last.input_key) is None, "nothing is half published"

    ended = run_program(own, evaluating.shared / "out" / RUN.name)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = evaluating.take_in()
    assert found.output_digest != asked.output_digest
    assert found.scalars == asked.scalars
    first, both = (usage_of(store, each) for each in (evaluating.first, evaluating.last))
    assert both.seconds >= 2 * first.seconds, "both parts are counted, and the second ends later"
    assert both.cpu_seconds >= 2 * first.cpu_seconds
    assert "brevity.brief 1 (base model: 1)" in found.message
    folder = output_folder(Stage.EVALUATE, found.output_digest)
    content = store.get(f"{folder}/{METRICS}")
    assert content is not None
    metrics = parse_json(content, Metrics, METRICS)
    assert metrics.measurements is not None
    outcomes = [each.outcome for each in judge(GOALS, metrics.measurements, metrics.task)]
    assert outcomes == ["Pass", "Fail"]
    page = (store.get(f"{folder}/{EVALUATION_PAGE}") or b"").decode().replace("<wbr>", "")
    for shown in ("brevity.brief", "✓ met", "✕ missed", RUN.image):
        assert shown in page
    parts = parse_json(store.get(f"{folder}/{PARTS}") or b"", PageParts, PARTS)
    assert "brevity.brief" in parts.figures.replace("<wbr>", ""), "the page of the run shows them too"
    lineage = require_manifest(store, folder).lineage
    assert lineage.tools["brevity"] == RUN.image
    told = f"data: {store.uri('tasks')} sha256:{request.data.sha256} (1 files, 6 bytes)"
    assert lineage.tools["brevity.data"] == told
    assert told in page
    assert lineage.upstream.metrics

    again = evaluating.ask()
    assert (again.reused, again.output_digest) == (True, asked.output_digest), "a lost pod costs no answers"
    assert evaluating.take_in().reused


@pytest.mark.parametrize(
    ("program", "parameters", "why"),
    [
        (PROGRAM, {"words": "many"}, "The parameter words is 'many': it must be a number."),
        (
            GARAK,
            {"probes": " , "},
            "The parameter probes names none: leave it out for those that this image runs by default.",
        ),
        (GARAK, {"limit": "0"}, "The parameter limit is '0': it must be a number."),
        (LM_EVAL, {}, "The parameter tasks is missing: name tasks, separated by commas."),
        (LM_EVAL, {"tasks": "sums", "limit": "all"}, "The parameter limit is 'all': it must be a number."),
    ],
)
def test_a_program_that_dislikes_its_parameters_says_so(
    tmp_path: Path, program: Path, parameters: dict[str, str], why: str
) -> None:
    """In its output, and where the FineTuneJob's status takes its words from."""
    (tmp_path / "request.json").write_text(json.dumps({"parameters": parameters, "models": {}}))
    (tmp_path / "log").touch()
    ended = run_program(tmp_path, tmp_path, program)
    assert (ended.returncode, ended.stderr) == (1, f"{why}\n")
    assert (tmp_path / "log").read_text() == why
