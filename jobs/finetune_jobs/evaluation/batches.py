"""Prompts that a model reads in batches, and what is then done with each batch: ``generate`` writes answers,
``choices`` weighs labels.

What all prompts have in common is computed once, and what follows once for each prompt, whatever is then done with it.
Batches hold prompts of similar length. They are padded on the left of what the prompts do not have in common, so that
all answers begin at the same position.
"""

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from peft import PeftModel
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from finetune_jobs.evaluation.findings import FindingKind, Notes
from finetune_jobs.modelling.device import is_out_of_memory

log = logging.getLogger(__name__)

TOKENS: Final = 8192
"""Of short prompts so many share a batch that they and their answers have this many tokens together: a step of decoding
reads all weights for one answer as for sixty."""
BYTES: Final = 1 << 30
"""Their keys and values take no more than so much beyond those of the least batch: 8192 tokens take 0.4 GB
(SmolLM2-135M in float32) to 1 GB (Llama 3.1 8B in 16 bits), but 4 GB where every head has its own (Llama 2 7B). A CPU
cannot try again with fewer: its pod would be killed. So there the least batch, too, takes no more than so much, with
all that is computed of it at once."""
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
        _choose(self.cache, chosen)
        self.mask = self.mask[chosen]

    def copied(self, rows: Sequence[int]) -> "PromptBatch":
        """These prompts as they are now, to go on with beside this batch."""
        chosen = torch.tensor(rows, device=self.mask.device)
        return PromptBatch(self.model, _chosen(self.cache, chosen), self.mask[chosen], self.logits[chosen])


@dataclass(frozen=True)
class Prompts:
    """Prompts as tokens, and how many of them are read at once."""

    encoded: Sequence[Sequence[int]]
    pad: int
    """The token of padding."""
    answer: int
    """Most tokens that follow each."""
    least: int
    """Prompts in a batch, as long as they fit the memory; of short ones there are more."""

    def together(self, indices: Sequence[int], most: int, room: "Room") -> Sequence[int]:
        """Those of the prompts, the shortest first, that share the next batch: at least ``least``, as far as there is
        room, and more as long as they are short."""
        lengths = [len(self.encoded[index]) + self.answer for index in indices]
        fitting = sum(number * length <= room.tokens for number, length in enumerate(lengths, start=1))
        return indices[: min(most, max(room.bearable(lengths, self.least), min(room.bearable(lengths, MOST), fitting)))]


