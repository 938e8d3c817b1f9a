"""The report of an evaluation: ``metrics.json`` for programs, ``report.html`` (one file, no scripts) for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.metrics import Comparison, Scores, compare, confusions
from finetune_jobs.evaluation.tasks import right_for, score_task

MODELS: Final = {
    "base": "base model",
    "tuned": "base and adapter, as trained",
    "artifact": "exported artifact, as served",
}
"""What was asked, by the name in files and scalars."""
REPORT: Final = "report.html"
_CONFUSIONS: Final = 20
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right;font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}"
    "th{font-weight:600}p{max-width:45rem}"
)


@dataclass(frozen=True)
class _Words:
    """How the report speaks of a task."""

    right: str
    unknown: str
    mean: str


_WORDS: Final = {
    TaskType.CLASSIFICATION: _Words("exactly the label", "no label", "the labels (macro)"),
    TaskType.EXTRACTION: _Words("the same JSON value", "no JSON", "the examples, of their fields"),
    TaskType.TEXT: _Words("the same words", "–", "the examples, of their words"),
}


@dataclass(frozen=True)
class Evaluated:
    """Right answers, the answers of each model of MODELS, and what they are worth."""

    task: TaskType
    truth: Sequence[str]
    answers: Mapping[str, Sequence[str]]
    scores: Mapping[str, Scores]
    gain: Comparison
    """The tuned model against the base."""
    export_loss: Comparison
    """The artifact against the tuned model."""

    @classmethod
    def of(
        cls, task: TaskType, truth: Sequence[str], answers: Mapping[str, Sequence[str]], labels: Sequence[str]
    ) -> "Evaluated":
        """Scores and comparisons of ``answers``; ``labels`` are the allowed ones of a classification."""
        right = right_for(task)
        return cls(
            task,
            truth,
            answers,
            {model: score_task(task, truth, answers[model], labels) for model in MODELS},
            compare(truth, answers["base"], answers["tuned"], right),
            compare(truth, answers["tuned"], answers["artifact"], right),
        )

    def scalars(self) -> dict[str, str]:
        """The stage's scalars, as docs/reference/stages.md names them."""
        return {"samples": str(len(self.truth))} | {
            f"{measure}{model.capitalize()}": f"{getattr(scores, measure):.4f}"
            for measure in ("accuracy", "precision", "recall", "f1")
            for model, scores in self.scores.items()
        }

    def summary(self) -> str:
        """One sentence for the status."""
        shares = ", ".join(f"{model} {scores.accuracy:.1%}" for model, scores in self.scores.items())
        return f"Accuracy on {len(self.truth)} examples: {shares}."

    def metrics(self) -> dict[str, Any]:
        """Everything measured, as JSON."""
        return {
            "scalars": self.scalars(),
            "models": {model: asdict(scores) for model, scores in self.scores.items()},
            "tunedAgainstBase": asdict(self.gain),
            "artifactAgainstTuned": asdict(self.export_loss),
        }


def render_html(evaluated: Evaluated) -> str:
    """The report as one HTML page."""
    words = _WORDS[evaluated.task]
    overview = [
        [
            MODELS[model],
            f"{s.accuracy:.1%}",
            f"{s.interval[0]:.1%} – {s.interval[1]:.1%}",
            *(f"{value:.3f}" for value in (s.precision, s.recall, s.f1)),
            str(s.unknown_answers),
        ]
        for model, s in evaluated.scores.items()
    ]
    return "".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>',
            f"<h1>Evaluation</h1><p>{escape(evaluated.summary())} An answer counts when it is {words.right}.</p>",
            _table(
                ["model", "accuracy", "95 % interval", "precision", "recall", "F1", words.unknown],
                overview,
            ),
            f"<p>Intervals after Wilson; precision, recall and F1 are means over {words.mean}.</p>",
            _comparison("Was tuning worth it? Tuned against base", evaluated.gain),
            _comparison("Did the export cost anything? Artifact against tuned", evaluated.export_loss),
            _labels(evaluated) if evaluated.task is TaskType.CLASSIFICATION else "",
            "</html>\n",
        ]
    )


def _labels(evaluated: Evaluated) -> str:
    per_label = [
        [label, str(row.support), *(f"{value:.3f}" for value in (row.precision, row.recall, row.f1))]
        for label, row in evaluated.scores["artifact"].labels.items()
    ]
    mistakes = [[r, a, str(n)] for r, a, n in confusions(evaluated.truth, evaluated.answers["artifact"], _CONFUSIONS)]
    return (
        "<h2>Labels (artifact)</h2>"
        + _table(["label", "examples", "precision", "recall", "F1"], per_label)
        + "<h2>Most frequent mistakes (artifact)</h2>"
        + (_table(["right", "answered", "times"], mistakes) if mistakes else "<p>None.</p>")
    )


def _comparison(title: str, comparison: Comparison) -> str:
    return (
        f"<h2>{escape(title)}</h2><p>{comparison.wins} examples won, {comparison.losses} lost; exact McNemar test, "
        f"p = {comparison.p_value:.3g}.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{header}</tr>{body}</table>"
