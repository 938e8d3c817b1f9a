"""Near duplicates: texts that share most of their word triples, found in passes over rows that are not kept (pure).

The similarity of two texts is the Jaccard index of their sets of word triples (shingles: Broder, "On the resemblance
and containment of documents", 1997). Candidates come from MinHash signatures in bands (locality-sensitive hashing:
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3) and are then verified on the hashes of the
shingles themselves. Signatures alone are too coarse: their error of three percentage points links a few of a hundred
pairs that are somewhat alike, and through such links a thousand bills that differ in a number become one cluster.

What nearly all texts of a source share does not count: it is boilerplate (a template, an instruction), which tells no
row from another. With it, short entries in a long template would all be one cluster. What only most texts share counts:
those may well be near duplicates of each other.

Everything depends on the texts and their identities only: not on the order of the rows, the process or the machine.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
import rensa

from finetune_jobs.examples.shapes import Message, texts
from finetune_jobs.splitting.components import Rows, join

WIDTH: Final = 128
"""MinHash values a text. The error (one standard deviation) of an estimate s is sqrt(s (1 - s) / 128)."""
SKETCH: Final = 128
"""Shingles kept a text, those with the smallest hashes (bottom-k sketch: Cohen and Kaplan, 2007)."""
BOILERPLATE_PERCENT: Final = 90
"""Share of the texts in which a passage counts as boilerplate."""
BOILERPLATE_SAMPLE: Final = 256
"""Texts of each source that show its boilerplate. A share in them has a standard error of two points."""
BOILERPLATE_FEWEST: Final = 20
"""Texts without which nothing is called boilerplate: of a handful, nearly all may be near duplicates."""
WINDOW: Final = 16
"""Rows of one bucket that each row is compared with: a bucket costs its size times this, never its square."""
SEED: Final = 0x5EED

Texts = Callable[[set[str]], Iterable[tuple[str, str]]]
"""Identity and text of the examples that are asked for."""
Hashes = npt.NDArray[np.uint64]
"""Hashes of shingles."""
NO_BOILERPLATE: Final[Hashes] = np.zeros(0, dtype=np.uint64)

_SHINGLE: Final = 3
_MISSED: Final = 1e-4
_BATCH: Final = 1 << 16
"""Shingles that wait for being hashed together."""
_PAIRS: Final = 1 << 10
"""Pairs that are compared together: what fits into a processor's cache."""
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)

