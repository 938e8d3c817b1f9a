"""The order in which a training sees its examples: drawn from the seed, and the same however a step is divided.

A step has the same examples whatever fits a pass and however many processes share them, so neither an out-of-memory nor
other hardware changes what is learned. Within a step the order is free, since the loss is a mean over all its tokens:
where passes are padded, examples of like length stand together.

The first step has the longest examples of all, and its first pass the longest of these: no later pass takes more
memory, padded or not, so that a GPU which is too small shows it in the first minute.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class StepOrder(Sampler[int]):  # type: ignore[misc] # torch's types are not looked at
    """The numbers of an epoch's examples, step by step, with blanks at the end: those from ``len(lengths)`` on."""

    def __init__(
        self,
        lengths: Sequence[int],
        step: int,
        seed: int,
        *,
        blanks: int = 0,
        by_length: bool = False,
        longest_first: bool = True,
    ) -> None:
        """Of examples with so many tokens each, ``step`` of them at a time. ``by_length`` has each step begin with its
        longest; ``longest_first`` has the training begin with the longest of all."""
        self._lengths, self._step = lengths, step
        self._by_length, self._longest_first = by_length, longest_first
        self._drawn: Any = SeedableRandomSampler(range(len(lengths)), data_seed=seed)
        self._blanks = range(len(lengths), len(lengths) + blanks)

    def __iter__(self) -> Iterator[int]:
        """The numbers of an epoch's examples; the next call gives those of the next epoch."""
        first = self._longest_first and self._drawn.epoch == 0
        order = list(self._drawn)
        if first:
            longest = self._sorted(order)[: self._step]
            taken = set(longest)
            order = [*longest, *(number for number in order if number not in taken)]
        for start in range(0, len(order), self._step):
            step = order[start : start + self._step]
            yield from self._sorted(step) if self._by_length else step
        yield from self._blanks

    def __len__(self) -> int:
        return len(self._lengths) + len(self._blanks)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self._drawn.set_epoch(epoch)

    def _sorted(self, examples: Sequence[int]) -> list[int]:
        """From the longest on; equally long ones stay as they were drawn."""
        return sorted(examples, key=lambda number: self._lengths[number], reverse=True)
