"""How likely a model finds given answers: teacher-forced, in batches."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import TypeAdapter
from torch.nn.functional import cross_entropy

from finetune_jobs.evaluation.batches import Answered, Room, left_padded, positions
from finetune_jobs.evaluation.findings import FindingKind, Notes
from finetune_jobs.evaluation.reference import token_log_probs
from finetune_jobs.modelling import chat

log = logging.getLogger(__name__)

BATCH_SIZE: Final = 16
"""Conversations in a batch, as long as they fit the memory."""
MOST_TOKENS: Final = 1024
"""Tokens of their answers, padded: the logits of so many take 0.6 GB with a vocabulary of 152,000 in 32 bits. A longer
answer is read alone, piece by piece."""
_LOSS: Final = FindingKind("loss", TypeAdapter(float))


@dataclass(frozen=True)
class Given:
    """A prompt and an answer to it, as tokens."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """With the token that ends the turn; never empty."""


def encode(tokenizer: Any, messages: Sequence[chat.Message], answer: str, stop: int) -> Given:
    """The tokens that a server would give the model, and those that it would have to generate."""
    return Given(chat.prompt_ids(tokenizer, messages), [*chat.answer_ids(tokenizer, answer), stop])


def answer_losses(model: Any, pad: int, given: Sequence[Given], done: Answered) -> list[float]:
    """The mean negative log-likelihood of each answer's tokens, in nats per token.

    Conversations of similar length share a batch and are padded on the left, so that all answers end at the last
    position and logits are computed for the longest answer only, never of more than MOST_TOKENS at once. Raises
    torch.OutOfMemoryError if one conversation does not fit the GPU's memory.
    """
    order = sorted(range(len(given)), key=lambda index: len(given[index].prompt) + len(given[index].answer))
    if not given:
        return []
    notes = Notes(model, _LOSS, [*([each.prompt, each.answer] for each in given), pad])
    losses, size, start, room = [0.0] * len(given), BATCH_SIZE, 0, Room.of(model)
    while start < len(order):
        batch = order[start : start + size]
        batch = batch[: room.bearable([len(given[index].prompt) + len(given[index].answer) for index in batch], size)]
        longest = max(len(given[index].answer) for index in batch)
        batch = batch[: max(1, MOST_TOKENS // longest)]
        found = notes.find(batch)
        if found is None:
            found = _losses(model, pad, [given[index] for index in batch])
            if found is None:
                size = len(batch) // 2
                log.warning(
                    "the GPU's memory is too small for %s answers: continuing with %s at a time", len(batch), size
                )
                continue
            notes.keep(batch, found)
        for index, loss in zip(batch, found, strict=True):
            losses[index] = loss
        start += len(batch)
        done(start, len(order))
    return losses


def _losses(model: Any, pad: int, batch: Sequence[Given]) -> list[float] | None:
    """None if several conversations do not fit the memory."""
    longest = max(len(each.answer) for each in batch)
    if longest > MOST_TOKENS:
        return [_loss_in_pieces(model, each) for each in batch]  # which is one
    inputs = left_padded([[*each.prompt, *each.answer] for each in batch], pad, model.device)
    inputs["position_ids"] = positions(inputs["attention_mask"])
    try:
        with torch.inference_mode():
            logits = model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
            found = cross_entropy(
                logits[:, -longest - 1 : -1].float().flatten(0, 1),
                inputs["input_ids"][:, -longest:].flatten(),
                reduction="none",
            ).view(len(batch), longest)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    else:
        return [float(row[-len(each.answer) :].mean()) for row, each in zip(found, batch, strict=True)]
    torch.cuda.empty_cache()  # the failed attempt's memory is free by now
    return None


def _loss_in_pieces(model: Any, given: Given) -> float:
    found = token_log_probs(model, [*given.prompt, *given.answer])[-len(given.answer) :]
    return -math.fsum(found) / len(found)