_SPACELESS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts without spaces (Thai, Lao, Burmese, Khmer, Japanese, Chinese): each character counts as a word."""
_SIGNS: Final = (
    r"!-/:-@\[-\^`{-~\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2000-\u2bff"
    r"\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
)
"""Anything that is not part of a word: punctuation and symbols."""
_PUNCTUATION: Final = (
    r".,;:!?'\"()\u00a1\u00bf\u00ab\u00bb\u2010-\u2027\u3001\u3002\u300c-\u300f\uff01\uff0c\uff1a\uff1b\uff1f"
)
_WORD: Final = re.compile(f"[^\\s{_SIGNS}{_SPACELESS}]+|[^\\s{_PUNCTUATION}]")


def words(text: str) -> list[str]:
    """The words of a text in lower case. Punctuation does not count; each other sign (+, -, %, €) is a word."""
    return _WORD.findall(text.casefold())


def shingles(text: str) -> list[str]:
    """Every three words in a row. A text of fewer words is one shingle: it is near to nothing but itself.

    So "REWE 4711" and "REWE 4712" differ, which they would hardly do by their characters. Two texts of n words that
    differ in one have a similarity of (n - 3) / (n - 1) at most, if no triple repeats: 0.78 for ten words.
    """
    found = words(text) or text.split()
    if len(found) < _SHINGLE:
        return [" ".join(found)]
    return list(map(" ".join, zip(found, found[1:], found[2:], strict=False)))


@dataclass(frozen=True)
class Near:
    """What a search for near duplicates found."""

    clusters: dict[str, str]
    """The cluster of every text that has near duplicates: the smallest identity in it."""
    boilerplate: Hashes = field(default_factory=lambda: NO_BOILERPLATE)
    """What nearly all texts of a source share, in order; another search in the same texts must leave it out too."""


def find(sources: Iterable[set[str]], texts: Texts, near_percent: int | None) -> Near:
    """Near duplicates among the texts of some sources, given by identity.

    ``near_percent``: as ``NearDuplicates``; None: nothing looks for them.
    """
    if near_percent is None:
        return Near({})
    every = [identities for identities in sources if identities]
    samples = [set(nsmallest(BOILERPLATE_SAMPLE, identities)) for identities in every]  # identities are hashes
    sampled = dict(texts(set().union(*samples)))
    boilerplates = [shared_boilerplate([sampled[identity] for identity in sample]) for sample in samples]
    shared = distinct(np.concatenate([NO_BOILERPLATE, *boilerplates]))
    near = NearDuplicates(near_percent, shared)
    for identity, text in texts(set().union(*every)):
        near.add(identity, text)
    return Near(near.clusters(), shared)


def shared_boilerplate(texts: Sequence[str]) -> Hashes:
    """The shingles that nearly all of some texts hold, in order. Memory: 16 bytes a word of each text."""
    if len(texts) < BOILERPLATE_FEWEST:
        return NO_BOILERPLATE
    every = np.sort(np.concatenate([distinct(_hashed([shingles(text)])) for text in texts]))
    apart = -(-len(texts) * BOILERPLATE_PERCENT // 100) - 1  # places between the first and last equal one
    shared: Hashes = every[apart:][every[apart:] == every[: len(every) - apart]]
    return distinct(shared)


class NearDuplicates:
    """Clusters of texts that are near duplicates, directly or over others.

    Memory a row: 256 bytes of signature, 4 bytes for each of at most 128 shingles, and a reference to the identity; in
    all at most 0.8 kB. One million rows of 60 words need 0.5 GB, and 0.1 GB more while they are compared.
    """

    def __init__(self, near_percent: int, boilerplate: Hashes = NO_BOILERPLATE) -> None:
        """``near_percent``: similarity in percent from which two texts are near duplicates."""
        self._percent = near_percent
        self._identities: list[str] = []
        self._sketches = Sketches(SEED, boilerplate)

    def add(self, identity: str, text: str) -> None:
        """Take a row; its text is not kept."""
        if self._percent:
            self._identities.append(identity)
            self._sketches.add(text)

    def clusters(self) -> dict[str, str]:
        """The smallest identity of its cluster for every identity that has near duplicates; others are left out."""
        order = np.array(sorted(range(len(self._identities)), key=self._identities.__getitem__), dtype=np.intp)
        roots = np.arange(len(order))
        frozen = self._sketches.freeze()
        for left, right in frozen.candidates(order, band_rows(self._percent)):
            apart = roots[left] != roots[right]
            near = np.flatnonzero(apart)[frozen.alike(left[apart], right[apart], self._percent)]
            roots = join(roots, left[near], right[near])
        return self._named(order, roots)

    def _named(self, order: Rows, roots: Rows) -> dict[str, str]:
        rows_of: dict[int, list[int]] = defaultdict(list)
        shared = np.bincount(roots, minlength=len(roots))[roots] > 1
        for row in order[shared[order]].tolist():
            rows_of[int(roots[row])].append(row)
        names = self._identities
        return {names[row]: names[rows[0]] for rows in rows_of.values() for row in rows}


def band_rows(percent: int) -> int:
    """MinHash values a band: as many as leave a pair at the threshold a chance of 1 in 10,000 to share no band."""
    threshold = percent / 100
    enough = (rows for rows in range(WIDTH, 1, -1) if (1 - threshold**rows) ** (WIDTH // rows) <= _MISSED)
    return next(enough, 1)


class Sketches:
    """Takes texts, one by one, and keeps of each a MinHash signature and the smallest hashes of its shingles.

    Those of ``boilerplate`` do not count, unless a text has no others.
    """

    def __init__(self, seed: int, boilerplate: Hashes = NO_BOILERPLATE) -> None:
        self._seed, self._boilerplate = seed, boilerplate
        self._waiting: list[list[str]] = []
        self._shingles = 0
        self._signatures, self._hashes, self._sizes = bytearray(), bytearray(), array("B")

    def add(self, text: str) -> None:
        """Take a text."""
        self._waiting.append(shingles(text))
        self._shingles += len(self._waiting[-1])
        if self._shingles >= _BATCH:
            self._hash()

    def freeze(self) -> "Frozen":
        """The index of all texts. While it is in use, no text can be added."""
        self._hash()
        signatures = np.frombuffer(self._signatures, dtype=np.uint16).reshape(-1, WIDTH)
        hashes, sizes = np.frombuffer(self._hashes, dtype=np.uint32), np.frombuffer(self._sizes, dtype=np.uint8)
        ends = np.cumsum(sizes, dtype=np.int64)
        reach = np.where(sizes < SKETCH, np.uint32(0xFFFFFFFF), hashes[ends - 1]).astype(np.uint32)
        return Frozen(signatures, hashes, sizes, ends - sizes, reach)

    def _hash(self) -> None:
        if not self._waiting:
            return
        lengths = np.array([len(each) for each in self._waiting], dtype=np.int64)
        hashes, lengths = self._without_boilerplate(_hashed(self._waiting), lengths)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), WIDTH, self._seed
        )
        # 16 of 32 bits are enough (b-bit minwise hashing: Li and König, 2010): one value in 65,536 is equal by chance.
        signatures = np.frombuffer(_joined("I", matrix.to_rows()), dtype=np.uint32)
        self._signatures += signatures.astype(np.uint16).tobytes()
        self._keep_smallest(hashes, lengths)
        self._waiting, self._shingles = [], 0

    def _without_boilerplate(
        self, hashes: Hashes, lengths: npt.NDArray[np.int64]
    ) -> tuple[Hashes, npt.NDArray[np.int64]]:
        if not len(self._boilerplate):
            return hashes, lengths
        text = np.repeat(np.arange(len(lengths)), lengths)
        counts = ~np.isin(hashes, self._boilerplate)
        counts |= (np.bincount(text[counts], minlength=len(lengths)) == 0)[text]
        return hashes[counts], np.bincount(text[counts], minlength=len(lengths))

    def _keep_smallest(self, hashes: Hashes, lengths: npt.NDArray[np.int64]) -> None:
        count = len(lengths)
        text = np.repeat(np.arange(count, dtype=np.uint64), lengths)
        found = distinct(text << np.uint64(32) | _mixed(hashes) >> np.uint64(32))
        kept = found[_ranks(found >> np.uint64(32), count) < SKETCH]
        self._hashes += kept.astype(np.uint32).tobytes()
        self._sizes.frombytes(
            np.bincount((kept >> np.uint64(32)).astype(np.intp), minlength=count).astype("B").tobytes()
        )


@dataclass(frozen=True)
class Frozen:
    """Signatures and sketches of texts, by row."""

    signatures: npt.NDArray[np.uint16]
    hashes: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.uint8]
    """Hashes of each row."""
    starts: npt.NDArray[np.int64]
    """Start of each row's hashes."""
    reach: npt.NDArray[np.uint32]
    """The hash up to which those of each row are complete: all, or the largest kept one of a longer text."""

    def followed_by(self, other: "Frozen") -> "Frozen":
        """The rows of both, those of ``other`` numbered on."""
        return Frozen(
            np.concatenate([self.signatures, other.signatures]),
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.starts, other.starts + len(self.hashes)]),
            np.concatenate([self.reach, other.reach]),
        )

    def candidates(self, order: Rows, rows_a_band: int, window: int = WINDOW) -> Iterator[tuple[Rows, Rows]]:
        """Pairs of rows that share a band; pairs come once for every band they share.

        In a bucket of more than ``window`` rows each row meets its nearest ones only, in the order of the band before:
        rows that share two bands are neighbours; ``order`` decides between equals.
        """
        before = np.zeros(len(order), dtype=np.uint64)
        for keys in self._bands(rows_a_band):
            rows = order[np.lexsort((before[order], keys[order]))]
            before, placed = keys, keys[rows]
            for distance in range(1, min(window, len(rows) - 1) + 1):
                same = placed[distance:] == placed[:-distance]
                if not same.any():
                    break
                yield rows[:-distance][same], rows[distance:][same]

    def alike(self, left: Rows, right: Rows, percent: int) -> npt.NDArray[np.bool_]:
        """Which of the pairs (left[i], right[i]) are near duplicates.

        Cheap first: a pair whose signatures estimate less than the threshold by four standard deviations is none. That
        loses one of some thousand pairs just at the threshold, and hardly any above it.
        """
        threshold = percent / 100
        least = WIDTH * (threshold - 4 * sqrt(threshold * (1 - threshold) / WIDTH))
        found = np.zeros(len(left), dtype=np.bool_)
        for begin in range(0, len(left), _PAIRS):
            some = slice(begin, begin + _PAIRS)
            equal = np.count_nonzero(self.signatures[left[some]] == self.signatures[right[some]], axis=1)
            close = begin + np.flatnonzero(equal >= least)
            if len(close):
                found[close] = self.similarity(left[close], right[close]) >= threshold
        return found

    def similarity(self, left: Rows, right: Rows) -> npt.NDArray[np.float64]:
        """The Jaccard index of pairs: exact below 128 shingles, else an estimate with the error of 128 samples."""
        rows, pair = np.concatenate([left, right]), np.tile(np.arange(len(left), dtype=np.uint64), 2)
        sizes = self.sizes[rows].astype(np.int64)
        begins = np.cumsum(sizes) - sizes
        hashes = self.hashes[np.arange(int(sizes.sum())) + np.repeat(self.starts[rows] - begins, sizes)]
        reach = np.tile(np.minimum(self.reach[left], self.reach[right]), 2)
        packed = (np.repeat(pair << np.uint64(32), sizes) | hashes)[hashes <= np.repeat(reach, sizes)]
        packed.sort()
        again = np.concatenate([np.zeros(1, dtype=np.bool_), packed[1:] == packed[:-1]])
        owner = (packed >> np.uint64(32)).astype(np.intp)
        shared = np.bincount(owner[again], minlength=len(left))
        return shared / (np.bincount(owner, minlength=len(left)) - shared)

    def _bands(self, rows_a_band: int) -> Iterator[npt.NDArray[np.uint64]]:
        for begin in range(0, WIDTH - rows_a_band + 1, rows_a_band):
            keys = np.zeros(len(self.signatures), dtype=np.uint64)
            for column in range(begin, begin + rows_a_band):
                keys = _mixed(keys + self.signatures[:, column])
            yield keys


