"""The division into training, validation and test: whole units, stratified by label, decided by hashes (pure).

A unit is what must not be torn apart: examples that are near duplicates of each other or belong to one group that the
user named (a customer, a ticket, a document), directly or over others. Most units are single examples.

Two aims pull against each other: exact shares, and parts that stay what they were when examples are added. So how many
examples of a label a part has is exact (rounded up or down); *which* ones, the order of their hashes decides. An added
example moves others of its label only where it changes that number or stands before its boundary; one that is near to
others may join two units. Which labels round up is decided by their remainder and a hash of their name, not by the
labels before them. To decide each example by its hash alone would move none, and give small labels any share.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from finetune_api import dataset
from finetune_jobs.examples.parts import Part
from finetune_jobs.splitting.components import join

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


def unite(links: Iterable[tuple[str, str]], groups: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """The unit of every identity that is linked to another or has a group: connected components over both.

    ``links`` are pairs of identities (clusters of near duplicates), ``groups`` pairs of an identity and the name of a
    group. A unit is called after its smallest group, which stays when examples are added, else its smallest identity.
    """
    examples: dict[str, int] = {}
    names: dict[str, int] = {}
    pairs = [(examples.setdefault(a, len(examples)), examples.setdefault(b, len(examples))) for a, b in links]
    belongs = [(examples.setdefault(a, len(examples)), names.setdefault(b, len(names))) for a, b in groups]
    pairs += [(example, len(examples) + group) for example, group in belongs]
    nodes = [*examples, *(f"group/{name}" for name in names)]
    left, right = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    roots = join(np.arange(len(nodes)), left, right).tolist()
    called: dict[int, tuple[bool, str]] = {}
    for number, node in enumerate(nodes):
        name = (number < len(examples), node)
        called[roots[number]] = min(called.get(roots[number], name), name)
    return {identity: called[roots[number]][1] for identity, number in examples.items()}


def assign(
    labels: Mapping[str, str],
    split: dataset.Split,
    units: Mapping[str, str] = _NONE,
    provided: Mapping[str, Part] = _NONE,
) -> dict[str, Part]:
    """The part of every example.

    ``labels``: the label of every identity; the same for all where the task has none. ``units``: as ``unite`` makes
    them; an identity without one is its own. ``provided``: parts that the user has decided; the rest of a unit follows
    (``leakage.across`` finds units that would have to follow two).

    Without units every label is off its share by less than one example, and the whole is exact. A unit counts with the
    label that most of its examples have; of units that are larger than what is missing, one is taken if that is nearer
    to the share than none. Every label keeps an example for training, unless the user decided otherwise.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for identity in sorted(labels):
        members[units.get(identity, identity)].append(identity)
    strata = _strata(labels, members, provided, split.seed)
    keep = _kept_for_training(labels, strata, members, provided)
    chosen = {unit: part for stratum in strata.values() for unit, part in stratum.given.items()}
    for part, percent in ((Part.TEST, split.test_percent), (Part.VALIDATION, split.validation_percent)):
        free = {
            label: [unit for unit in stratum.units if unit not in chosen and unit not in keep]
            for label, stratum in strata.items()
        }
        have = {
            label: sum(len(members[unit]) for unit, where in stratum.given.items() if where is part)
            for label, stratum in strata.items()
        }
        room = {label: have[label] + sum(len(members[unit]) for unit in free[label]) for label in strata}
        sizes = {label: stratum.size for label, stratum in strata.items()}
        quota = allot(sizes, Fraction(percent, 100), room, f"{split.seed}/{part}")
        for label, candidates in free.items():
            chosen |= dict.fromkeys(_fill(candidates, members, quota[label] - have[label]), part)
    return {
        identity: provided.get(identity) or chosen.get(unit, Part.TRAIN)
        for unit, identities in members.items()
        for identity in identities
    }


@dataclass
class _Stratum:
    """The units of a label, in the order of their hashes."""

    size: int = 0
    """Examples, those with a part already included."""
    units: list[str] = field(default_factory=list)
    given: dict[str, Part] = field(default_factory=dict)
    """Units whose part the user decided."""


def _strata(
    labels: Mapping[str, str], members: Mapping[str, list[str]], provided: Mapping[str, Part], seed: int
) -> dict[str, _Stratum]:
    strata: dict[str, _Stratum] = defaultdict(_Stratum)
    for unit in sorted(members, key=lambda unit: rank(seed, unit)):
        identities = members[unit]
        counts = Counter(sorted(labels[identity] for identity in identities))
        stratum = strata[counts.most_common(1)[0][0]]
        stratum.size += len(identities)
        stratum.units.append(unit)
        decided = [provided[identity] for identity in identities if identity in provided]
        if decided:
            stratum.given[unit] = decided[0]
    return dict(sorted(strata.items()))


def _kept_for_training(
    labels: Mapping[str, str],
    strata: Mapping[str, _Stratum],
    members: Mapping[str, list[str]],
    provided: Mapping[str, Part],
) -> set[str]:
    """For every label that has no training example yet, the last unit that holds it."""
    safe = {labels[identity] for identity, part in provided.items() if part is Part.TRAIN and identity in labels}
    last: dict[str, str] = {}
    for stratum in strata.values():
        for unit in stratum.units:
            if unit not in stratum.given:
                last |= {labels[identity]: unit for identity in members[unit] if labels[identity] not in safe}
    return set(last.values())


def _fill(units: Iterable[str], members: Mapping[str, list[str]], missing: int) -> Iterator[str]:
    """The first units that fit into what is ``missing``, then one that is too large if that brings it nearer."""
    left = []
    for unit in units:
        if missing <= 0:
            return
        if len(members[unit]) <= missing:
            missing -= len(members[unit])
            yield unit
        else:
            left.append(unit)
    if nearer := next((unit for unit in left if len(members[unit]) < 2 * missing), None):
        yield nearer


def allot(sizes: Mapping[str, int], share: Fraction, room: Mapping[str, int], salt: str) -> dict[str, int]:
    """How many of each size are taken so that the whole is ``share``: each rounded up or down, at most its ``room``.

    Rounded up are those with the largest sums of remainder and a number in [0, 1) that a hash of salt and name gives.
    Without that number (the method of the largest remainder) an added example would overturn the order of equal labels.
    """
    exact = {name: size * share for name, size in sizes.items()}
    taken = {name: min(int(exact[name]), room[name]) for name in sizes}
    may_grow = [name for name in sizes if taken[name] < exact[name] and taken[name] < room[name]]
    may_grow.sort(key=lambda name: (-float(exact[name] % 1) - _dither(salt, name), name))
    for name in may_grow[: int(sum(sizes.values()) * share) - sum(taken.values())]:
        taken[name] += 1
    return taken


def rank(seed: int, identity: str) -> bytes:
    """The place of an identity or unit in the order that a seed gives."""
    return hashlib.sha256(f"{seed}/{identity}".encode()).digest()


def _dither(salt: str, name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{salt}/{name}".encode()).digest()[:6]) / 2**48
