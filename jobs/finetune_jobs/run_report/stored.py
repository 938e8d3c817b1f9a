"""Collecting the page of a run from its results, and writing it into the run's folder.

It is ``runs/<name>/<uid>/report.html``, which is no part of any result: it says what this run has used and how its
goals were judged, and neither follows from the content of an artifact. Publish writes it, whether it publishes or a
gate stops it, and so does resolve for a run whose results are all there already. A few small objects are read.
"""

import logging
from collections.abc import Mapping
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.layout import Manifest, output_folder, run_report
from finetune_api.stages import PIPELINE, Stage, Upstream
from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
from finetune_jobs.artifacts.folders import get_listed, read_manifest
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.evaluation.page_parts import PARTS, PageParts
from finetune_jobs.modelling.token_files import REPORT
from finetune_jobs.reports.index import found_reports
from finetune_jobs.run_report.data import DataReport
from finetune_jobs.run_report.page import RunFacts, render_run
from finetune_jobs.run_report.training import History
from finetune_jobs.run_report.verdict import RunVerdict, ending_of, goals_of, verdicts_of
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_TRAIN_LOG: Final = "train_log.jsonl"


def write_run_report(context: Context, chain: Upstream, said: RunVerdict) -> None:
    """Write the page; ``chain``: the digests of the run's results. What goes wrong costs the page only, never the
    stage."""
    try:
        page = render_run(context.input, _collect(context, chain, said))
        context.store.put(run_report(context.input.run), page.encode())
    except StageError as error:
        log.warning("the report of the run was not written: %s", error.message)
    except Exception:  # the stage's output is there and counts, whatever is wrong with a page about it
        log.warning("the report of the run was not written", exc_info=True)


def _collect(context: Context, chain: Upstream, said: RunVerdict) -> RunFacts:
    store, params = context.store, require(context.input.params.publish, "params.publish")
    folders = _folders(store, chain, said.artifact)
    read = {stage: read_manifest(store, folder) for stage, folder in folders.items()}
    manifests = {stage: manifest for stage, manifest in read.items() if manifest}
    parts = _Parts(store, folders, manifests)
    data = parts.get(Stage.PREPARE, REPORT)
    shown = parts.get(Stage.EVALUATE, PARTS)
    evaluation = manifests.get(Stage.EVALUATE)
    asked = context.input.params.evaluate
    task = asked.task.type if asked else TaskType.CLASSIFICATION
    texts = params.gates.texts(task, chrf=evaluation is not None and "chrfArtifact" in evaluation.facts)
    uri = store.uri(folders[Stage.PUBLISH]) if said.artifact else ""
    return RunFacts(
        ending=ending_of(said, uri),
        manifests=manifests,
        folders=folders,
        goals=goals_of(said.scalars, texts),
        verdicts=verdicts_of(said.scalars, params.reviewing.review),
        data=parse_json(data, DataReport, REPORT) if data else None,
        history=History.read(parts.get(Stage.TRAIN, _TRAIN_LOG)),
        evaluation=parse_json(shown, PageParts, PARTS) if shown else None,
        reports=found_reports(context, chain, said.artifact),
    )


def _folders(store: Store, chain: Upstream, artifact: str) -> dict[Stage, str]:
    """Of the run's results, in order. Which of several formats was published, the artifact says."""
    digests = dict(zip(PIPELINE, (chain.dataset, chain.adapter, chain.export, chain.evaluation, artifact), strict=True))
    if artifact:
        place = f"{output_folder(Stage.PUBLISH, artifact)}/{MODEL_REF}"
        if content := store.get(place):
            digests[Stage.EXPORT] = parse_json(content, ModelRef, store.uri(place)).digest
    return {stage: output_folder(stage, digest) for stage, digest in digests.items() if digest}


class _Parts:
    """Single files of the run's results."""

    def __init__(self, store: Store, folders: Mapping[Stage, str], manifests: Mapping[Stage, Manifest]) -> None:
        self._store, self._folders, self._manifests = store, folders, manifests

    def get(self, stage: Stage, path: str) -> bytes:
        """A file as its manifest lists it; empty if it lists none. Raises StageError (ArtifactCorrupt), as Store."""
        manifest = self._manifests.get(stage)
        if manifest is None or all(file.path != path for file in manifest.files):
            return b""
        return get_listed(self._store, self._folders[stage], manifest, path)
