"""How likely a model finds given answers: teacher-forced, in batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from torch.nn.functional import cross_entropy

from finetune_jobs.evaluation.batches import Answered, Room, batch_by_batch, left_padded, positions
from finetune_jobs.evaluation.findings import FindingKind, Notes
from finetune_jobs.evaluation.passages import token_log_probs
from finetune_jobs.modelling import chat

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
    id: str = ""
    """Which one it is where losses are written down (``outputs``)."""


def encode(tokenizer: Any, messages: Sequence[chat.Message], answer: str, stop: int, id_: str = "") -> Given:
    """The tokens that a server would give the model, and those that it would have to generate."""
    return Given(chat.prompt_ids(tokenizer, messages), [*chat.answer_ids(tokenizer, answer), stop], id_)


def answer_losses(model: Any, pad: int, given: Sequence[Given], done: Answered) -> list[float]:
    """The mean negative log-likelihood of each answer's tokens, in nats per token.

    Conversations of similar length share a batch and are padded on the left, so that all answers end at the last
    position and logits are computed for the longest answer only, never of more than MOST_TOKENS at once. Raises
    torch.OutOfMemoryError if one conversation does not fit the GPU's memory.
    """
    if not given:
        return []
    room = Room.of(model)

    def together(left: Sequence[int], most: int) -> Sequence[int]:
        batch = left[: min(most, BATCH_SIZE)]
        lengths = [len(given[index].prompt) + len(given[index].answer) for index in batch]
        batch = batch[: room.bearable(lengths, len(batch))]
        return batch[: max(1, MOST_TOKENS // max(len(given[index].answer) for index in batch))]

    return batch_by_batch(
        sorted(range(len(given)), key=lambda index: len(given[index].prompt) + len(given[index].answer)),
        together,
        lambda batch: _losses(model, pad, [given[index] for index in batch]),
        Notes(model, _LOSS, [*([each.prompt, each.answer] for each in given), pad]),
        done,
    )


def _losses(model: Any, pad: int, batch: Sequence[Given]) -> list[float]:
    longest = max(len(each.answer) for each in batch)
    if longest > MOST_TOKENS:
        return [_loss_in_pieces(model, each) for each in batch]  # which is one
    inputs = left_padded([[*each.prompt, *each.answer] for each in batch], pad, model.device)
    inputs["position_ids"] = positions(inputs["attention_mask"])
    logits = model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
    found = cross_entropy(
        logits[:, -longest - 1 : -1].float().flatten(0, 1),
        inputs["input_ids"][:, -longest:].flatten(),
        reduction="none",
    ).view(len(batch), longest)
    return [float(row[-len(each.answer) :].mean()) for row, each in zip(found, batch, strict=True)]


def _loss_in_pieces(model: Any, given: Given) -> float:
    found = token_log_probs(model, [*given.prompt, *given.answer])[-len(given.answer) :]
    return -math.fsum(found) / len(found)
