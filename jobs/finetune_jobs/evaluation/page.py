"""``report.html``: an evaluation for people, as the parts of which its page is made.

This module says what stands in each table and how to read a figure; ``scores.html.j2`` and ``details.html.j2`` say
where. Unlike the readiness report it quotes test examples: that is what ``answers.jsonl`` beside it holds, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.goals import Metric
from finetune_api.layout import output_folder
from finetune_api.stages import Stage, StageInput
from finetune_jobs.artifacts.measurements import ELSEWHERE, SHOWN, Difference
from finetune_jobs.evaluation import details
from finetune_jobs.evaluation.behaviour.comparison import Behaviour
from finetune_jobs.evaluation.behaviour.section import sections
from finetune_jobs.evaluation.conclusion import Conclusion
from finetune_jobs.evaluation.estimates import PAIRS
from finetune_jobs.evaluation.meanings import WORDS, Words, meanings
from finetune_jobs.evaluation.metrics import Comparison, confusions
from finetune_jobs.evaluation.mistakes import worst
from finetune_jobs.evaluation.page_parts import PageParts
from finetune_jobs.evaluation.prompting import NAMES, PROMPTED, described
from finetune_jobs.evaluation.report import MODELS, WITH, WITHOUT, Evaluated
from finetune_jobs.reports import page
from finetune_jobs.reports.charts import Bar, Kind, Segment
from finetune_jobs.reports.page import Fact, Table, TableRow, uris

_CONFUSIONS: Final = 20
_LABELS: Final = 100
_WORST: Final = 20
_SOURCES: Final = 3
_SHORT: Final = {
    "base": "base model",
    "fewShot": "base, few-shot",
    "verbose": "base, free-form",
    "constrained": "base, labels only",
    ELSEWHERE: "another model",
    "tuned": "with adapter",
    "artifact": "artifact",
}
"""The models above their answers."""
_ANOTHER_READING: Final = ("verbose", "constrained")
"""Beside a wrong answer, one answer of a base model that was asked the same way is enough."""


@dataclass(frozen=True)
class EvaluationSubject:
    """What an evaluation is of."""

    identity: Sequence[Fact] = ()
    """Job, model and data, for the top of the page."""
    origin: Sequence[Fact] = ()
    """Their digests, for its end."""


def lay_out(
    evaluated: Evaluated,
    questions: Sequence[str],
    subject: EvaluationSubject,
    behaviour: Behaviour | None = None,
    shots: Sequence[tuple[str, str]] = (),
) -> PageParts:
    """The page's parts. ``questions`` are what was asked, ``subject`` says of what. ``shots`` are question and answer
    of each example that the base model was shown."""
    words = WORDS[evaluated.task]
    return PageParts(
        identity=list(subject.identity),
        summary=evaluated.summary(),
        right=words.lead or f"An answer is right if it is {words.right}.",
        scores=_scores(evaluated, words),
        details=_details(evaluated, words, questions, behaviour or Behaviour(), shots),
        origin=list(subject.origin),
    )


def _scores(evaluated: Evaluated, words: Words) -> str:
    return page.render_part(
        "evaluation/scores.html.j2",
        verdicts=[_gain(evaluated), *_prompting(evaluated), *_elsewhere(evaluated), _export_loss(evaluated)],
        texts=_texts(evaluated) if evaluated.task is TaskType.TEXT else None,
        accuracy=_accuracy(evaluated, words),
        agreement=_agreement(evaluated, words),
        apart=_apart(evaluated),
        ledger=_ledger(evaluated),
        meanings=[*meanings(evaluated.task, evaluated.measurements.groups), *details.facts(evaluated)],
        shares=[table for table in (details.calls_table(evaluated), details.json_table(evaluated)) if table],
    )


def _details(
    evaluated: Evaluated,
    words: Words,
    questions: Sequence[str],
    behaviour: Behaviour,
    shots: Sequence[tuple[str, str]],
) -> str:
    is_label, is_text = evaluated.task is TaskType.CLASSIFICATION, evaluated.task is TaskType.TEXT
    wrong = round(len(evaluated.truth) * (1 - evaluated.scores["artifact"].accuracy))
    beside = {model: said for model, said in evaluated.answers.items() if model not in _ANOTHER_READING}
    mistakes = worst(evaluated.task, questions, evaluated.truth, beside, _WORST)
    return page.render_part(
        "evaluation/details.html.j2",
        automation=_automation(evaluated),
        labels=_labels(evaluated) if is_label else None,
        confusions=_confusions(evaluated) if is_label else None,
        fields=details.fields_table(evaluated),
        mistakes=mistakes,
        mistakes_text=_mistakes_text(len(mistakes), wrong, is_text=is_text),
        models=_SHORT,
        said_as=words.said,
        shots=shots,
        behaviour=sections(behaviour),
    )


def identify(given: StageInput) -> EvaluationSubject:
    """What an evaluation is of, but for the artifact's weights."""
    params, chain = given.params, given.upstream
    identity = [Fact("Job", [f"{given.run.namespace}/{given.run.name}"])]
    identity.append(Fact("Base model", [given.base_model_uri], code=True))
    if params.evaluate:
        identity.append(Fact("Task", [f"{params.evaluate.task.type.value}, tuned with {params.evaluate.method}"]))
    if params.prepare:
        identity.append(uris("Data", [source.name for source in params.prepare.dataset.sources], _SOURCES))
    folders = {
        "Data set": output_folder(Stage.PREPARE, chain.dataset),
        "Adapter": output_folder(Stage.TRAIN, chain.adapter),
    }
    origin = [Fact(name, [folder], code=True) for name, folder in folders.items()]
    return EvaluationSubject(identity, [*origin, Fact("Base model's files", [chain.model or "unknown"], code=True)])


