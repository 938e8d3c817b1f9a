"""Greedy answers of a model in batches."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import GenerationConfig

from finetune_jobs.modelling import chat

SPARE_TOKENS: Final = 4
"""Tokens beyond the longest right answer: one that goes on after its end must be seen to be wrong."""

Answered = Callable[[int, int], None]
"""Told how many prompts are answered, and of how many."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked, and how."""

    prompts: Sequence[Sequence[chat.Message]]
    limit: int
    """Most tokens of an answer."""
    batch_size: int
    """Prompts that are answered together."""
    tools: Sequence[chat.Tools] = ()
    """What each prompt may call; empty: none may call anything."""


def answer_limit(tokenizer: Any, answers: Iterable[str]) -> int:
    """Tokens that an answer may have: the longest right answer, the stop token, and some to spare."""
    return max(len(chat.answer_ids(tokenizer, answer)) for answer in answers) + 1 + SPARE_TOKENS


def generate_answers(model: Any, tokenizer: Any, questions: Questions, answered: Answered) -> list[str]:
    """The most likely answer to each prompt, without white space around it.

    Prompts of like length share a batch and are padded on the left, so that every answer begins at the same place.
    """
    config = GenerationConfig(
        max_new_tokens=questions.limit,
        do_sample=False,
        eos_token_id=sorted(chat.stop_ids(tokenizer, model.generation_config)),
        pad_token_id=tokenizer.pad_token_id,
    )
    tools = questions.tools or [()] * len(questions.prompts)
    encoded = [chat.prompt_ids(tokenizer, *each) for each in zip(questions.prompts, tools, strict=True)]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(encoded)
    for start in range(0, len(order), questions.batch_size):
        batch = order[start : start + questions.batch_size]
        inputs = left_padded([encoded[index] for index in batch], tokenizer.pad_token_id, model.device)
        with torch.inference_mode():
            tokens = model.generate(**inputs, generation_config=config)
        texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            answers[index] = text.strip()
        answered(start + len(batch), len(order))
    return answers


def left_padded(sequences: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, torch.Tensor]:
    """The model's inputs for sequences of different length, which end together."""
    width = max(len(ids) for ids in sequences)
    ids = [[pad] * (width - len(row)) + list(row) for row in sequences]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
