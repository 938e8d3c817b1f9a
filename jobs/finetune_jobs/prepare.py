"""Stage prepare: sources in, a data set out that can be trained on as it is.

Reads every row (``preparation.collect``), decides which part each example belongs to (``splitting.division``), writes
the parts (``preparation.writing``) and reports what became of the rows (``readiness.preparation_report``):

``train.jsonl``, ``validation.jsonl``, ``test.jsonl``   a conversation a line: ``{"messages": [...], "tools": [...]}``;
                                            of the last two, ``"group"`` tells which lines are alike
``train.parquet``, ``validation.parquet``   the same as tokens: ``input_ids`` and ``labels``
``labels.json``                             all labels of a classification, sorted
``canaries.json``                           what is planted among the tokens of ``train``, if anything is
``report.json``, ``readiness.html``         what became of the rows, for programs and for people

If any row has ``reasoning_content``, the model learns to think before it answers, in all rows: one prompt cannot be
rendered in two ways. That is known once such a row is met; then all are read again.
"""

import json
import logging
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import Dataset, SourceRole, Task
from finetune_api.layout import READINESS_PAGE
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams, Stage
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.base.versions import versions
from finetune_jobs.distillation.collect import collect_distilled
from finetune_jobs.distillation.distil import Distilled
from finetune_jobs.evaluation.applicable import require_classes
from finetune_jobs.evaluation.measurable import DataFacts, require_enough_tests, require_measurable
from finetune_jobs.examples.parts import Part
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.base_model import fetch_tokenizer
from finetune_jobs.modelling.canaries import write_canaries
from finetune_jobs.modelling.control_tokens import ControlTokens
from finetune_jobs.modelling.token_files import REPORT
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.preparation.benchmarks import Benchmarks, read_benchmarks
from finetune_jobs.preparation.collect import Collected, Collector, Copy, of_role, own_parts_first, stoppable
from finetune_jobs.preparation.download import download, names_model
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.preparation.planting import Planted, plant
from finetune_jobs.preparation.replay import GENERAL_TASK, Replayed, choose, general_data
from finetune_jobs.preparation.tokens import Encoder, ThoughtsError
from finetune_jobs.preparation.writing import DatasetWriter
from finetune_jobs.readiness.page import render
from finetune_jobs.readiness.preparation_report import (
    PreparationReport,
    require_enough,
    require_learnable,
    require_valid,
)
from finetune_jobs.reports.index import index_stage
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.splitting.division import Division, divide

log = logging.getLogger(__name__)

LABELS: Final = "labels.json"


def prepare(context: Context) -> StageOutput:
    """The stage. Raises StageError: DatasetInvalid, DatasetTooSmall, DatasetNotFound, ModelUnsupported, as Store."""
    params = require(context.input.params.prepare, "params.prepare")
    copies = download(context, params.dataset)
    benchmarks = read_benchmarks(of_role(copies, SourceRole.BENCHMARK), params.dataset.cleaning)
    own, distilled = _collect(context, params, own_parts_first(of_role(copies, SourceRole.OWN)), benchmarks)
    require_valid(own.ledger, params.dataset)
    own.encoder.require_short()
    require_learnable(own.ledger, params)
    context.progress.report(0.75, "finding near duplicates and splitting")
    near = own.near(params.dataset.duplicates.sought_percent)
    division = divide(own.ledger, near, own.texts, params.dataset)
    require_enough(own.ledger, division, params.dataset.split)
    general = _collect_general(context, params, of_role(copies, SourceRole.REPLAY), own.encoder, benchmarks)
    replayed = choose(general, own, division, near.boilerplate, params.dataset) if general else None
    trained = sum(part is Part.TRAIN for part in division.parts.values())
    source = context.input.upstream.source
    planted = plant(params, source, own.encoder, trained)
    folder = context.scratch / "dataset"
    folder.mkdir()
    context.progress.report(0.85, "writing")
    _write(folder, own, division, replayed, planted)
    write_canaries(folder, planted.canaries)
    _require_measurable(context, params, folder, own)
    preparation = PreparationReport.of(own, division, params, source, replayed, benchmarks, planted)
    if context.input.params.publish:
        require_classes(context.input.params.publish.gates, preparation.labels)
    _write_json(folder / LABELS, preparation.labels)
    report = preparation.report()
    report |= {"distillation": distilled.report()} if distilled else {}
    report |= {"replay": replayed.report()} if replayed else {}
    _write_json(folder / REPORT, report)
    (folder / READINESS_PAGE).write_text(
        render(preparation.facts, preparation.items, preparation.errors), encoding="utf-8"
    )
    return StageOutput(
        folder=folder,
        scalars=preparation.scalars() | (distilled.scalars() if distilled else {}),
        message=" ".join(part.message() for part in (distilled, preparation, replayed) if part),
        tools=versions("transformers", "presidio-analyzer", "rensa", "pyarrow", "py3langid"),
    )


