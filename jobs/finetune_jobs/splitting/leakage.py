"""Leakage: what the test holds must not have been trained (pure).

A score on examples that the model has seen, or nearly seen, says nothing. The division keeps near duplicates together;
here it is checked from the texts, by a search that shares neither signatures nor bands nor clusters with the division.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.parts import Part
from finetune_jobs.splitting.near_duplicates import NO_BOILERPLATE, Frozen, Hashes, Sketches, band_rows

SEED: Final = 0x1EAF
"""Another one than that of the clusters: what one search misses by chance, the other one finds."""
WINDOW: Final = 64
_CHUNK: Final = 1 << 16
"""Training texts that are compared at a time; as many as the test has, if that is more."""
_NAMED: Final = 5


class Leak(NamedTuple):
    """Two identities that are in two parts and should be in one."""

    train: str
    test: str


def find(
    train: Iterable[tuple[str, str]],
    test: Iterable[tuple[str, str]],
    near_percent: int | None,
    boilerplate: Hashes = NO_BOILERPLATE,
) -> list[Leak]:
    """For each test text that has near duplicates among the training texts, the most similar one.

    ``boilerplate`` does not count; ``near_duplicates`` finds it. Texts come as (identity, text) and are not
    kept. Memory: as ``NearDuplicates``, for four times the rows of the test; the training texts pass by in chunks.
    """
    if near_percent is None:
        return []
    tested, index = _sketch(test, boilerplate)
    best: dict[str, tuple[float, str]] = {}
    rows = iter(train)
    while tested:
        trained, chunk = _sketch(islice(rows, max(_CHUNK, len(tested))), boilerplate)
        if not trained:
            break
        for test_row, train_row, similarity in _alike(index, chunk, near_percent):
            found = (-similarity, trained[train_row])
            best[tested[test_row]] = min(best.get(tested[test_row], found), found)
    return [Leak(name, identity) for identity, (_, name) in sorted(best.items())]


def _sketch(rows: Iterable[tuple[str, str]], boilerplate: Hashes) -> tuple[list[str], Frozen]:
    sketches = Sketches(SEED, boilerplate)
    names = []
    for identity, text in rows:
        names.append(identity)
        sketches.add(text)
    return names, sketches.freeze()


def _alike(index: Frozen, chunk: Frozen, near_percent: int) -> Iterator[tuple[int, int, float]]:
    """Near duplicates as row of ``index``, row of ``chunk``, similarity; some more than once."""
    both, size = index.followed_by(chunk), len(index.sizes)
    rows_a_band = max(1, band_rows(near_percent) - 1)
    for left, right in both.candidates(np.arange(len(both.sizes)), rows_a_band, WINDOW):
        low, high = np.minimum(left, right), np.maximum(left, right)
        across_both = (low < size) & (high >= size)
        low, high = low[across_both], high[across_both]
        near = both.alike(low, high, near_percent)
        low, high = low[near], high[near]
        if len(low):
            yield from zip(low.tolist(), (high - size).tolist(), both.similarity(low, high).tolist(), strict=True)


def across(units: Mapping[str, str], parts: Mapping[str, Part]) -> list[Leak]:
    """For each test example whose unit has training examples too, the smallest of those.

    ``parts``: those that the user provided, before the division; or all, after it.
    """
    trained, tested = (_by_unit(units, parts, part) for part in (Part.TRAIN, Part.TEST))
    return sorted(Leak(trained[unit][0], test) for unit, tests in tested.items() if unit in trained for test in tests)


def trained_beside_tests(units: Mapping[str, str], parts: Mapping[str, Part]) -> list[Leak]:
    """As ``across``, the other way round: every training example whose unit has test examples too, and the smallest of
    those."""
    trained, tested = (_by_unit(units, parts, part) for part in (Part.TRAIN, Part.TEST))
    return sorted(Leak(train, tested[unit][0]) for unit, all_ in trained.items() if unit in tested for train in all_)


def _by_unit(units: Mapping[str, str], parts: Mapping[str, Part], part: Part) -> dict[str, list[str]]:
    """The examples of a part by their unit, each list sorted."""
    found: dict[str, list[str]] = defaultdict(list)
    for identity in sorted(units.keys() & parts.keys()):
        if parts[identity] is part:
            found[units[identity]].append(identity)
    return found


def refusal(leaks: Sequence[tuple[str, str]]) -> StageError:
    """The error that names pairs of places: that of the test's row (``Ledger.place``), that of the one in training."""
    pairs = "; ".join(f"{test} (test) and {train} (training)" for test, train in leaks[:_NAMED])
    more = f"; and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
    return StageError(
        Reason.DATASET_INVALID,
        f"{len(leaks)} test examples are exact or near duplicates of training examples, or share a group with them: "
        f"{pairs}{more}. This would inflate the score. Put both rows of each pair in the same part, remove one of "
        "them, let the operator split them, or set spec.dataset.duplicates.acrossParts to DropFromTraining.",
    )
