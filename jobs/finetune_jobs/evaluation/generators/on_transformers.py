"""transformers answers: in this process, on its GPU or CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import TypeAdapter

from finetune_jobs.evaluation.batches import Answered, PromptBatch, Prompts, in_batches
from finetune_jobs.evaluation.behaviour.likelihood import Given, answer_losses
from finetune_jobs.evaluation.choices import choosing
from finetune_jobs.evaluation.disturbance import Disturbed, disturbed
from finetune_jobs.evaluation.findings import FindingKind, KeptFindings, keep_findings
from finetune_jobs.evaluation.generate import Generated, Questions, ask_each, generate, writing
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.evaluation.passages import Passage, log_probs
from finetune_jobs.evaluation.weighing import weighing
from finetune_jobs.modelling.loading import load_adapter, load_base, load_checkpoint, make_room, unpacked
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.modelling.tuning import Tuning

LoadArtifact = Callable[[Path, Path | None], Any]
"""Loads an exported model from its folder, an adapter with the folder of its base."""
_BOTH: Final = TypeAdapter(tuple[str, Generated])
_LIKELY: Final = TypeAdapter(list[float])


@dataclass(frozen=True)
class TransformersGenerator:
    """A model of transformers. Satisfies ``Generator``."""

    model: Any
    tokenizer: Any

    def write(self, questions: Questions, answered: Answered, *, weighed: bool = False) -> list[Generated]:
        """In batches of similar length."""
        return generate(self.model, self.tokenizer, questions, answered, weighed=weighed)

    def write_and_choose(
        self, questions: Questions, labels: Sequence[str], stop: int, answered: Answered
    ) -> tuple[list[Generated], list[str]]:
        """Both after reading each prompt once."""
        choose = choosing(self.tokenizer, labels, stop)
        write = writing(self.model, self.tokenizer, questions)

        def both(batch: PromptBatch) -> list[tuple[str, Generated]]:
            return list(zip(choose(batch), write(batch), strict=True))

        kind = FindingKind("choice and answer", _BOTH, [labels, stop, questions.thoughts], answers=True)
        found = ask_each(self.model, self.tokenizer, questions, both, answered, kind)
        return [answer for _, answer in found], [label for label, _ in found]

    def losses(self, given: Sequence[Given], done: Answered) -> list[float]:
        """In batches of similar length."""
        return answer_losses(self.model, self.tokenizer.pad_token_id, given, done)

    def weigh(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """After reading the prompt once."""
        prompts = Prompts([prompt], self.tokenizer.pad_token_id, max(map(len, answers)), 1)
        kind = FindingKind("codes", _LIKELY, answers)
        [likely] = in_batches(self.model, prompts, weighing(answers), lambda _done, _total: None, kind)
        return likely

    def log_probs(self, passage: Passage) -> list[float]:
        """In pieces, so that the logits of a text are never in memory at once."""
        return log_probs(self.model, passage)


@dataclass
class TransformersGenerators:
    """Satisfies ``Generators``."""

    base_folder: Path
    tuned_folder: Path
    """train's output."""
    tuning: Tuning
    load_artifact: LoadArtifact
    findings: KeptFindings | None = None
    """Where what the models say outlives the pod; None: nowhere."""
    _model: Any = field(default=None, init=False)

    @property
    def program(self) -> str:
        """That of this process."""
        return f"transformers {version('transformers')}"

    def base(self) -> TransformersGenerator:
        """Rounded as it was trained."""
        self._drop()
        self._model = unpacked(load_base(self.base_folder, self.tuning.quantization))
        return self._known(["base", self.tuning.quantization], self.base_folder)

    def tuned(self) -> TransformersGenerator:
        """An adapter goes onto the base that is loaded."""
        if self.tuning.is_adapter:
            self._model = load_adapter(self._model, self.tuned_folder)
        else:
            self._drop()
            self._model = load_checkpoint(self.tuned_folder)
        return self._known("tuned", self.base_folder)

    def exported(self, exported: Exported) -> TransformersGenerator:
        """With the tokenizer that was exported with it."""
        self._drop()
        self._model = self.load_artifact(exported.folder, exported.base)
        return self._known(["artifact", exported.digest], exported.checkpoint)

    def disturbed(self, passages: Sequence[Passage], noisy: int) -> list[Disturbed]:
        """By the model that is loaded."""
        return [disturbed(self._model, each, noisy=number < noisy) for number, each in enumerate(passages)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def _known(self, identity: Any, tokens: Path) -> TransformersGenerator:
        """The model that is loaded, and what earlier pods kept of it. ``identity``: as ``keep_findings``; ``tokens``:
        where its tokenizer is."""
        keep_findings(self._model, self.findings, identity)
        return TransformersGenerator(self._model, load_tokenizer(tokens))

    def _drop(self) -> None:
        """Before another one needs its memory."""
        self._model = None
        make_room()