def as_evaluated(subject: EvaluationSubject, digest: str, program: str) -> EvaluationSubject:
    """The subject with what only the evaluation knows: the folder of the format that is the artifact, and which program
    ran the models."""
    weights = Fact("Artifact's weights", [output_folder(Stage.EXPORT, digest)], code=True)
    return replace(subject, origin=[*subject.origin, weights, Fact("Answered by", [program])])


def _texts(evaluated: Evaluated) -> Table:
    """How near texts come to what is expected, and how unlikely that is for each model."""
    rows: list[TableRow] = []
    chrf, perplexity = (evaluated.measurements.of(metric) for metric in (Metric.CHRF, Metric.PERPLEXITY))
    for model, it in (chrf.models if chrf else {}).items():
        likely = perplexity.models.get(model) if perplexity else None
        unlikely = [f"{likely.value:.2f}", f"{likely.low:.2f} – {likely.high:.2f}"] if likely else ["–", "–"]
        rows.append(
            TableRow(
                MODELS[model],
                [f"{it.value:.1%}", f"{it.low:.1%} – {it.high:.1%}", *unlikely],
                Bar([Segment(Kind.SCORE, it.value)], (it.low, it.high)),
            )
        )
    head = ["model", "chrF", "95 % interval", "perplexity", "95 % interval"]
    return Table("Similarity to the expected answers; the bar shows chrF", head, rows, long=True)


def _accuracy(evaluated: Evaluated, words: Words) -> Table:
    rows = [
        TableRow(
            MODELS[model],
            [
                f"{round(s.accuracy * s.samples):,} of {s.samples:,}",
                f"{s.accuracy:.1%}",
                f"{s.interval[0]:.1%} – {s.interval[1]:.1%}",
            ],
            Bar([Segment(Kind.SCORE, s.accuracy)], s.interval),
        )
        for model, s in evaluated.scores.items()
    ]
    is_text = evaluated.task is TaskType.TEXT
    caption = f"{'Exact matches' if is_text else 'Right answers'}, with the 95 % interval"
    count = "exact matches" if is_text else "right"
    return Table(caption, ["model", count, words.share.lower(), "95 % interval"], rows, long=True)


def _agreement(evaluated: Evaluated, words: Words) -> Table:
    rows = [
        TableRow(
            MODELS[model],
            [
                *(f"{value:.3f}" for value in (s.precision, s.recall, s.f1)),
                *([f"{s.unknown_answers:,}"] if words.unknown else []),
            ],
        )
        for model, s in evaluated.scores.items()
    ]
    head = ["model", "precision", "recall", "F1", *([words.unknown] if words.unknown else [])]
    return Table("Precision, recall and F1, from 0 to 1", head, rows, long=True)


