"""The validation of a training: the loss per labelled token of a split, in passes that are larger than training's.

It is the same whatever the passes are, but for rounding: a mean of batch means would change with their size, and with
it which weights are the best. Nothing random is drawn.

Examples of like length stand together, the longest first: a pass is as full as it may be, little of it is padding, and
no later one takes more memory. Processes that train together share the passes.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as compute
import torch
from datasets import Dataset

from finetune_jobs.modelling import chat
from finetune_jobs.modelling.device import is_out_of_memory
from finetune_jobs.training.division import token_counts
from finetune_jobs.training.team import ALONE, Team

log = logging.getLogger(__name__)

_Example = dict[str, Any]
_BLANK: Final[_Example] = {"input_ids": [0], "labels": [chat.IGNORED]}
"""For a process that has no example left while others have: a divided model computes with all of them."""


@dataclass
class Validation:
    """The split, and how it is divided into passes."""

    split: Dataset
    """With the columns ``input_ids`` and ``labels``."""
    tokens: int
    """Of a pass at most, padding included, unless one example has more (``fit.validating``). Fewer once the GPU's
    memory was too small."""
    packed: bool
    """Whether a pass has no padding."""
    team: Team = ALONE

    @property
    def labelled(self) -> int:
        """Tokens that carry loss."""
        labels = compute.list_flatten(self.split.data.column("labels"))
        return int(compute.sum(compute.not_equal(labels, chat.IGNORED)).as_py())

    def summed(self, losses: Callable[[list[_Example]], torch.Tensor]) -> torch.Tensor:
        """The sum of what ``losses`` gives for each of this process's passes. All processes call it together.

        A pass for which the GPU's memory is too small is taken in smaller ones, but for a single example, and where
        others wait for this process: then torch's error is raised.
        """
        lengths = token_counts(self.split)
        waiting, total = self._own(range(len(lengths)), lengths), torch.zeros((), dtype=torch.float64)
        while waiting:
            found = self._attempt(losses, waiting[0])
            if found is not None:
                total = total.to(found.device) + found
                del waiting[0]
                continue
            self.tokens = _size([lengths[number] for number in waiting[0]], packed=self.packed) // 2
            log.warning("the GPU's memory is too small for a validation's pass; continuing with half of it")
            waiting = self._own([number for each in waiting for number in each], lengths)
            gc.collect()
            torch.cuda.empty_cache()
        return total

    def _attempt(self, losses: Callable[[list[_Example]], torch.Tensor], numbers: Sequence[int]) -> torch.Tensor | None:
        """None if it does not fit the memory, and fewer examples might."""
        try:
            return losses([self.split[number] for number in numbers] or [_BLANK])
        except RuntimeError as error:
            if self.team.size > 1 or len(numbers) <= 1 or not is_out_of_memory(error):
                raise
            return None

    def _own(self, numbers: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """This process's passes over examples with these numbers, as many as every other process has."""
        share = -(-sum(lengths[number] for number in numbers) // self.team.size)
        passes = list(divided(numbers, lengths, min(self.tokens, share), packed=self.packed))
        passes += [[]] * (-len(passes) % self.team.size)
        return passes[self.team.rank :: self.team.size]


def divided(numbers: Sequence[int], lengths: Sequence[int], most: int, *, packed: bool) -> Iterator[list[int]]:
    """The examples with these ``numbers`` in passes of at most so many tokens, or of one example. ``lengths`` are those
    of all examples."""
    current: list[int] = []
    for number in sorted(numbers, key=lambda number: lengths[number], reverse=True):
        if current and _size([lengths[each] for each in (*current, number)], packed=packed) > most:
            yield current
            current = []
        current.append(number)
    if current:
        yield current


def _size(lengths: Sequence[int], *, packed: bool) -> int:
    """Tokens of a pass with examples of these lengths."""
    return sum(lengths) if packed else len(lengths) * max(lengths)
