"""What an evaluation found: the scalars and the summary of the stage, and ``metrics.json`` for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.metrics import Comparison, Scores, compare
from finetune_jobs.evaluation.tasks import right_for, score_task

MODELS: Final = {
    "base": "base model",
    "tuned": "base and adapter, as trained",
    "artifact": "exported artifact, as served",
}
"""What was asked, by the name in files and scalars."""


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