def _apart(evaluated: Evaluated) -> Table | None:
    """Right answers to examples with and without placeholders, if the test has both."""
    kinds, is_text = {WITH: "with placeholders", WITHOUT: "without"}, evaluated.task is TaskType.TEXT
    rows = [
        TableRow(f"{MODELS[model]}, {kinds[kind]}", [f"{s.samples:,}", f"{s.f1:.1%}"], Bar([Segment(Kind.SCORE, s.f1)]))
        if is_text
        else TableRow(
            f"{MODELS[model]}, {kinds[kind]}",
            [f"{round(s.accuracy * s.samples):,} of {s.samples:,}", f"{s.accuracy:.1%}"],
            Bar([Segment(Kind.SCORE, s.accuracy)], s.interval),
        )
        for kind, scores in evaluated.apart.items()
        for model, s in scores.items()
    ]
    head = ["model, examples", *(("count", "F1") if is_text else ("right", "accuracy"))]
    caption = "Examples with and without placeholders for personal data: in use, the model sees real values"
    return Table(caption, head, rows, long=True) if rows else None


def _ledger(evaluated: Evaluated) -> Table:
    """What each step changed: base → tuned → artifact, both together, and what the other formats would have."""
    rows: list[TableRow] = []
    for model, against in PAIRS:
        rows += _step(evaluated, model, against, f"{_SHORT[against]} → {_named(evaluated, model)}")
    for name, each in evaluated.beside.items():
        rows += _step(each, "artifact", "tuned", f"{_SHORT['tuned']} → {name}, not served")
    head = ["step", "metric", "before", "after", "difference", "95 % interval", "beyond chance"]
    return Table("What each step changed, on the same examples", head, rows, long=True)


def _step(evaluated: Evaluated, model: str, against: str, title: str) -> Iterator[TableRow]:
    shown = (Metric.CHRF, Metric.PERPLEXITY, Metric.EXACT_MATCH, Metric.ACCURACY, Metric.F1)
    for metric in shown:
        found = evaluated.measurements.difference(metric, model, against)
        before, after = (evaluated.value(metric, each) for each in (against, model))
        if found is None or before is None or after is None:
            continue
        form = ".2f" if metric is Metric.PERPLEXITY else ".1%"
        it, name = found.estimate, NAMES.get(metric, metric.value)
        cells = [name, f"{before:{form}}", f"{after:{form}}", f"{it.value:+.1%}", f"{it.low:+.1%} – {it.high:+.1%}"]
        yield TableRow(title, [*cells, _beyond_chance(found)])


def _named(evaluated: Evaluated, model: str) -> str:
    """A model, the artifact with its format."""
    return f"{_SHORT[model]}, {evaluated.format}" if model == "artifact" and evaluated.format else _SHORT[model]


def _automation(evaluated: Evaluated) -> Table | None:
    """What needs no human review, at a few precisions."""
    measured = [evaluated.measurements.automated(precision) for precision in SHOWN]
    rows = [
        TableRow(
            f"{found.precision:.0%}",
            [
                "none" if found.threshold is None else f"{exp(found.threshold):.4f}",
                f"{found.share.value:.1%} ({found.share.low:.1%} – {found.share.high:.1%})",
                f"{found.right:,} of {found.taken:,}",
                f"{found.reached.low:.1%} – {found.reached.high:.1%}" if found.taken else "–",
            ],
            Bar([Segment(Kind.SCORE, found.share.value)], (found.share.low, found.share.high)),
        )
        for found in measured
        if found
    ]
    head = ["target precision", "threshold", "accepted", "right of these", "95 % interval"]
    return Table("Answers of the artifact that can be accepted as they are", head, rows, long=True) if rows else None


def _beyond_chance(difference: Difference) -> str:
    if difference.worse_beyond_chance:
        return "✕ worse"
    return "✓ better" if difference.better_beyond_chance else "no"


def _gain(evaluated: Evaluated) -> Conclusion:
    """The tuned model against the base."""
    question, gain, difference = "Was tuning worth it?", evaluated.gain, evaluated.difference("tuned", "base")
    counts = (
        f"With the adapter, the model got {_examples(gain.wins)} right that the base model got wrong, and "
        f"{_examples(gain.losses)} wrong that the base model got right."
    )
    said, test = _grounds(counts, gain, difference)
    if difference.better_beyond_chance:
        return Conclusion(question, "Pass", "✓ yes", f"{said} Chance does not explain the difference.", test)
    if difference.worse_beyond_chance:
        return Conclusion(question, "Fail", "✕ no", f"{said} Tuning made the model worse.", test)
    return Conclusion(question, "Warn", "! unclear", f"{said} Chance could explain the difference.", test)


