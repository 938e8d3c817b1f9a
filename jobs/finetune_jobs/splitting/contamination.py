"""Contamination: examples that contain texts of a benchmark make its score worthless (pure).

The measure is that of Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C: an example overlaps a
benchmark when they share 13 words in a row; letter case and punctuation do not count. A shorter text of the benchmark
counts as a whole, down to 8 words, the least length that the paper uses.
"""

from array import array
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import rensa

from finetune_jobs.splitting.near_duplicates import distinct, words

GRAM: Final = 13
SHORTEST: Final = 8


class Reference:
    """The word sequences of a benchmark, hashed to 64 bits: 8 bytes a word of the benchmark, 24 while it is read.

    A false alarm has the chance of the number of sequences here times those of an example, divided by 2^64: less than
    one in a million for a benchmark of 100 million words and an example of 100,000.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.ignored = 0
        """Texts of fewer than 8 words: by chance alone they would be found everywhere."""
        hashes: dict[int, array[int]] = {}
        for text in texts:
            found = words(text)
            if len(found) < SHORTEST:
                self.ignored += 1
                continue
            size = min(GRAM, len(found))
            hashes.setdefault(size, array("Q")).extend(_hashes(found, size))
        self._hashes = {size: distinct(np.frombuffer(each, dtype=np.uint64)) for size, each in sorted(hashes.items())}

    def overlaps(self, text: str) -> bool:
        """Whether the text holds 13 words in a row of the benchmark, or one of its shorter texts as a whole."""
        found = words(text)
        return any(_any_in(_hashes(found, size), known) for size, known in self._hashes.items() if len(found) >= size)


def _hashes(found: list[str], size: int) -> list[int]:
    grams = [" ".join(found[begin : begin + size]) for begin in range(len(found) - size + 1)]
    hashes: list[int] = rensa.RMinHash.hash_token_sets([grams])[0]
    return hashes


def _any_in(hashes: list[int], known: npt.NDArray[np.uint64]) -> bool:
    wanted = np.array(hashes, dtype=np.uint64)
    places = np.searchsorted(known, wanted)
    return bool((known[np.minimum(places, len(known) - 1)] == wanted).any())
