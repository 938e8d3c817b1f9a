"""The index of a run: one page that links every report of a FineTuneJob's newest run.

It is ``runs/<name>/<uid>/index.html``, which is no part of any result: results are shared by content, and their folders
never change. Each stage that has something to show writes it anew, and so does resolve for results that it found. Links
are relative, so that they work wherever the output URI is browsed, or a copy of it lies.
"""

import logging
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from finetune_api.layout import (
    CURVE_PAGE,
    EVALUATION_PAGE,
    MANIFEST,
    READINESS_PAGE,
    REPORTS_INDEX,
    REVIEW_PAGE,
    judged_object,
    output_folder,
    run_folder,
    run_report,
)
from finetune_api.stages import Stage, StageInput, StageResult, Upstream
from finetune_jobs.artifacts.artifact import MODEL_CARD
from finetune_jobs.base.errors import StageError
from finetune_jobs.reports import page
from finetune_jobs.reports.page import Fact, uris
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_SOURCES: Final = 3
_WHOLE: Final = "Were the goals met? Data, losses, figures, mistakes and cost on one page."


@dataclass(frozen=True)
class Report:
    """A line of the index."""

    name: str
    text: str
    place: str
    """The file, relative to the output URI."""


def reports_of(chain: Upstream, artifact: str = "", judge: str = "") -> list[Report]:
    """The reports that results with these digests may have; ``judge``: as ``Judge.identity``."""
    made = [
        (Stage.PREPARE, chain.dataset, READINESS_PAGE, "Readiness", "Is the data set fit for training?"),
        (Stage.TRAIN, chain.adapter, CURVE_PAGE, "Learning curve", "What would more examples bring?"),
        (Stage.EVALUATE, chain.evaluation, EVALUATION_PAGE, "Evaluation", "Is the model better, and what goes wrong?"),
        (
            Stage.EVALUATE,
            chain.evaluation,
            REVIEW_PAGE,
            "Human review",
            "Which answers do people prefer? A blind vote.",
        ),
        (
            Stage.PUBLISH,
            artifact,
            MODEL_CARD,
            "Model card",
            "What the artifact is, and what it was made from (Markdown).",
        ),
    ]
    found = [
        Report(name, text, f"{output_folder(stage, digest)}/{file}")
        for stage, digest, file, name, text in made
        if digest
    ]
    if judge and chain.evaluation:
        place = judged_object(chain.evaluation, judge, "html")
        found.append(Report("Judge", "Which answers does another model prefer, and do people agree?", place))
    return found


def render_index(given: StageInput, reports: list[Report]) -> str:
    """The page, as it stands in the run's folder."""
    run = given.run
    identity = [
        Fact("Job", [f"{run.namespace}/{run.name}"]),
        Fact("Run", [run.id]),
        Fact("Base model", [given.base_model_uri], code=True),
    ]
    if given.params.prepare:
        identity.append(uris("Data", [source.name for source in given.params.prepare.dataset.sources], _SOURCES))
    up = "../" * len(run_folder(run).split("/"))
    return page.render("reports/index.html.j2", f"Reports of {run.name}", identity, reports=reports, up=up)


def found_reports(context: Context, chain: Upstream, artifact: str = "") -> list[Report]:
    """Those of them that are there. Raises StageError as Store."""
    publishing = context.input.params.publish
    judge = publishing.judge.identity if publishing and publishing.judge else ""
    return [report for report in reports_of(chain, artifact, judge) if _is_there(context.store, report)]


def write_index(context: Context, chain: Upstream, artifact: str = "") -> None:
    """Write the index for what the run has so far. What goes wrong costs the index only, never the stage."""
    try:
        run, reports = context.input.run, found_reports(context, chain, artifact)
        if context.store.exists(run_report(run)):
            reports.insert(0, Report("The whole run", _WHOLE, run_report(run)))
        place = f"{run_folder(run)}/{REPORTS_INDEX}"
        context.store.put(place, render_index(context.input, reports).encode())
    except StageError as error:
        log.warning("the index of the reports was not written: %s", error.message)
    except Exception:  # the stage's output is there and counts, whatever is wrong with a page of links
        log.warning("the index of the reports was not written", exc_info=True)


def index_stage(context: Context, result: StageResult) -> StageResult:
    """Write the index once a stage's output is there, made or reused: what ``run_stage`` does after the work. Returns
    the result as it is."""
    stage, digest = context.input.stage, result.output_digest
    chain = context.input.upstream.with_output(stage, digest)
    write_index(context, chain, digest if stage is Stage.PUBLISH else "")
    return result


def _is_there(store: Store, report: Report) -> bool:
    """Whether the file is one of a published folder, or beside its own: a training without a learning curve has no page
    of it."""
    folders = PurePosixPath(report.place).parents[:-1]
    return store.exists(report.place) and any(store.exists(f"{folder}/{MANIFEST}") for folder in folders)
