"""The division into training, validation and test: stratified by label, decided by hashes (pure)."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum

from finetune_api import dataset


class Part(StrEnum):
    """A part of the data set; also the name of its file."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def assign(labels: Mapping[str, str], split: dataset.Split) -> dict[str, Part]:
    """The part of every example, given the label of every identity.

    Within a label the order is that of a hash of seed and identity. Shares are rounded over the running total, so
    that the whole is exact and each label is off by one example at most; every label keeps an example for training.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for identity, label in labels.items():
        by_label[label].append(identity)
    parts: dict[str, Part] = {}
    seen = 0
    for _, identities in sorted(by_label.items()):
        test = _share(seen, len(identities), split.test_percent)
        validation = _share(seen, len(identities), split.validation_percent)
        seen += len(identities)
        test = min(test, len(identities) - 1)
        validation = min(validation, len(identities) - 1 - test)
        for place, identity in enumerate(sorted(identities, key=lambda i: _rank(split.seed, i))):
            parts[identity] = (
                Part.TEST if place < test else Part.VALIDATION if place < test + validation else Part.TRAIN
            )
    return parts


def _share(before: int, count: int, percent: int) -> int:
    return (before + count) * percent // 100 - before * percent // 100


def _rank(seed: int, identity: str) -> bytes:
    return hashlib.sha256(f"{seed}/{identity}".encode()).digest()
