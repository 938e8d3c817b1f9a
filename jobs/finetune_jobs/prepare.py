"""Stage prepare: sources in, a data set out that can be trained on as it is.

Reads every row (``preparation.collect``), decides which part each example belongs to (``splitting.division``), writes
the parts (``preparation.writing``) and reports what became of the rows (``readiness.preparation_report``):

``train.jsonl``, ``validation.jsonl``, ``test.jsonl``   a conversation a line: ``{"messages": [...], "tools": [...]}``
``train.parquet``, ``validation.parquet``   the same as tokens: ``input_ids`` and ``labels``
``labels.json``                             all labels of a classification, sorted
``report.json``, ``readiness.html``         what became of the rows, for programs and for people
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import Dataset, NamesModel, Replay, SourcePart, Task, TaskType
from finetune_api.layout import READINESS_PAGE
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams, Stage
from finetune_jobs.base.errors import StageError, StoppedError, require
from finetune_jobs.base.progress import Report
from finetune_jobs.base.versions import versions
from finetune_jobs.distillation.collect import collect_distilled
from finetune_jobs.distillation.distil import Distilled
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.parts import Part
from finetune_jobs.modelling.base_model import fetch_tokenizer
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.preparation.collect import Collected, Collector, Copy, benchmark_texts, own_parts_first
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.preparation.writing import DatasetWriter
from finetune_jobs.readiness.page import render
from finetune_jobs.readiness.preparation_report import (
    PreparationReport,
    require_enough,
    require_learnable,
    require_valid,
)
from finetune_jobs.reading.inputs import find_names_model, inputs_digest
from finetune_jobs.reading.sources import find_sources
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.splitting import leakage, sampling
from finetune_jobs.splitting.contamination import Reference
from finetune_jobs.splitting.division import Division, divide
from finetune_jobs.splitting.near_duplicates import Hashes
from finetune_jobs.text.pii.ner import package_folder

LABELS: Final = "labels.json"
REPORT: Final = "report.json"
NAMES_MODEL: Final = "names"
"""Folder in the scratch space with the pipeline that finds names."""
_FREE: Final = Task(type=TaskType.TEXT)
"""General data is not of the job's task."""


@dataclass(frozen=True)
class Benchmarks:
    """Texts that must not be trained on, and the rows from which they come."""

    reference: Reference
    ledger: Ledger


@dataclass(frozen=True)
class Replayed:
    """General examples that are mixed into the training."""

    collected: Collected
    usable: int
    """Examples that could be mixed in."""
    chosen: list[str]
    """Identities."""

    def report(self) -> dict[str, Any]:
        """The figures for the report."""
        ledger = self.collected.ledger
        lost = Counter(ledger.faults.kinds) + Counter(ledger.dropped) + Counter(duplicates=ledger.duplicates)
        return {
            "read": ledger.read,
            "usable": self.usable,
            "chosen": len(self.chosen),
            "filters": dict(sorted(lost.items())),
        }

    def message(self) -> str:
        """The figures for people."""
        lost = ", ".join(f"{kind} {count}" for kind, count in self.report()["filters"].items())
        text = f"Of {self.collected.ledger.read} rows of general data, {self.usable} can be mixed in"
        return f"{text} (left out: {lost}), {len(self.chosen)} are." if lost else f"{text}, {len(self.chosen)} are."


def prepare(context: Context) -> StageOutput:
    """The stage. Raises StageError: DatasetInvalid, DatasetTooSmall, DatasetNotFound, ModelUnsupported, as Store."""
    params = require(context.input.params.prepare, "params.prepare")
    copies = _download(context, params)
    benchmarks = _benchmarks(params, copies)
    own, distilled = _collect(context, params, copies, benchmarks)
    require_valid(own.ledger, params)
    own.encoder.require_short()
    require_learnable(own.ledger, params)
    context.progress.report(0.75, "looking for near duplicates, dividing")
    near = own.near(params.dataset.duplicates.near_percent)
    division = divide(own.ledger, near, own.texts, params.dataset)
    require_enough(own.ledger, division)
    general = _replay(context, params, copies, own, division, near.boilerplate, benchmarks)
    folder = context.scratch / "dataset"
    folder.mkdir()
    context.progress.report(0.85, "writing")
    _write(folder, own, division, general)
    beside = {"replay": general.collected.ledger} if general else {}
    beside |= {"benchmarks": benchmarks.ledger} if benchmarks else {}
    replayed = len(general.chosen) if general else 0
    preparation = PreparationReport.of(own, division, replayed, params, context.input.upstream.source, beside)
    _write_json(folder / LABELS, preparation.labels)
    report = preparation.report()
    report |= {"distillation": distilled.report()} if distilled else {}
    report |= {"replay": general.report()} if general else {}
    _write_json(folder / REPORT, report)
    (folder / READINESS_PAGE).write_text(
        render(preparation.facts, preparation.items, preparation.errors), encoding="utf-8"
    )
    return StageOutput(
        folder=folder,
        scalars=preparation.scalars() | (distilled.scalars() if distilled else {}),
        message=" ".join(part.message() for part in (distilled, preparation, general) if part),
        tools=versions("transformers", "presidio-analyzer", "rensa", "pyarrow", "py3langid"),
    )


