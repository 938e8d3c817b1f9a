"""What metric containers measured, on the page of the evaluation that they measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.custom_metrics import DataFolder, MetricRun
from finetune_jobs.artifacts.measurements import Difference, Figure, MeasuredMetric, Measurements
from finetune_jobs.evaluation.page_parts import PageParts
from finetune_jobs.reports import page
from finetune_jobs.reports.page import Fact, Table, TableRow


@dataclass(frozen=True)
class Ran:
    """The containers that have measured."""

    runs: Sequence[MetricRun]
    data: Mapping[str, DataFolder]
    """By container, the files that it was given."""


def with_custom(parts: PageParts, ran: Ran, measured: Measurements) -> PageParts:
    """The parts of an evaluation's page, with what these containers measured."""
    section = page.render_part(
        "evaluation/custom/custom.html.j2",
        figures=_figures(measured),
        containers=[_container(run, ran.data.get(run.name)) for run in ran.runs],
    )
    return parts.model_copy(update={"custom": section})


def custom_rows(measured: Measurements) -> list[MeasuredMetric]:
    """The figures of containers among all: their names have a dot."""
    return [each for each in measured.measured if "." in each.metric]


def _figures(measured: Measurements) -> Table:
    head = [
        "figure",
        "base model",
        "95 % interval",
        "artifact",
        "95 % interval",
        "difference",
        "95 % interval",
        "cases",
    ]
    rows = [_row(each, measured) for each in custom_rows(measured)]
    return Table("What metric containers measured", head, rows, long=True)


def _row(each: MeasuredMetric, measured: Measurements) -> TableRow:
    name = f"{each.metric}, {each.label}" if each.label else each.metric
    found = measured.difference(each.metric, "artifact", "base", each.label)
    cells = [*_cells(each.models.get("base")), *_cells(each.models["artifact"]), *_gain(found), f"{each.cases:,}"]
    return TableRow(name, cells)


def _cells(figure: Figure | None) -> list[str]:
    return [f"{figure.value:.4g}", f"{figure.low:.4g} – {figure.high:.4g}"] if figure else ["–", "–"]


def _gain(found: Difference | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    it, verdict = found.estimate, ""
    if found.better_beyond_chance or found.worse_beyond_chance:
        verdict = " ✓ better" if found.better_beyond_chance else " ✕ worse"
    return [f"{it.value:+.4g}{verdict}", f"{it.low:+.4g} – {it.high:+.4g}"]


def _container(run: MetricRun, data: DataFolder | None) -> Fact:
    given = [f"{name}: {value}" for name, value in sorted(run.parameters.items())]
    return Fact(run.name, [run.image, *given, *([in_words(data)] if data else [])], code=True)


def in_words(data: DataFolder) -> str:
    """A container's data, for reports and for the model's origin."""
    return f"data: {data.uri} sha256:{data.sha256} ({data.files:,} files, {data.size:,} bytes)"
