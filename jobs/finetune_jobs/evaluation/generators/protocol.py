"""What an evaluation needs of a program that runs models, whichever it is.

Everything that is asked is tokens when it reaches a model: the same ones for every program, rendered by the tokenizer
that lies beside the model. All answers are greedy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from finetune_jobs.evaluation.batches import Answered
from finetune_jobs.evaluation.behaviour.likelihood import Given
from finetune_jobs.evaluation.disturbance import Disturbed
from finetune_jobs.evaluation.generate import Generated, Questions
from finetune_jobs.evaluation.passages import Passage


class Generator(Protocol):
    """A model that is loaded. Each method raises torch.OutOfMemoryError if one prompt does not fit the GPU's memory,
    and StageError (GeneratorFailed) if another program that runs the model fails."""

    def write(self, questions: Questions, answered: Answered, *, weighed: bool = False) -> list[Generated]:
        """The most likely answer to each question; ``weighed``: and how likely it is."""

    def write_and_choose(
        self, questions: Questions, labels: Sequence[str], stop: int, answered: Answered
    ) -> tuple[list[Generated], list[str]]:
        """The same, and the label that the model finds likeliest as the whole answer, with ``stop`` after it; of
        equally likely ones the first."""

    def losses(self, given: Sequence[Given], done: Answered) -> list[float]:
        """The mean negative log-likelihood of each answer's tokens, in nats per token (teacher forcing)."""

    def weigh(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log-probability of each answer after one prompt."""

    def log_probs(self, passage: Passage) -> list[float]:
        """The log-probability of each token but the first, given those before it, in four digits."""


@dataclass(frozen=True)
class Exported:
    """The model in one format."""

    format: str
    digest: str
    """Of its folder in the store."""
    folder: Path
    base: Path | None = None
    """Of an adapter: the exported model that it belongs to."""

    @property
    def checkpoint(self) -> Path:
        """Where config.json and the tokenizer are."""
        return self.base or self.folder


class Generators(Protocol):
    """A program that loads the models under test, one after the other: a model is gone once the next is asked for, so
    a caller keeps none. Each raises StageError (ModelUnsupported, CudaOutOfMemory, GeneratorFailed)."""

    @property
    def program(self) -> str:
        """Its name and version, once it has loaded a model."""

    def base(self) -> Generator:
        """The base model in the precision in which it was trained."""

    def tuned(self) -> Generator:
        """The tuned model as training left it, after ``base``."""

    def exported(self, exported: Exported) -> Generator:
        """An exported model, exactly as its files say."""

    def disturbed(self, passages: Sequence[Passage], noisy: int) -> list[Disturbed]:
        """What the exported model that was asked last finds of each passage with wrong rotary positions, and of the
        first ``noisy`` with noise. A program in which these cannot be changed has transformers do it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees what the last model took."""
