"""Greedy answers of a model."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import TypeAdapter

from finetune_jobs.evaluation.automation import DIGITS
from finetune_jobs.evaluation.batches import Answered, PromptBatch, Prompts, T, in_batches
from finetune_jobs.evaluation.findings import FindingKind
from finetune_jobs.modelling import chat

SPARE_TOKENS: Final = 4
"""Tokens beyond the longest right answer: an answer that continues after its end must count as wrong."""
ROOM: Final = 32
"""More tokens for a base model, which may write a sentence around its answer."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked, and how."""

    prompts: Sequence[Sequence[chat.Message]]
    limit: int
    """Most tokens of an answer."""
    batch_size: int
    """Prompts in a batch, as long as they fit the memory; of short ones there are more."""
    thoughts: bool = False
    """Whether the models think before they answer; their thoughts are not part of the answer."""
    tools: Sequence[chat.Tools] = ()
    """The tools of each prompt; empty: none has any."""
    ids: Sequence[str] = ()
    """Which prompt is which where answers are written down (``outputs``); empty: they are not."""

    def encoded(self, tokenizer: Any) -> list[list[int]]:
        """The prompts as tokens, as a server would give them to the model, whoever answers."""
        tools = self.tools or [()] * len(self.prompts)
        return [
            chat.prompt_ids(tokenizer, *each, thoughts=self.thoughts) for each in zip(self.prompts, tools, strict=True)
        ]


def numbered(name: str, count: int) -> list[str]:
    """The ids of questions without names."""
    return [f"{name}/{number}" for number in range(count)]


def answer_limit(tokenizer: Any, answers: Iterable[str]) -> int:
    """Token limit of an answer: the longest right answer, the stop token, and some to spare."""
    return max(len(chat.answer_ids(tokenizer, answer)) for answer in answers) + 1 + SPARE_TOKENS


def thoughts_limit(longest: int) -> int:
    """Token limit of an answer with its thoughts, of which the longest right one has so many: half as many to spare,
    since a model does not think as long as a row did."""
    return longest + longest // 2 + 1 + SPARE_TOKENS


@dataclass(frozen=True)
class Written:
    """What a model wrote after a prompt, as tokens."""

    tokens: Sequence[int]
    """Without the one that ends it."""
    log_probability: float
    """As that of ``Generated``, not rounded."""
    ended: bool
    """Whether the model ended it; otherwise the limit did."""


@dataclass(frozen=True)
class Generated:
    """What a model wrote after a prompt."""

    text: str
    """Without thoughts before it and white space around it."""
    tokens: Sequence[int]
    """All that it wrote, without the token that ends it."""
    log_probability: float
    """Of these tokens together, as a natural logarithm: the sum of what a server says of each. 0 where it was not asked
    for."""
    ended: bool
    """Whether the model ended it itself: the finish reason of a server, stop or length."""
    written: str
    """The text of all tokens."""

    @classmethod
    def read(cls, tokenizer: Any, questions: Questions, written: Sequence[Written]) -> "list[Generated]":
        """Answers to questions, from their tokens."""
        marks = chat.rendering(tokenizer, thoughts=questions.thoughts).marks
        texts = tokenizer.batch_decode([each.tokens for each in written], skip_special_tokens=True)
        return [
            cls(
                (marks.answer_in(text) if marks else text).strip(),
                each.tokens,
                round(each.log_probability, DIGITS),
                each.ended,
                text,
            )
            for text, each in zip(texts, written, strict=True)
        ]


def cut(tokenizer: Any, answer: Generated, limit: int) -> str:
    """The text of an answer without thoughts as it had been with this limit: greedy decoding takes the same tokens."""
    return str(tokenizer.decode(answer.tokens[:limit], skip_special_tokens=True)).strip()


def generate_answers(model: Any, tokenizer: Any, questions: Questions, answered: Answered) -> list[str]:
    """The text of ``generate``."""
    return [each.text for each in generate(model, tokenizer, questions, answered)]


def generate(
    model: Any, tokenizer: Any, questions: Questions, answered: Answered, *, weighed: bool = False
) -> list[Generated]:
    """The most likely answer to each prompt; ``weighed``: and how likely that is. Raises as ``ask_each``."""
    work = writing(model, tokenizer, questions, weighed=weighed)
    kind = FindingKind("answer", TypeAdapter(Generated), [questions.thoughts, weighed], answers=True)
    return ask_each(model, tokenizer, questions, work, answered, kind)


def ask_each(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    work: Callable[[PromptBatch], Sequence[T]],
    answered: Answered,
    kind: FindingKind[T] | None = None,
) -> list[T]:
    """What ``work`` finds for each prompt; ``kind``: as ``in_batches``. Raises torch.OutOfMemoryError if one prompt
    does not fit the GPU's memory."""
    prompts = Prompts(questions.encoded(tokenizer), tokenizer.pad_token_id, questions.limit, questions.batch_size)
    return in_batches(model, prompts, work, answered, kind)


def writing(
    model: Any, tokenizer: Any, questions: Questions, *, weighed: bool = False
) -> Callable[[PromptBatch], list[Generated]]:
    """The work of ``generate``."""
    stops = chat.stop_ids(tokenizer, model.generation_config)

    def write(batch: PromptBatch) -> list[Generated]:
        return Generated.read(tokenizer, questions, _write(batch, questions.limit, stops, weighed=weighed))

    return write


def _write(batch: PromptBatch, limit: int, stops: Collection[int], *, weighed: bool) -> list[Written]:
    """At most ``limit`` tokens after each prompt.

    An answer that has ended leaves the batch: most end long before the longest one. transformers' ``generate`` goes on
    with all of them until the last has ended.
    """
    answers: list[list[int]] = [[] for _ in batch.mask]
    likely, ended = [0.0] * len(answers), [True] * len(answers)
    rows, logits = list(range(len(answers))), batch.logits
    for step in range(limit):
        tokens = logits.argmax(dim=-1)
        taken = torch.log_softmax(logits.float(), dim=-1).amax(dim=-1).tolist() if weighed else [0.0] * len(rows)
        goes_on = [place for place, token in enumerate(tokens.tolist()) if token not in stops]
        for place in goes_on:
            answers[rows[place]].append(int(tokens[place]))
            likely[rows[place]] += taken[place]
        if not goes_on:
            break
        if step + 1 == limit:
            for place in goes_on:
                ended[rows[place]] = False
            break
        if len(goes_on) < len(rows):
            batch.keep(goes_on)
            rows, tokens = [rows[place] for place in goes_on], tokens[goes_on]
        logits = batch.read(tokens[:, None])[:, -1]
    return [Written(*each) for each in zip(answers, likely, ended, strict=True)]
