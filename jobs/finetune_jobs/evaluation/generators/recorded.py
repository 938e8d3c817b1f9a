"""Whoever answers: all that is said is written down, so that nothing which is asked one day can be forgotten there."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from finetune_jobs.evaluation.batches import Answered
from finetune_jobs.evaluation.behaviour.likelihood import Given
from finetune_jobs.evaluation.disturbance import Disturbed
from finetune_jobs.evaluation.generate import Generated, Questions
from finetune_jobs.evaluation.generators.protocol import Exported, Generator, Generators
from finetune_jobs.evaluation.outputs import Outputs
from finetune_jobs.evaluation.passages import Passage


@dataclass(frozen=True)
class RecordedGenerator:
    """A model, and where what it says goes. Satisfies ``Generator``."""

    model: Generator
    outputs: Outputs

    def write(self, questions: Questions, answered: Answered, *, weighed: bool = False) -> list[Generated]:
        """As the model."""
        found = self.model.write(questions, answered, weighed=weighed)
        self.outputs.wrote(questions, found, weighed=weighed)
        return found

    def write_and_choose(
        self, questions: Questions, labels: Sequence[str], stop: int, answered: Answered
    ) -> tuple[list[Generated], list[str]]:
        """As the model."""
        found, chosen = self.model.write_and_choose(questions, labels, stop, answered)
        self.outputs.wrote(questions, found, weighed=False, labels=chosen)
        return found, chosen

    def losses(self, given: Sequence[Given], done: Answered) -> list[float]:
        """As the model."""
        found = self.model.losses(given, done)
        self.outputs.lost(given, found)
        return found

    def weigh(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """As the model."""
        found = self.model.weigh(prompt, answers)
        self.outputs.weighed(found)
        return found

    def log_probs(self, passage: Passage) -> list[float]:
        """As the model."""
        found = self.model.log_probs(passage)
        self.outputs.read(passage, found)
        return found


@dataclass(frozen=True)
class RecordedGenerators:
    """Satisfies ``Generators``."""

    models: Generators
    outputs: Outputs

    @property
    def program(self) -> str:
        """That of the models."""
        return self.models.program

    def base(self) -> RecordedGenerator:
        """As the models."""
        return self._recorded("base", self.models.base())

    def tuned(self) -> RecordedGenerator:
        """As the models."""
        return self._recorded("tuned", self.models.tuned())

    def exported(self, exported: Exported) -> RecordedGenerator:
        """As the models, whatever the format is used for afterwards."""
        return self._recorded(exported.format, self.models.exported(exported))

    def disturbed(self, passages: Sequence[Passage], noisy: int) -> list[Disturbed]:
        """As the models; ``reference.jsonl`` has it."""
        return self.models.disturbed(passages, noisy)

    def __enter__(self) -> Self:
        self.models.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.models.__exit__(kind, error, trace)

    def _recorded(self, name: str, model: Generator) -> RecordedGenerator:
        self.outputs.begin(name)
        return RecordedGenerator(model, self.outputs)