def _collect(
    context: Context, params: PrepareParams, copies: list[Copy], benchmarks: Benchmarks | None
) -> tuple[Collected, Distilled | None]:
    """The job's own examples: the rows themselves, or what a teacher answers to them."""
    base = context.scratch / "tokenizer"
    fetch_tokenizer(context, base)
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, stop_token(base, tokenizer), params)
    if params.dataset.distillation is not None:
        chat.rendering(tokenizer, thoughts=False)  # a teacher's answers have no thoughts: refused before it is paid
        with _collector(context, params.dataset, params.task, encoder, benchmarks) as collector:
            distilled = collect_distilled(context, params, params.dataset.distillation, copies, collector)
        return collector.made, distilled
    encoder.thoughts = chat.must_think(tokenizer)
    try:
        own = _read(context, params, copies, encoder, benchmarks)
    except ThoughtsError as found:
        log.info("%s has thoughts before an answer: the model learns to think, and all rows are read again", found)
        own = _read(context, params, copies, Encoder(tokenizer, encoder.stop, params, thoughts=True), benchmarks)
    if own.encoder.thoughts and not own.ledger.thoughtful:
        chat.rendering(tokenizer, thoughts=False)
    return own, None


def _read(
    context: Context, params: PrepareParams, copies: list[Copy], encoder: Encoder, benchmarks: Benchmarks | None
) -> Collected:
    """The examples in the rows. Raises ThoughtsError."""
    report = context.progress.part(0.2, 0.75, "reading and checking rows")
    with _collector(context, params.dataset, params.task, encoder, benchmarks) as collector:
        collector.read(copies, stoppable(report, context.stopping))
    return collector.made


def _collect_general(
    context: Context, params: PrepareParams, copies: list[Copy], own: Encoder, benchmarks: Benchmarks | None
) -> Collected | None:
    """General data that may be mixed in, of which nothing is in a benchmark."""
    if params.dataset.replay is None:
        return None
    general = general_data(params.dataset, params.dataset.replay)
    report = context.progress.part(0.8, 0.85, "reading general data")
    encoder = Encoder(own.tokenizer, own.stop, params, thoughts=own.thoughts)
    try:
        with _collector(context, general, GENERAL_TASK, encoder, benchmarks, "replay.arrow") as collector:
            collector.read(copies, stoppable(report, context.stopping))
    except ThoughtsError as found:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{found} has reasoning_content, and no row of spec.dataset.sources has: the model will be asked to answer "
            "at once. Remove it from the rows of spec.dataset.replay, or add it to those of spec.dataset.sources.",
        ) from None
    require_valid(collector.made.ledger, general)
    return collector.made


def _collector(
    context: Context,
    dataset: Dataset,
    task: Task,
    encoder: Encoder,
    benchmarks: Benchmarks | None,
    spool: str = "examples.arrow",
) -> Collector:
    intake = Intake(dataset, task, names_model(context, dataset.pii), ControlTokens.of(encoder.tokenizer))
    reference = benchmarks.reference if benchmarks else None
    return Collector(intake, encoder, context.scratch / spool, reference)


def _write(folder: Path, own: Collected, division: Division, replayed: Replayed | None, planted: Planted) -> None:
    """The parts, each in the order of the sources; general data at the end of the training examples, and behind them
    the canaries, as tokens only."""
    with DatasetWriter(folder) as out:
        for identity, example in own.examples(division.parts):
            out.add(
                division.parts[identity], example, division.repeats.get(identity, 1), division.alike.get(identity, "")
            )
        if replayed:
            for _, example in replayed.collected.examples(replayed.chosen):
                out.add(Part.TRAIN, example)
        out.plant(planted.encoded)


def _require_measurable(context: Context, params: PrepareParams, folder: Path, own: Collected) -> None:
    """Raises StageError (SpecInvalid) for a goal about what no evaluation of these data would measure, or show."""
    given = context.input.params
    if not given.publish or not given.publish.gates.goals or not given.evaluate:
        return
    task, most, encoder = params.task.type, given.evaluate.evaluation.max_samples, own.encoder
    asked = DataFacts.of(folder, task, most, encoder.tokenizer, encoder.stop, thoughts=encoder.thoughts)
    require_measurable(given.publish.gates, asked)
    require_enough_tests(given.publish.gates, asked)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """``python -m finetune_jobs.prepare``"""
    run_stage(Stage.PREPARE, prepare, after=index_stage, graceful=True)


if __name__ == "__main__":
    main()
