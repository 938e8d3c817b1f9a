"""The volume that an evaluation shares with its metric containers.

``in/<metric>/``     request.json and answers.jsonl, for one container
``out/<metric>/``    its metrics.json
``models/``          base and artifact, for those that read them
``data/<metric>/``   the files that the FineTuneJob names for it
``evaluated.json``   the StageResult of the evaluation that they measure, for the last part of the stage
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from finetune_api.custom_metrics import (
    ANSWERS,
    MAX_REPORT_BYTES,
    REPORT,
    REQUEST,
    DataFolder,
    MetricAnswer,
    MetricRequest,
    MetricRun,
    MetricsReport,
    ModelFolders,
)
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageResult
from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.folders import fetch_folder
from finetune_jobs.artifacts.formats import MeasuredFormat
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.custom.data import fetch_data
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.runtime.runner import Context

_EVALUATED: Final = "evaluated.json"
_MODELS: Final = {
    "base": "base",
    "few_shot": "fewShot",
    "verbose": "verbose",
    "constrained": "constrained",
    "endpoint": "endpoint",
    "tuned": "tuned",
    "artifact": "artifact",
}
"""The answers of ``artifact.Answer``, each with the model's name in every report."""


def hand_over(context: Context, result: StageResult, runs: Sequence[MetricRun]) -> None:
    """Leave what metric containers read of an evaluation, made or reused. Raises StageError as ``fetch_folder``,
    ``fetch_base_model`` and ``fetch_data``."""
    shared, evaluation = context.metrics, context.scratch / "handed-over"
    fetch_folder(context.store, output_folder(Stage.EVALUATE, result.output_digest), evaluation)
    metrics = read_json(evaluation / artifact.METRICS, artifact.Metrics)
    with (evaluation / artifact.ANSWERS).open(encoding="utf-8") as lines:
        answers = artifact.read_answers(lines, artifact.ANSWERS)
    text = "".join(f"{_handed(each).model_dump_json(by_alias=True)}\n" for each in answers)
    data = fetch_data(context, runs, shared / "data")
    models = _fetch_models(context, metrics.formats) if any(run.needs_models for run in runs) else None
    for run in runs:
        folder = shared / "in" / run.name
        for each in (folder, shared / "out" / run.name, shared / "tmp" / run.name):
            each.mkdir(parents=True, exist_ok=True)
        request = MetricRequest(
            metric=run.name,
            parameters=run.parameters,
            task=metrics.task,
            figures=sorted(run.figures),
            models=models if run.needs_models else None,
            data=data.get(run.name),
        )
        (folder / REQUEST).write_text(request.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
        (folder / ANSWERS).write_text(text, encoding="utf-8")
    (shared / _EVALUATED).write_text(result.model_dump_json(by_alias=True), encoding="utf-8")


def read_evaluated(shared: Path) -> StageResult:
    """The result of the evaluation that was handed over. Raises StageError (ArtifactCorrupt)."""
    return read_json(shared / _EVALUATED, StageResult)


def read_data(shared: Path, runs: Sequence[MetricRun]) -> dict[str, DataFolder]:
    """By container, what it was given to read beside the answers: as it stands in the request, which the container
    cannot write. Raises StageError (ArtifactCorrupt)."""
    asked = {run.name: read_json(shared / "in" / run.name / REQUEST, MetricRequest) for run in runs if run.data}
    return {name: request.data for name, request in asked.items() if request.data}


def read_report(shared: Path, run: MetricRun) -> MetricsReport:
    """What a metric container wrote: foreign bytes. Raises StageError (MetricFailed)."""
    place = f"{REPORT} of metric {run.name!r}"
    try:
        # A link could lead to what the container itself may not read.
        handle = os.open(shared / "out" / run.name / REPORT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            content = file.read(MAX_REPORT_BYTES + 1)
    except FileNotFoundError:
        raise StageError(Reason.METRIC_FAILED, f"Metric {run.name!r} ended without writing {REPORT}.") from None
    except OSError as error:
        raise StageError(Reason.METRIC_FAILED, f"{place} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_REPORT_BYTES:
        raise StageError(Reason.METRIC_FAILED, f"{place} is longer than {MAX_REPORT_BYTES >> 20} MiB.")
    return _parsed(content, place)


def _parsed(content: bytes, place: str) -> MetricsReport:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise StageError(Reason.METRIC_FAILED, f"{place} is not JSON.") from None
    version = document.get("schemaVersion") if isinstance(document, dict) else None
    if version != MetricsReport.SCHEMA:
        raise StageError(
            Reason.METRIC_FAILED, f"{place} has schemaVersion {str(version)[:20]}; it must be {MetricsReport.SCHEMA}."
        )
    try:
        return MetricsReport.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))[:200]
        raise StageError(Reason.METRIC_FAILED, f"{place}: {field}: {fault['msg']}.") from None


def models_of(answers: Sequence[artifact.Answer]) -> list[str]:
    """The models that answered, by their names in reports."""
    return list(_said(answers[0]))


def _said(answer: artifact.Answer) -> dict[str, str]:
    said = {name: getattr(answer, field) for field, name in _MODELS.items()}
    return {name: text for name, text in said.items() if text is not None}


def _handed(answer: artifact.Answer) -> MetricAnswer:
    return MetricAnswer(messages=answer.messages, tools=answer.tools, reference=answer.label, answers=_said(answer))


def _fetch_models(context: Context, formats: Sequence[MeasuredFormat]) -> ModelFolders:
    """The base model, and the artifact as it is served, in folders of their own: not by a link into the cache, which
    the containers do not see."""
    folders, models = ModelFolders(), context.metrics / "models"
    served = next((each.digest for each in formats if each.served), context.input.upstream.export)
    fetch_base_model(replace(context, model_cache=None), models / folders.base)
    fetch_folder(context.store, output_folder(Stage.EXPORT, served), models / folders.artifact)
    if not (models / folders.artifact / artifact.BASE_REF).exists():
        return folders
    folders = ModelFolders(artifact_base="artifact-base")
    ref = read_json(models / folders.artifact / artifact.BASE_REF, artifact.BaseRef)
    fetch_folder(context.store, ref.folder, models / folders.artifact_base)
    return folders
