"""Leakage: what the test holds must not have been trained (pure).

A score on examples that the model has seen, or nearly seen, says nothing. The division keeps near duplicates together;
here it is checked from the texts, by a search that shares neither signatures nor bands nor clusters with the division.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from finetune_api.reasons import Reason
from finetune_jobs.dataset.near_duplicates import Sketches, band_rows
from finetune_jobs.dataset.split import Part
from finetune_jobs.errors import StageError

SEED: Final = 0x1EAF
"""Another one than that of the clusters: what one search misses by chance, the other one finds."""
WINDOW: Final = 64
_NAMED: Final = 5


class Leak(NamedTuple):
    """Two identities that are in two parts and should be in one."""

    train: str
    test: str


def find(train: Iterable[tuple[str, str]], test: Iterable[tuple[str, str]], near_percent: int) -> list[Leak]:
    """For each test text that has near duplicates among the training texts, the most similar one.

    Texts come as (identity, text) and are not kept: memory as ``NearDuplicates``.
    """
    if not near_percent:
        return []
    names: list[str] = []
    sketches = Sketches(SEED)
    trained = 0
    for rows in (train, test):
        trained = len(names)
        for identity, text in rows:
            names.append(identity)
            sketches.add(text)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.intp)
    frozen = sketches.freeze()
    best: dict[int, tuple[float, str]] = {}
    for left, right in frozen.candidates(order, max(1, band_rows(near_percent) - 1), WINDOW):
        across = (left < trained) != (right < trained)
        old, new = np.minimum(left, right)[across], np.maximum(left, right)[across]
        alike = frozen.alike(old, new, near_percent)
        old, new = old[alike], new[alike]
        if len(new):
            for a, b, similarity in zip(old.tolist(), new.tolist(), frozen.similarity(old, new).tolist(), strict=True):
                best[b] = min(best.get(b, (0.0, "")), (-similarity, names[a]))
    return [Leak(best[row][1], names[row]) for row in sorted(best, key=names.__getitem__)]


def across(units: Mapping[str, str], parts: Mapping[str, Part]) -> list[Leak]:
    """For each test example whose unit has training examples too, the smallest of those.

    ``parts``: those that the user provided, before the division; or all, after it.
    """
    trained: dict[str, str] = {}
    tested: dict[str, list[str]] = defaultdict(list)
    for identity in sorted(units.keys() & parts.keys()):
        if parts[identity] is Part.TEST:
            tested[units[identity]].append(identity)
        elif parts[identity] is Part.TRAIN:
            trained.setdefault(units[identity], identity)
    return sorted(Leak(trained[unit], test) for unit, tests in tested.items() if unit in trained for test in tests)


def refusal(leaks: Sequence[Leak], place: Callable[[str], str]) -> StageError:
    """The error that names the pairs. ``place`` gives file and line of an identity, e.g. ``s3://data/a.csv line 7``."""
    pairs = "; ".join(f"{place(leak.test)} (test) and {place(leak.train)} (training)" for leak in leaks[:_NAMED])
    more = f"; and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
    return StageError(
        Reason.DATASET_INVALID,
        f"{len(leaks)} test examples are near duplicates of training examples, or in one group with them: "
        f"{pairs}{more}. The score would be too good. Put both of a pair into one part, remove one of them, or leave "
        "their part to the division.",
    )