def _download(context: Context, params: PrepareParams) -> list[Copy]:
    """Local copies of the sources' files and of the pipeline that finds names, as they were when the run began."""
    before = context.input.upstream.source or inputs_digest(context.store, params.dataset)
    files = find_sources(context.store, params.dataset.all_sources)
    copies = []
    for index, file in enumerate(files):
        context.progress.report(0.2 * index / len(files), f"downloading {file.uri}")
        copies.append(Copy(file, context.scratch / f"source-{index}"))
        file.copy_to(copies[-1].path)
    pipeline = params.dataset.pii.ner.uri if params.dataset.pii.ner else None
    if pipeline:
        _download_names_model(context, pipeline)
    if inputs_digest(context.store, params.dataset) != before:
        read = [*([pipeline] if pipeline else []), *(file.uri for file in files)]
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"The version of {', '.join(read[:3])}{', …' if read[3:] else ''} that this run began with is gone: a file "
            "was overwritten meanwhile. Set spec.rerun to a new value to use the new version.",
        )
    return copies


def _download_names_model(context: Context, uri: str) -> None:
    place = context.store.at(uri)
    for entry in find_names_model(context.store, uri):
        target = context.scratch / NAMES_MODEL / entry.key
        target.parent.mkdir(parents=True, exist_ok=True)
        place.download(entry.key, target)


def _benchmarks(params: PrepareParams, copies: list[Copy]) -> Benchmarks | None:
    asked = [c for c in copies if 0 <= c.file.number - len(params.dataset.sources) < len(params.dataset.benchmarks)]
    if not asked:
        return None
    ledger = Ledger()
    return Benchmarks(Reference(benchmark_texts(asked, ledger)), ledger)


def _collect(
    context: Context, params: PrepareParams, copies: list[Copy], benchmarks: Benchmarks | None
) -> tuple[Collected, Distilled | None]:
    own = own_parts_first((c for c in copies if c.file.number < len(params.dataset.sources)), params.dataset.sources)
    base = context.scratch / "tokenizer"
    fetch_tokenizer(context, base)
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, stop_token(base, tokenizer), params)
    intake = Intake(params, _names_model(context, params.dataset.pii.ner))
    reference = benchmarks.reference if benchmarks else None
    with Collector(params, intake, encoder, context.scratch / "examples.arrow", reference) as collector:
        if params.dataset.distillation is None:
            collector.read(own, _stoppable(context, context.progress.part(0.2, 0.75, "reading and checking rows")))
            return collector.made, None
        distilled = collect_distilled(
            own,
            params,
            params.dataset.distillation,
            collector,
            store=context.store,
            run=context.input.run,
            report=context.progress.part(0.2, 0.75, "the teacher answers"),
            stopping=context.stopping,
        )
    return collector.made, distilled


def _replay(
    context: Context,
    params: PrepareParams,
    copies: list[Copy],
    own: Collected,
    division: Division,
    boilerplate: Hashes,
    benchmarks: Benchmarks | None,
) -> Replayed | None:
    """General data, checked and cleaned like the rest: as much of it as the spec's share asks for, and nothing that is
    (nearly) in the test or in a benchmark."""
    if params.dataset.replay is None:
        return None
    number = len(params.dataset.all_sources) - 1
    asked = [Copy(replace(copy.file, number=0), copy.path) for copy in copies if copy.file.number == number]
    general = _replayed(params, params.dataset.replay)
    report = _stoppable(context, context.progress.part(0.8, 0.85, "reading general data"))
    spool = context.scratch / "replay.arrow"
    intake = Intake(general, _names_model(context, general.dataset.pii.ner))
    encoder = Encoder(own.encoder.tokenizer, own.encoder.stop, general)
    reference = benchmarks.reference if benchmarks else None
    with Collector(general, intake, encoder, spool, reference) as collector:
        collector.read(asked, report)
    found = collector.made
    require_valid(found.ledger, general)
    tested = {identity for identity, part in division.parts.items() if part is not Part.TRAIN}
    texts = found.texts(set(found.ledger.labels))
    leaks = leakage.find(texts, own.texts(tested), params.dataset.duplicates.near_percent, boilerplate)
    usable = found.ledger.labels.keys() - own.ledger.labels.keys() - {leak.train for leak in leaks}
    trained = sum(part is Part.TRAIN for part in division.parts.values())
    chosen = sampling.replay(usable, trained, params.dataset.replay.percent, params.dataset.split.seed)
    return Replayed(found, len(usable), chosen)


def _replayed(params: PrepareParams, replay: Replay) -> PrepareParams:
    """General data as a data set of its own: chats of no task, all for training, cleaned and measured by the same rules
    as the rest."""
    dataset = Dataset(
        sources=[replay.source.model_copy(update={"part": SourcePart.TRAIN})],
        cleaning=params.dataset.cleaning,
        pii=params.dataset.pii,
        max_invalid_percent=params.dataset.max_invalid_percent,
    )
    return PrepareParams(dataset=dataset, task=_FREE, max_length=params.max_length, loss=params.loss)


def _names_model(context: Context, asked: NamesModel | None) -> Path | None:
    """The folder of the pipeline that finds names. Raises StageError (SpecInvalid)."""
    if asked is None:
        return None
    return package_folder(asked.package) if asked.package else context.scratch / NAMES_MODEL


def _stoppable(context: Context, report: Report) -> Report:
    """As ``report``, but it raises StoppedError once the pod is told to stop: nothing here is worth saving."""

    def tell(done: int, total: int) -> None:
        if context.stopping.is_set():
            raise StoppedError("The pod was told to stop before the rows were read.")
        report(done, total)

    return tell


def _write(folder: Path, own: Collected, division: Division, general: Replayed | None) -> None:
    """The parts, each in the order of the sources; general data at the end of the training examples."""
    with DatasetWriter(folder) as out:
        for identity, example in own.examples(division.parts):
            out.add(division.parts[identity], example, division.repeats.get(identity, 1))
        if general:
            for _, example in general.collected.examples(general.chosen):
                out.add(Part.TRAIN, example)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """``python -m finetune_jobs.prepare``"""
    run_stage(Stage.PREPARE, prepare, graceful=True)


if __name__ == "__main__":
    main()
