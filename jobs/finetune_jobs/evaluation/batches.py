"""Prompts that a model reads in batches, and what is then done with each batch: ``generate`` writes answers,
``choices`` weighs labels.

What all prompts have in common is computed once, and what follows once for each prompt, whatever is then done with it.
Batches hold prompts of similar length. They are padded on the left of what the prompts do not have in common, so that
all answers begin at the same position.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

log = logging.getLogger(__name__)

TOKENS: Final = 8192
"""Of short prompts so many share a batch that they and their answers have this many tokens together: a step of decoding
reads all weights for one answer as for sixty. The keys and values of so many take 0.4 GB (SmolLM2-135M in float32) to
1 GB (Llama 3.1 8B in 16 bits)."""
MOST: Final = 64
"""Prompts in such a batch: more make a step hardly cheaper for each."""

Answered = Callable[[int, int], None]
"""Called with the number of answered prompts and their total."""
T = TypeVar("T")


@dataclass
class PromptBatch:
    """Prompts as a model has read them."""

    model: Any
    cache: Any
    """Keys and values, or whatever a model keeps of what it has read (transformers' Cache)."""
    mask: torch.Tensor
    """Prompts × tokens: 0 where padding stands."""
    logits: torch.Tensor
    """Prompts × vocabulary: of the token that follows."""

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Go on with ``tokens`` (prompts × tokens); their logits (prompts × tokens × vocabulary)."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
        output = self.model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=positions(self.mask)[:, -tokens.shape[1] :],
            cache=self.cache,
            use_cache=True,
        )
        self.cache = output.cache
        logits: torch.Tensor = output.logits
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these prompts only."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.cache.reorder_cache(chosen)
        self.mask = self.mask[chosen]

    def copied(self, rows: Sequence[int]) -> "PromptBatch":
        """These prompts as they are now, to go on with beside this batch."""
        other = PromptBatch(self.model, copy.deepcopy(self.cache), self.mask, self.logits)
        if len(rows) < len(self.mask):
            other.keep(rows)
        return other


@dataclass(frozen=True)
class Prompts:
    """Prompts as tokens, and how many of them are read at once."""

    encoded: Sequence[Sequence[int]]
    pad: int
    """The token of padding."""
    answer: int
    """Most tokens that follow each."""
    least: int
    """Prompts in a batch, as long as they fit the GPU's memory; of short ones there are more."""

    def together(self, indices: Sequence[int], most: int) -> Sequence[int]:
        """Those of the prompts, the shortest first, that share the next batch."""
        lengths = [len(self.encoded[index]) + self.answer for index in indices]
        fitting = sum(number * length <= TOKENS for number, length in enumerate(lengths, start=1))
        return indices[: min(most, max(self.least, min(MOST, fitting)))]


def in_batches(model: Any, prompts: Prompts, work: Callable[[PromptBatch], Sequence[T]], answered: Answered) -> list[T]:
    """What ``work`` finds for each prompt, in their order. Raises torch.OutOfMemoryError if one prompt does not fit the
    GPU's memory."""
    encoded = prompts.encoded
    beginning = common_beginning(model, encoded, prompts.answer)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    found: dict[int, T] = {}
    most = len(order)
    while len(found) < len(order):
        batch = prompts.together(order[len(found) :], most)
        results = _attempt(model, [encoded[index] for index in batch], prompts.pad, beginning, work)
        if results is None:
            most = len(batch) // 2
            log.warning("the GPU's memory is too small for %s prompts: continuing with %s at a time", len(batch), most)
            continue
        found.update(zip(batch, results, strict=True))
        answered(len(found), len(order))
    return [found[index] for index in range(len(encoded))]


def _attempt(
    model: Any,
    rows: Sequence[Sequence[int]],
    pad: int,
    beginning: "Beginning | None",
    work: Callable[[PromptBatch], Sequence[T]],
) -> Sequence[T] | None:
    """None if several prompts do not fit the memory."""
    try:
        with torch.inference_mode():
            return work(_read(model, rows, pad, beginning))
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()  # the failed attempt's memory is free by now
    return None


def _read(model: Any, rows: Sequence[Sequence[int]], pad: int, beginning: "Beginning | None") -> PromptBatch:
    known, more = (beginning.length, {"cache": beginning.repeated(len(rows))}) if beginning else (0, {})
    inputs = left_padded(rows, pad, model.device, known)
    mask = inputs["attention_mask"]
    output = model(
        input_ids=inputs["input_ids"][:, known:],
        attention_mask=mask,
        position_ids=positions(mask)[:, known:],
        use_cache=True,
        logits_to_keep=1,
        **more,
    )
    return PromptBatch(model, output.cache, mask, output.logits[:, -1])


@dataclass(frozen=True)
class Beginning:
    """What prompts have in common, as the model has computed it."""

    length: int
    """In tokens."""
    cache: Any
    """Of one sequence."""

    def repeated(self, count: int) -> Any:
        """The cache of so many sequences that begin so."""
        cache = copy.deepcopy(self.cache)
        cache.reorder_cache(torch.zeros(count, dtype=torch.long))
        return cache


def common_beginning(model: Any, encoded: Sequence[Sequence[int]], answer: int = 0) -> Beginning | None:
    """The common beginning of several prompts; None if there is none. The last token of a prompt is never part of it:
    the model must compute it to answer.

    None as well where padding behind the beginning would be more than hidden from what follows: it moves the window of
    a model that looks back over so many tokens only, unless prompt and ``answer`` fit that, and a recurrent state
    passes through it.
    """
    if len(encoded) < 2:
        return None
    first, last = min(map(list, encoded)), max(map(list, encoded))
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    length = min(length, min(map(len, encoded)) - 1)
    if length < 1:
        return None
    with torch.inference_mode():
        cache = model(input_ids=torch.tensor([first[:length]], device=model.device), use_cache=True).cache
    return Beginning(length, cache) if _bears_padding(cache, max(map(len, encoded)) + answer) else None


def _bears_padding(cache: Any, longest: int) -> bool:
    return not any(
        isinstance(layer, LinearAttentionCacheLayerMixin) or getattr(layer, "sliding_window", longest) < longest
        for layer in cache.layers
    )


def left_padded(sequences: Sequence[Sequence[int]], pad: int, device: Any, behind: int = 0) -> dict[str, torch.Tensor]:
    """The model's inputs for sequences of different length, aligned at the end; padding comes after the first
    ``behind`` tokens."""
    width = max(len(ids) for ids in sequences)
    ids = [[*row[:behind], *[pad] * (width - len(row)), *row[behind:]] for row in sequences]
    mask = [[1] * behind + [0] * (width - len(row)) + [1] * (len(row) - behind) for row in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Of each token among those of its sequence that are no padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
