"""What an evaluation found: the scalars and the summary of the stage, and ``metrics.json`` for programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_api.gates import main_metric
from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import ELSEWHERE, Automation, Difference, Distances, Measurements
from finetune_jobs.evaluation.clusters import Groups, mean
from finetune_jobs.evaluation.estimates import measure, metrics_of
from finetune_jobs.evaluation.grouped import Answered, in_groups
from finetune_jobs.evaluation.metrics import Comparison, Scores, compare
from finetune_jobs.evaluation.prompting import NAMES, described, on_prompting, prompted
from finetune_jobs.evaluation.shares import measure_matching, measure_shares
from finetune_jobs.evaluation.tasks import right_for, score_task
from finetune_jobs.evaluation.texts import Likelihoods

MODELS: Final = {
    "base": "base model",
    "fewShot": "base model, few-shot",
    "verbose": "base model, free-form",
    "constrained": "base model, labels only",
    ELSEWHERE: "another model, by URL",
    "tuned": "base and adapter, as trained",
    "artifact": "exported artifact, as served",
}
"""What was asked, by the name in files and scalars; not every evaluation has asked all of them."""
_IN_SCALARS: Final = ("base", "fewShot", "tuned", "artifact")
"""A stage's result is short: the others are in ``metrics.json``."""
WITH: Final = "with"
WITHOUT: Final = "without"


@dataclass(frozen=True)
class Probabilities:
    """What is known of how likely models find answers."""

    automation: Sequence[Automation] = ()
    """Of the artifact's own."""
    expected: Likelihoods | None = None
    """Of the expected ones; None: only of texts."""
    distances: Sequence[Distances] = ()
    """Between base model, tuned model and artifact, in given texts."""
    without_numbers: int = 0
    """Those of the texts for which the artifact computes no numbers, although the base model does."""


