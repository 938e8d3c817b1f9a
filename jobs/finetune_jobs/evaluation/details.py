"""What an evaluation's page says of single fields, of JSON and of calls of tools. No model."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.goals import OF_CALLS, Metric
from finetune_jobs.artifacts.measurements import Figure
from finetune_jobs.evaluation.applicable import OF_JSON
from finetune_jobs.evaluation.metrics import LabelScores, label_scores
from finetune_jobs.evaluation.report import MODELS, Evaluated
from finetune_jobs.evaluation.tasks import calls_tools, fields_of
from finetune_jobs.reports.charts import Bar, Kind, Segment
from finetune_jobs.reports.page import Fact, Table, TableRow

_FIELDS: Final = 100
_COLUMNS: Final = {
    Metric.TOOL_USE: "calls when it should",
    Metric.TOOL_NAME: "right tools",
    Metric.TOOL_ARGUMENTS: "right arguments",
    Metric.TOOL_FIELDS: "F1 of arguments",
    Metric.VALID_JSON: "valid JSON",
    Metric.VALID_SCHEMA: "matches the schema",
}
_MEANINGS: Final = {
    Metric.TOOL_USE: "Of all test examples, the share that call a tool exactly when they should. Text that does not "
    "parse as a call in the form of the model's chat template is not a call: a client would get it as text.",
    Metric.TOOL_NAME: "Of the examples whose right answer calls tools, the share that call the same tools.",
    Metric.TOOL_ARGUMENTS: "The share of these whose arguments are all right, too: the same JSON values; the "
    "order of keys and of calls does not matter.",
    Metric.TOOL_FIELDS: "The F1 of the single fields of the arguments, averaged over these examples: one wrong "
    "field costs a part, not the whole call.",
    Metric.VALID_JSON: "Of the examples whose right answer is JSON, the share of answers that are JSON.",
    Metric.VALID_SCHEMA: "The share of these that match spec.task.answerSchema, right or wrong.",
}


def facts(evaluated: Evaluated) -> list[Fact]:
    """What each of these figures means, if it was measured."""
    return [
        Fact(_COLUMNS[metric][0].upper() + _COLUMNS[metric][1:], [meaning])
        for metric, meaning in _MEANINGS.items()
        if evaluated.measurements.of(metric)
    ]


def calls_table(evaluated: Evaluated) -> Table | None:
    """How the models call tools; None where no answer should call one."""
    return _shares(evaluated, OF_CALLS, "Tool calls, each with its 95 % interval; the bar shows right arguments")


def json_table(evaluated: Evaluated) -> Table | None:
    """How many answers are JSON; None where they should not be."""
    return _shares(evaluated, OF_JSON, "Answers that are JSON and that match the schema, each with its 95 % interval")


def _shares(evaluated: Evaluated, metrics: Sequence[Metric], caption: str) -> Table | None:
    found = [(metric, it.models) for metric in metrics if (it := evaluated.measurements.of(metric))]
    if not found:
        return None
    barred = dict(found).get(Metric.TOOL_ARGUMENTS, found[0][1])
    rows = [
        TableRow(MODELS[model], [_figure(models[model]) for _, models in found], _bar(barred[model]))
        for model in evaluated.scores
    ]
    return Table(caption, ["model", *(_COLUMNS[metric] for metric, _ in found)], rows, long=True)


def _figure(it: Figure) -> str:
    return f"{it.value:.1%} ({it.low:.1%} – {it.high:.1%})"


def _bar(it: Figure) -> Bar:
    return Bar([Segment(Kind.SCORE, it.value)], (it.low, it.high))


def scored_fields(truth: Sequence[str], answers: Sequence[str]) -> dict[str, LabelScores]:
    """How well each field is answered, the worst first. A field is right with the right value; elements of a list are
    one field and may come in any order."""
    support, given, right = Counter[str](), Counter[str](), Counter[str]()
    for wanted, said in zip(map(fields_of, truth), map(fields_of, answers), strict=True):
        for counts, fields in ((support, wanted), (given, said), (right, wanted & said)):
            for (path, _), count in fields.items():
                counts[path] += count
    table = {path: label_scores(support[path], given[path], right[path]) for path in {*support, *given}}
    return dict(sorted(table.items(), key=lambda item: (item[1].f1, -item[1].support, item[0])))


def fields_table(evaluated: Evaluated) -> Table | None:
    """Which fields of the artifact's JSON, or of its calls' arguments, are wrong; None where there are none."""
    is_json = evaluated.task is TaskType.EXTRACTION
    rows = [
        (truth, answer)
        for truth, answer in zip(evaluated.truth, evaluated.answers["artifact"], strict=True)
        if is_json or calls_tools(truth)
    ]
    found = scored_fields([truth for truth, _ in rows], [answer for _, answer in rows])
    if not found:
        return None
    shown = [
        TableRow(
            path or "(the whole value)",
            [f"{it.support:,}", *(f"{value:.3f}" for value in (it.precision, it.recall, it.f1))],
            Bar([Segment(Kind.SCORE, it.f1)]),
        )
        for path, it in list(found.items())[:_FIELDS]
    ]
    which = f"The {_FIELDS} weakest of {len(found):,} fields" if len(found) > _FIELDS else "The weakest first"
    head = ["field", "expected", "precision", "recall", "F1"]
    return Table(f"{which}; the bar shows F1", head, shown, long=True)