def _prompting(evaluated: Evaluated) -> list[Conclusion]:
    """The artifact against the best of the ways to prompt, if one was asked."""
    said = evaluated.prompting()
    if not said:
        return []
    badge, answer = _would_have_done(evaluated.difference("artifact", evaluated.prompted))
    asked = [_SHORT[model] for model in PROMPTED if model in evaluated.scores]
    test = f"Paired on the same examples, against the best of these: {'; '.join(asked)}."
    if evaluated.task is not TaskType.TEXT:
        test += " Words around the right answer cost none of them anything."
    return [Conclusion("Would prompting have been enough?", badge, answer, said, test)]


def _elsewhere(evaluated: Evaluated) -> list[Conclusion]:
    """The artifact against the model of spec.evaluation.baseline, if there is one."""
    said = evaluated.elsewhere()
    if not said:
        return []
    badge, answer = _would_have_done(evaluated.difference("artifact", ELSEWHERE))
    test = (
        "Paired on the same examples. The other model got the same prompts after the same few-shot examples, and its "
        "answers are read as a person would read them."
    )
    return [Conclusion("Would another model have been enough?", badge, answer, said, test)]


def _would_have_done(gain: Difference) -> tuple[str, str]:
    """Badge and answer, from what the artifact gained over what would have been done instead."""
    if gain.better_beyond_chance:
        return "Pass", "✓ no"
    return ("Fail", "✕ yes") if gain.worse_beyond_chance else ("Warn", "! perhaps")


def _export_loss(evaluated: Evaluated) -> Conclusion:
    """The artifact against the tuned model."""
    question, loss = "Did the export lose quality?", evaluated.export_loss
    difference = evaluated.difference("artifact", "tuned")
    counts = (
        f"The artifact got {_examples(loss.losses)} wrong that the tuned model got right, and {_examples(loss.wins)} "
        "right that the tuned model got wrong."
    )
    said, test = _grounds(counts, loss, difference)
    if difference.worse_beyond_chance:
        return Conclusion(question, "Fail", "✕ yes", f"{said} Chance does not explain the difference.", test)
    if difference.better_beyond_chance:
        return Conclusion(question, "Pass", "✓ no", f"{said} The artifact is better.", test)
    return Conclusion(question, "Pass", "✓ no loss seen", f"{said} Chance could explain the difference.", test)


def _grounds(counts: str, comparison: Comparison, difference: Difference) -> tuple[str, str]:
    """What the verdict rests on: counts and their exact test, or the interval of what has none."""
    if difference.p_value is not None:
        return counts, _test(comparison)
    return f"The difference is {described(difference)}.", "Paired bootstrap; see the section on what the figures mean."


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count:,} examples"


def _test(comparison: Comparison) -> str:
    won, lost = comparison.wins, comparison.losses
    return f"{won:,} won, {lost:,} lost; exact McNemar test, p = {comparison.p_value:.3g}."


def _labels(evaluated: Evaluated) -> Table:
    labels = evaluated.scores["artifact"].labels
    ordered = sorted(labels, key=lambda label: (labels[label].f1, label))
    rows = [
        TableRow(
            label,
            [
                f"{labels[label].support:,}",
                *(f"{v:.3f}" for v in (labels[label].precision, labels[label].recall, labels[label].f1)),
            ],
            Bar([Segment(Kind.SCORE, labels[label].f1)]),
        )
        for label in ordered[:_LABELS]
    ]
    shown = f"The {_LABELS} weakest of {len(ordered):,} labels" if len(ordered) > _LABELS else "The weakest first"
    return Table(f"{shown}; the bar shows F1", ["label", "examples", "precision", "recall", "F1"], rows, long=True)


def _confusions(evaluated: Evaluated) -> Table | None:
    found = confusions(evaluated.truth, evaluated.answers["artifact"], _CONFUSIONS)
    rows = [TableRow(right, [answer, f"{count:,}"]) for right, answer, count in found]
    return (
        Table("Labels that the artifact confuses", ["expected", "answered", "times"], rows, words=True)
        if rows
        else None
    )


def _mistakes_text(shown: int, wrong: int, *, is_text: bool) -> str:
    if not wrong:
        return "None: the artifact answered every test example correctly."
    if is_text:
        which = "All answers" if shown == wrong else f"{shown:,} of {wrong:,} answers"
        return (
            f"{which} of the artifact that differ from the expected text, the least similar first. Only people can "
            "tell whether an answer in other words is good."
        )
    which = "All wrong answers" if shown == wrong else f"{shown:,} of {wrong:,} wrong answers"
    return f"{which} of the artifact, the worst first, with the expected answer and the other models' answers."