@dataclass(frozen=True)
class RowFacts:
    """What is known of the test examples beside question and answer."""

    masked: Sequence[bool] = ()
    """Of each, whether it holds placeholders."""
    groups: Groups | None = None
    """Which are alike; None: each stands for itself."""


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
    apart: Mapping[str, Mapping[str, Scores]]
    """Scores by model of the examples WITH and WITHOUT placeholders for personal data; empty: all are of one kind."""
    measurements: Measurements
    """Intervals of all metrics, and the differences between the models."""
    format: str = ""
    """That of the artifact; empty: its export did not say."""
    beside: Mapping[str, "Evaluated"] = field(default_factory=dict)
    """The same for each other format that was made: its files as the artifact. In the order in which they are tried."""
    passed_over: Sequence[str] = ()
    """Those of them that would have been the artifact, had they held what was trained."""

    @classmethod
    def of(
        cls,
        task: TaskType,
        truth: Sequence[str],
        answers: Mapping[str, Sequence[str]],
        labels: Sequence[str],
        rows: RowFacts | None = None,
        probabilities: Probabilities | None = None,
    ) -> "Evaluated":
        """Scores and comparisons of ``answers``; ``labels`` are the allowed ones of a classification."""
        known = rows or RowFacts()
        right, likely = right_for(task), probabilities or Probabilities()
        asked = {model: answers[model] for model in MODELS if model in answers}
        measured = measure(task, truth, asked, labels, likely.expected)
        if known.groups:
            measured = in_groups(measured, Answered(task, truth, asked, known.groups))
        measured = measured.with_more(measure_shares(task, truth, asked, known.groups))
        shares = measured.of(metrics_of(task)[0])
        intervals = {model: (it.low, it.high) for model, it in shares.models.items()} if shares else {}
        return cls(
            task,
            truth,
            answers,
            {
                model: replace(score_task(task, truth, given, labels), interval=intervals[model])
                for model, given in asked.items()
            },
            compare(truth, answers["base"], answers["tuned"], right),
            compare(truth, answers["tuned"], answers["artifact"], right),
            _scored_apart(task, truth, answers, labels, known),
            measured.model_copy(
                update={
                    "automation": list(likely.automation),
                    "distances": list(likely.distances),
                    "without_numbers": likely.without_numbers,
                }
            ),
        )

    def matched(self, problem_of: Callable[[Any], str], groups: Groups | None = None) -> "Evaluated":
        """With the share of answers that match a schema; ``problem_of`` says which rule of it a value breaks,
        ``groups`` which rows are alike."""
        asked = {model: self.answers[model] for model in self.scores}
        found = measure_matching(self.truth, asked, problem_of, groups)
        return replace(self, measurements=self.measurements.with_more(found))

    @property
    def holds(self) -> bool:
        """Whether the artifact is what was trained, as far as anybody can tell: not worse beyond chance, and broken for
        no text."""
        return not (self.export_difference.worse_beyond_chance or self.measurements.without_numbers)

    @property
    def export_difference(self) -> Difference:
        """The artifact against the tuned model."""
        return self.difference("artifact", "tuned")

    def difference(self, model: str, against: str) -> Difference:
        """How two models differ in the task's main metric."""
        metric = main_metric(self.task)
        found = self.measurements.difference(metric, model, against)
        if found is None:
            raise ValueError(f"{metric} of {model} and {against} was not compared")
        return found

    def value(self, metric: str, model: str) -> float | None:
        """A metric of one model, of all rows; None if it was not measured."""
        found = self.measurements.of(metric)
        return found.models[model].value if found and model in found.models else None

    def scalars(self) -> dict[str, str]:
        """The stage's scalars, as docs/reference/stages.md names them."""
        return {"samples": str(len(self.truth))} | {
            f"{metric}{model[0].upper()}{model[1:]}": f"{value:.4f}"
            for metric in (*metrics_of(self.task), Metric.PERPLEXITY)
            for model in _IN_SCALARS
            if (value := self.value(metric, model)) is not None
        }

    def summary(self) -> str:
        """One sentence for the status."""
        metric = main_metric(self.task)
        name = NAMES.get(metric, metric.capitalize())
        shares = ", ".join(f"{model} {self.value(metric, model) or 0:.1%}" for model in self.scores)
        groups = f" of {self.measurements.groups} groups" if self.measurements.groups else ""
        text = f"{name} on {len(self.truth)} examples{groups}: {shares}."
        if likely := [
            f"{model} {value:.2f}" for model in self.scores if (value := self.value(Metric.PERPLEXITY, model))
        ]:
            text += f" Perplexity: {', '.join(likely)}."
        if self.apart:
            held, others = (self.apart[kind]["artifact"] for kind in (WITH, WITHOUT))
            part = "f1" if self.task is TaskType.TEXT else "accuracy"
            text += f" Artifact on the {held.samples} with placeholders {'F1 ' if part == 'f1' else ''}"
            text += f"{getattr(held, part):.1%}, on the {others.samples} others {getattr(others, part):.1%}."
        if judged := self.prompting():
            text += f" {judged}"
        if judged := self.elsewhere():
            text += f" {judged}"
        for name in self.passed_over:
            it = self.beside[name]
            why = f"computes no numbers for {it.measurements.without_numbers} of the recorded texts"
            if it.export_difference.worse_beyond_chance:
                why = f"cost {described(it.export_difference)}"
            text += f" {name} {why}, so it is not the artifact."
        if self.export_difference.worse_beyond_chance:
            text += f" {self.format or 'Quantization'} cost {described(self.export_difference)}, "
            text += "more than chance explains."
        return text

    @property
    def prompted(self) -> str:
        """The best of PROMPTED by the task's main metric; empty where none was asked."""
        return prompted(self.measurements, self.task)

    def prompting(self) -> str:
        """Whether prompting would have been enough, in one sentence; empty where the base model was only asked as the
        artifact is."""
        return on_prompting(self.measurements, self.task)

    def elsewhere(self) -> str:
        """Whether the model of spec.evaluation.baseline would have been enough, in one sentence; empty where none was
        asked."""
        if ELSEWHERE not in self.scores:
            return ""
        gain = self.difference("artifact", ELSEWHERE)
        what = f"artifact against the model of spec.evaluation.baseline, {described(gain)}"
        if gain.better_beyond_chance:
            return f"Another model would not have been enough: {what}."
        if gain.worse_beyond_chance:
            return f"Another model does better: {what}."
        return f"Another model may do as well: {what}, within chance."

    def metrics(self) -> dict[str, Any]:
        """Everything measured, as JSON."""
        return {
            "scalars": self.scalars(),
            "models": self._as_json(self.scores),
            "placeholders": {kind: self._as_json(each) for kind, each in self.apart.items()},
            "tunedAgainstBase": asdict(self.gain),
            "artifactAgainstTuned": asdict(self.export_loss),
            "measurements": self.measurements.model_dump(mode="json", by_alias=True),
        }

    def _as_json(self, scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
        """By model. A text is not just right or wrong, so it has no accuracy."""
        share = metrics_of(self.task)[0]
        found = {model: asdict(each) for model, each in scores.items()}
        return {model: {share: each.pop("accuracy"), **each} for model, each in found.items()}


def _scored_apart(
    task: TaskType,
    truth: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    known: RowFacts,
) -> dict[str, dict[str, Scores]]:
    """A model has been tuned on placeholders and will be asked about real values: a score that both share hides that
    it does well on one kind only."""
    if len(set(known.masked)) < 2:
        return {}
    made: dict[str, dict[str, Scores]] = {}
    for kind, wanted in ((WITH, True), (WITHOUT, False)):
        rows = [n for n, is_masked in enumerate(known.masked) if is_masked is wanted]
        right = [truth[n] for n in rows]
        groups = known.groups and known.groups.among([each is wanted for each in known.masked])
        made[kind] = {
            model: _scored(task, right, [given[n] for n in rows], labels, groups) for model, given in answers.items()
        }
    return made


def _scored(
    task: TaskType, truth: Sequence[str], given: Sequence[str], labels: Sequence[str], groups: Groups | None
) -> Scores:
    found = score_task(task, truth, given, labels)
    if not groups:
        return found
    low, high = mean([right_for(task)(t, a) for t, a in zip(truth, given, strict=True)], groups)
    return replace(found, interval=(min(low, found.interval[0]), max(high, found.interval[1])))
