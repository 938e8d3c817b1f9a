"""Greedy answers of a model in batches."""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from finetune_jobs.evaluation.automation import DIGITS
from finetune_jobs.modelling import chat

log = logging.getLogger(__name__)

SPARE_TOKENS: Final = 4
"""Tokens beyond the longest right answer: an answer that continues after its end must count as wrong."""
ROOM: Final = 32
"""More tokens for a base model, which may write a sentence around its answer."""

Answered = Callable[[int, int], None]
"""Called with the number of answered prompts and their total."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked, and how."""

    prompts: Sequence[Sequence[chat.Message]]
    limit: int
    """Most tokens of an answer."""
    batch_size: int
    """Prompts in a batch, as long as they fit the GPU's memory."""
    thoughts: bool = False
    """Whether the models think before they answer; their thoughts are not part of the answer."""
    tools: Sequence[chat.Tools] = ()
    """The tools of each prompt; empty: none has any."""
    shared: bool = False
    """Whether the prompts have a long beginning in common, which is then computed once for all of them."""


def answer_limit(tokenizer: Any, answers: Iterable[str]) -> int:
    """Token limit of an answer: the longest right answer, the stop token, and some to spare."""
    return max(len(chat.answer_ids(tokenizer, answer)) for answer in answers) + 1 + SPARE_TOKENS


def thoughts_limit(longest: int) -> int:
    """Token limit of an answer with its thoughts, of which the longest right one has so many: half as many to spare,
    since a model does not think as long as a row did."""
    return longest + longest // 2 + 1 + SPARE_TOKENS


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


class _Recorder(LogitsProcessor):  # type: ignore[misc] # transformers has no types
    """Keeps how likely the likeliest token is at each step, which is the one that greedy decoding takes: a number for
    each prompt, where all scores of an answer might take gigabytes."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(torch.log_softmax(scores.float(), dim=-1).max(dim=-1).values)
        return scores

    def sums(self, lengths: Sequence[int]) -> list[float]:
        """Of the first so many steps of each prompt."""
        table = torch.stack(self.steps, dim=1).double().cpu()
        return [round(float(row[:length].sum()), DIGITS) for row, length in zip(table, lengths, strict=True)]


def cut(tokenizer: Any, answer: Generated, limit: int) -> str:
    """The text of an answer without thoughts as it had been with this limit: greedy decoding takes the same tokens."""
    return str(tokenizer.decode(answer.tokens[:limit], skip_special_tokens=True)).strip()


def generate_answers(model: Any, tokenizer: Any, questions: Questions, answered: Answered) -> list[str]:
    """The text of ``generate``."""
    return [each.text for each in generate(model, tokenizer, questions, answered)]


def generate(
    model: Any, tokenizer: Any, questions: Questions, answered: Answered, *, weighed: bool = False
) -> list[Generated]:
    """The most likely answer to each prompt; ``weighed``: and how likely that is.

    Prompts of similar length share a batch and are padded on the left, so that every answer begins at the same
    position. Raises torch.OutOfMemoryError if one prompt does not fit the GPU's memory.
    """
    config = GenerationConfig(
        max_new_tokens=questions.limit,
        do_sample=False,
        eos_token_id=sorted(chat.stop_ids(tokenizer, model.generation_config)),
        pad_token_id=tokenizer.pad_token_id,
    )
    tools = questions.tools or [()] * len(questions.prompts)
    thoughts = questions.thoughts
    encoded = [
        chat.prompt_ids(tokenizer, *each, thoughts=thoughts) for each in zip(questions.prompts, tools, strict=True)
    ]
    marks = chat.rendering(tokenizer, thoughts=thoughts).marks
    beginning = common_beginning(model, encoded) if questions.shared else None
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers: list[Generated] = [Generated("", (), 0.0)] * len(encoded)
    size, start = questions.batch_size, 0
    while start < len(order):
        batch = order[start : start + size]
        rows = [encoded[index] for index in batch]
        inputs = left_padded(rows, tokenizer.pad_token_id, model.device, beginning.length if beginning else 0)
        recorder = _Recorder() if weighed else None
        tokens = _generate(model, inputs, config, beginning, recorder)
        if tokens is None:
            size = len(batch) // 2
            log.warning("the GPU's memory is too small for %s prompts: continuing with %s at a time", len(batch), size)
            continue
        written = [_ended(row, config.eos_token_id) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        sums = recorder.sums([len(row) for row in written]) if recorder else [0.0] * len(batch)
        for index, text, ids, likely in zip(batch, texts, written, sums, strict=True):
            answers[index] = Generated((marks.answer_in(text) if marks else text).strip(), ids, likely)
        start += len(batch)
        answered(start, len(order))
    return answers


def _ended(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """What stands before the first token that ends an answer."""
    return list(takewhile(lambda token: token not in stops, tokens))


@dataclass(frozen=True)
class Beginning:
    """What prompts have in common, as the model has computed it."""

    length: int
    """In tokens."""
    cache: Any
    """Keys and values (transformers' Cache) of one sequence."""


def common_beginning(model: Any, encoded: Sequence[Sequence[int]]) -> Beginning | None:
    """The common beginning of several prompts; None if there is none. The last token of a prompt is never part of it:
    the model must compute it to answer."""
    first, last = min(map(list, encoded)), max(map(list, encoded))
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    length = min(length, min(map(len, encoded)) - 1)
    if len(encoded) < 2 or length < 1:
        return None
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([first[:length]], device=model.device), use_cache=True)
    return Beginning(length, found.cache)


def _generate(
    model: Any,
    inputs: dict[str, torch.Tensor],
    config: GenerationConfig,
    beginning: Beginning | None,
    recorder: _Recorder | None,
) -> Any:
    """The prompts with their answers; None if several of them do not fit the memory."""
    more: dict[str, Any] = {"logits_processor": LogitsProcessorList([recorder])} if recorder else {}
    try:
        with torch.inference_mode():
            if beginning is not None:
                more["cache"] = copy.deepcopy(beginning.cache)
                more["cache"].batch_repeat_interleave(len(inputs["input_ids"]))
            return model.generate(**inputs, generation_config=config, **more)
    except torch.OutOfMemoryError:
        if len(inputs["input_ids"]) == 1:
            raise
    torch.cuda.empty_cache()  # the failed attempt's memory is free by now
    return None


def left_padded(sequences: Sequence[Sequence[int]], pad: int, device: Any, behind: int = 0) -> dict[str, torch.Tensor]:
    """The model's inputs for sequences of different length, aligned at the end; padding comes after the first
    ``behind`` tokens."""
    width = max(len(ids) for ids in sequences)
    ids = [[*row[:behind], *[pad] * (width - len(row)), *row[behind:]] for row in sequences]
    mask = [[1] * behind + [0] * (width - len(row)) + [1] * (len(row) - behind) for row in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