def _hashed(texts: list[list[str]]) -> Hashes:
    """The hashes of the shingles of some texts, one text after the other."""
    return np.frombuffer(_joined("Q", rensa.RMinHash.hash_token_sets(texts)), dtype=np.uint64)


def _joined(typecode: str, rows: Iterable[list[int]]) -> "array[int]":
    """All numbers of some lists, one after the other: a third of the time that numpy.array takes."""
    joined: array[int] = array(typecode)
    for row in rows:
        joined.fromlist(row)
    return joined


def distinct(values: Hashes) -> Hashes:
    """The different values in order; sorts ``values`` in place. Several times as fast as numpy.unique, which hashes."""
    values.sort()
    is_first = np.concatenate([np.ones(min(1, len(values)), dtype=np.bool_), values[1:] != values[:-1]])
    found: Hashes = values[is_first]
    return found


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread 64-bit values over all bits: multiplication by the golden ratio, then the upper half into the lower."""
    product = values * _FACTOR
    return product ^ product >> np.uint64(32)


def _ranks(owners: npt.NDArray[np.uint64], count: int) -> Rows:
    """The place of each value among those of its owner (0 to ``count`` - 1); ``owners`` is sorted."""
    firsts = np.searchsorted(owners, np.arange(count, dtype=np.uint64))
    return np.arange(len(owners)) - firsts[owners.astype(np.intp)]


def compared_text(messages: Sequence[Message]) -> str:
    """The part of a conversation that is compared: no system message, which all rows share, and no answer.

    Rows that ask the same of the model are duplicates, whatever it is to answer.
    """
    return "\n".join(each for message in messages[:-1] if message["role"] != "system" for each in texts(message))
