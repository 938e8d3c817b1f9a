"""The last part of stage evaluate where metric containers have run: what they wrote becomes part of the evaluation.

The first part is ``evaluate``, which has asked the models and published that as an evaluation of its own. This part
publishes another one: the same files, with more figures in ``metrics.json`` and on the page.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from finetune_api.custom_metrics import MetricRun
from finetune_api.layout import MANIFEST, output_folder
from finetune_api.stages import Stage
from finetune_jobs.artifacts.artifact import ANSWERS, METRICS, Metrics, read_answers
from finetune_jobs.artifacts.folders import fetch_folder
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import require
from finetune_jobs.evaluation.custom.exchange import models_of, read_data, read_evaluated, read_report
from finetune_jobs.evaluation.custom.figures import taken
from finetune_jobs.evaluation.custom.section import Ran, custom_rows, in_words, with_custom
from finetune_jobs.evaluation.page_parts import PARTS, PageParts, write_page
from finetune_jobs.evaluation.reached import goals_reached
from finetune_jobs.reports.index import index_stage
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage

_SHOWN: Final = 4
"""Figures that the stage's message names."""


def measure(context: Context) -> StageOutput:
    """Take in what the containers of ``params.evaluate.metrics`` wrote. Raises StageError (MetricFailed)."""
    runs = require(context.input.params.evaluate, "params.evaluate").metrics
    evaluated = read_evaluated(context.metrics)
    folder = context.scratch / "evaluation"
    manifest = fetch_folder(context.store, output_folder(Stage.EVALUATE, evaluated.output_digest), folder)
    (folder / MANIFEST).unlink()  # of the evaluation without them
    metrics = read_json(folder / METRICS, Metrics)
    measured, tools = _with_reports(context.metrics, runs, metrics, folder)
    ran = Ran(runs, read_data(context.metrics, runs))
    tools |= {f"{name}.data": in_words(data) for name, data in ran.data.items()}
    _rewrite(folder / METRICS, measured)
    publishing = context.input.params.publish
    goals = goals_reached(publishing.gates, measured, metrics.task) if publishing else []
    write_page(folder, with_custom(read_json(folder / PARTS, PageParts), ran, measured), goals)
    return StageOutput(
        folder=folder,
        scalars=evaluated.scalars,
        message=f"{evaluated.message} {_in_words(measured)}",
        tools=manifest.lineage.tools | tools,
        before=manifest.lineage.usage,
    )


def _with_reports(
    shared: Path, runs: Sequence[MetricRun], metrics: Metrics, folder: Path
) -> tuple[Measurements, dict[str, str]]:
    """All figures, and the images and tools that measured those of the containers."""
    with (folder / ANSWERS).open(encoding="utf-8") as lines:
        answers = read_answers(lines, ANSWERS)
    measured, tools = metrics.measurements or Measurements(rows=len(answers)), dict[str, str]()
    for run in runs:
        report = read_report(shared, run)
        found = taken(run, report, models_of(answers), [each.group for each in answers])
        measured = measured.model_copy(
            update={
                "measured": [*measured.measured, *found.measured],
                "differences": [*measured.differences, *found.differences],
            }
        )
        tools |= {run.name: run.image, **{f"{run.name}.{name}": version for name, version in report.tools.items()}}
    return measured, tools


def _rewrite(path: Path, measured: Measurements) -> None:
    """The document with these measurements; all else of it stays, what only another version knows included."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    document["measurements"] = measured.model_dump(mode="json", by_alias=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _in_words(measured: Measurements) -> str:
    """The first figures, for the stage's message."""
    rows = custom_rows(measured)
    told = []
    for each in rows[:_SHOWN]:
        base = f" (base model: {each.models['base'].value:.4g})" if "base" in each.models else ""
        part = f" of {each.label}" if each.label else ""
        told.append(f"{each.metric}{part} {each.models['artifact'].value:.4g}{base}")
    more = f" and {len(rows) - _SHOWN} more figures" if len(rows) > _SHOWN else ""
    return f"{', '.join(told)}{more}."


def main() -> None:
    """Entry point of ``python -m finetune_jobs.measure``."""
    run_stage(Stage.EVALUATE, measure, after=index_stage, part="measure")


if __name__ == "__main__":
    main()
