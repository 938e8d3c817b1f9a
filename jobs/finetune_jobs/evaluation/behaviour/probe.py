"""One model answers the sets: greedy answers, and how likely it finds given ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation.behaviour.items import SetItem, Sets
from finetune_jobs.evaluation.behaviour.likelihood import Given, encode
from finetune_jobs.evaluation.generate import Questions
from finetune_jobs.evaluation.generators.protocol import Generator
from finetune_jobs.modelling import chat

ANSWER_TOKENS: Final = 32
"""Most tokens of an answer: enough for every reference and for a sentence around it."""
MUST_THINK: Final = "Not asked: the base model's chat template only lets it answer after thoughts."
GENERAL: Final = "general"
ADVERSARIAL: Final = "adversarial"
BIAS: Final = "bias"
"""What the sets are called where answers are written down."""
BATCH_SIZE: Final = 32
"""Prompts in a batch: short ones, so twice as many as of an evaluation's own."""


@dataclass(frozen=True)
class Responses:
    """What one model did with the sets, by the items' ids."""

    answers: Mapping[str, str]
    losses: Mapping[str, float]
    """Of the general set: mean negative log-likelihood of the reference answer, in nats per token."""
    swap_losses: Mapping[str, tuple[float, float]]
    """The same of both forms of each pair."""


@dataclass(frozen=True)
class Probe:
    """The sets, as a model's template renders them."""

    sets: Sets
    tokenizer: Any
    stop: int
    """The token with which the template ends an answer."""
    system_role: bool
    """Whether the template has one; otherwise a system message stands before the question."""
    note: str = ""
    """Why nothing is asked."""

    def ask(self, generator: Generator, progress: Progress, start: float, end: float, name: str) -> Responses:
        """What a model does with the sets; progress goes from ``start`` to ``end``. Raises as ``Generator``."""
        items = [*self.sets.general, *self.sets.adversarial]
        middle = start + (end - start) * 0.8
        texts: list[str] = []
        if items:
            written = generator.write(self.questions, progress.part(start, middle, f"{name}, sets"))
            texts = [each.text for each in written]
        report = progress.part(middle, end, f"{name}, likelihood")
        losses = generator.losses(self.given, report)
        of_swaps = losses[len(self.sets.general) :]
        return Responses(
            answers={item.id: text for item, text in zip(items, texts, strict=True)},
            losses={item.id: loss for item, loss in zip(self.sets.general, losses, strict=False)},
            swap_losses={
                swap.id: pair
                for swap, pair in zip(self.sets.swaps, zip(of_swaps[::2], of_swaps[1::2], strict=True), strict=True)
            },
        )

    @property
    def of_safety(self) -> "Probe":
        """The adversarial set alone, without its pairs."""
        return replace(self, sets=Sets(adversarial=self.sets.adversarial))

    @property
    def questions(self) -> Questions:
        """What is to be answered: first of the general set, then of the adversarial one."""
        items = [*self.sets.general, *self.sets.adversarial]
        ids = [f"{GENERAL}/{item.id}" for item in self.sets.general]
        ids += [f"{ADVERSARIAL}/{item.id}" for item in self.sets.adversarial]
        return Questions([self._messages(item) for item in items], ANSWER_TOKENS, BATCH_SIZE, ids=ids)

    @property
    def given(self) -> list[Given]:
        """Answers that are given: first those of the general set, then both forms of each pair."""
        return [
            *(
                encode(self.tokenizer, self._messages(i), i.reference, self.stop, f"{GENERAL}/{i.id}")
                for i in self.sets.general
            ),
            *(
                encode(self.tokenizer, [{"role": "user", "content": prompt}], swap.reference, self.stop, id_)
                for swap in self.sets.swaps
                for prompt, id_ in zip(swap.prompts, (f"{BIAS}/{swap.id}/0", f"{BIAS}/{swap.id}/1"), strict=True)
            ),
        ]

    def _messages(self, item: SetItem) -> Sequence[chat.Message]:
        if not item.system:
            return [{"role": "user", "content": item.prompt}]
        if self.system_role:
            return [{"role": "system", "content": item.system}, {"role": "user", "content": item.prompt}]
        return [{"role": "user", "content": f"{item.system}\n\n{item.prompt}"}]


def probe_for(tokenizer: Any, stop: int, sets: Sets) -> Probe:
    """How a tokenizer's template asks the sets; not at all, if it only lets a model answer after thoughts.

    Also a model that was tuned to think is asked to answer at once: as many thoughts as an answer may need would cost
    more than the rest of an evaluation.
    """
    if not _renders(tokenizer, [{"role": "user", "content": "a question"}]):
        return Probe(Sets(), tokenizer, stop, False, MUST_THINK)
    both = [{"role": "system", "content": "a rule"}, {"role": "user", "content": "a question"}]
    return Probe(sets, tokenizer, stop, _renders(tokenizer, both))


def _renders(tokenizer: Any, messages: Sequence[chat.Message]) -> bool:
    try:
        chat.prompt_ids(tokenizer, messages)
    except StageError:
        return False
    return True