@dataclass(frozen=True)
class Room:
    """What a batch may take."""

    tokens: int
    """More prompts than the least batch has share one that has so many tokens."""
    each: int = 0
    """Bytes of a token, where a batch of several prompts takes no more than BYTES; 0: it may take more, since a GPU
    that is too small says so, or how much it takes is not known."""
    pair: int = 0
    """Bytes of two tokens of the same prompt: the mask says of each pair whether one sees the other."""

    @classmethod
    def of(cls, model: Any) -> "Room":
        """TOKENS, or as many as have BYTES of keys and values. On a CPU, also what computes one layer counts."""
        config, dtype = model.config.get_text_config(), model.dtype
        kept = token_bytes(config, dtype) or 0
        tokens = min(TOKENS, BYTES // kept) if kept else TOKENS
        if not kept or model.device.type != "cpu":
            return cls(tokens)
        # A token's hidden states, queries, keys and values of one layer; and what its feed-forward part makes of it.
        wide, inner = _count(getattr(config, "hidden_size", None)), _count(getattr(config, "intermediate_size", None))
        return cls(tokens, each=kept + (6 * wide + 3 * inner) * dtype.itemsize, pair=1 + dtype.itemsize)

    def bearable(self, lengths: Sequence[int], most: int) -> int:
        """How many prompts of these lengths in tokens, the shortest first, a batch may have: at most so many, and at
        least one."""
        if not self.each:
            return most
        sizes = [length * self.each + length * length * self.pair for length in lengths[:most]]
        return max(1, sum(number * size <= BYTES for number, size in enumerate(sizes, start=1)))


def in_batches(
    model: Any,
    prompts: Prompts,
    work: Callable[[PromptBatch], Sequence[T]],
    answered: Answered,
    kind: FindingKind[T] | None = None,
) -> list[T]:
    """What ``work`` finds for each prompt, in their order. ``kind`` is what that is, if it is to be kept where the
    model's findings are. Raises torch.OutOfMemoryError if one prompt does not fit the GPU's memory."""
    encoded = prompts.encoded
    beginning = functools.cache(
        lambda: common_beginning(model, encoded, prompts.answer)
    )  # not needed where all is kept
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    room = Room.of(model)
    return batch_by_batch(
        order,
        lambda left, most: prompts.together(left, most, room),
        lambda batch: work(_read(model, [encoded[index] for index in batch], prompts.pad, beginning())),
        Notes(model, kind, [*encoded, prompts.pad, prompts.answer]),
        answered,
    )


def batch_by_batch(
    order: Sequence[int],
    together: Callable[[Sequence[int], int], Sequence[int]],
    work: Callable[[Sequence[int]], Sequence[T]],
    notes: Notes[T],
    answered: Answered,
) -> list[T]:
    """What ``work`` finds for each of some prompts, or earlier pods did, by their numbers. ``order``: these numbers, as
    they are to be asked; ``together``: those of the numbers left that share the next batch, no more than so many. A
    batch that does not fit the GPU's memory is halved, and so are all that follow. Raises the GPU's error if one prompt
    does not fit."""
    found: dict[int, T] = {}
    most = len(order)
    while len(found) < len(order):
        batch = together(order[len(found) :], most)
        results: Sequence[T] | None = notes.find(batch)
        if results is None:
            results = _attempt(work, batch)
            if results is None:
                most = len(batch) // 2
                log.warning(
                    "the GPU's memory is too small for %s prompts: continuing with %s at a time", len(batch), most
                )
                continue
            notes.keep(batch, results)
        found.update(zip(batch, results, strict=True))
        answered(len(found), len(order))
    return [found[index] for index in range(len(order))]


def _attempt(work: Callable[[Sequence[int]], Sequence[T]], batch: Sequence[int]) -> Sequence[T] | None:
    """None if several prompts do not fit the memory."""
    try:
        with torch.inference_mode():
            return work(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # the failed attempt's memory is free by now
    return None


def token_bytes(config: Any, dtype: torch.dtype) -> int | None:
    """Of the keys and values of one token in all layers, as a text model's config says; None where it does not."""
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    queries = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or (_count(width) // (_count(queries) or 1))
    return 2 * _count(layers) * _count(heads) * _count(size) * dtype.itemsize or None


def _count(value: Any) -> int:
    """0 without one: some architectures have a list, of each layer's own."""
    return value if isinstance(value, int) and value > 0 else 0


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
        return _chosen(self.cache, torch.zeros(count, dtype=torch.long))


def _chosen(cache: Any, rows: torch.Tensor) -> Any:
    """A cache of these sequences, each as often as it is named, beside the given one."""
    if type(cache) is DynamicCache and all(type(layer) in _REPLACED for layer in cache.layers):
        chosen = copy.copy(cache)  # choosing makes new tensors: nothing is copied that is not chosen
        chosen.layers = [copy.copy(layer) for layer in cache.layers]
    else:
        chosen = copy.deepcopy(cache)
    _choose(chosen, rows)
    return chosen


_REPLACED: Final = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that never change a tensor in place."""


def _choose(cache: Any, rows: torch.Tensor) -> None:
    """Keep these sequences. A few architectures' caches (MiniMax) keep more than their layers, and choose in a method
    of their own; that of all others forgets recurrent states."""
    own = type(cache).batch_select_indices is not Cache.batch_select_indices
    (cache.batch_select_indices if own else cache.reorder_cache)(rows)


def common_beginning(model: Any, encoded: Sequence[Sequence[int]], answer: int = 0) -> Beginning | None:
    """The common beginning of several prompts; None if there is none. The last token of a prompt is never part of it:
    the model must compute it to answer.

    None as well where padding behind the beginning would be more than hidden from what follows: it moves the window of
    a model that looks back over so many tokens only, unless prompt and ``answer`` fit that, a recurrent state passes
    through it, and a model that is not told positions (ALiBi) counts it. And where it does not fit the GPU's memory.
    """
    if len(encoded) < 2 or not _takes_positions(model):
        return None
    first, last = min(map(list, encoded)), max(map(list, encoded))
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    length = min(length, min(map(len, encoded)) - 1)
    if length < 1:
        return None
    inputs = torch.tensor([first[:length]], device=model.device)
    try:
        with torch.inference_mode():
            cache = model(input_ids=inputs, use_cache=True, logits_to_keep=1).cache
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        cache = None
    if cache is None:
        torch.cuda.empty_cache()  # the failed attempt's memory is free by now
        return None
    return Beginning(length, cache) if _bears_padding(cache, max(map(len, encoded)) + answer) else None


def _takes_positions(model: Any) -> bool:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "position_ids" in inspect.signature(type(base).forward).parameters


def _bears_padding(cache: Any, longest: int) -> bool:
    """A cache of an architecture's own may keep more than its layers, such as a recurrent state."""
    return type(cache) is DynamicCache and not any(
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
