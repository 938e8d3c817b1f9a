"""Which example is in which part, once all are known: near duplicates and groups stay together, leaks are refused."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from finetune_api.dataset import AcrossParts, Dataset, OnNear
from finetune_api.hashing import short
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.parts import CLAIMS, Part
from finetune_jobs.splitting import leakage, sampling
from finetune_jobs.splitting.near_duplicates import Hashes, Near, Texts
from finetune_jobs.splitting.split import assign, unite

_ROUNDS: Final = 10
"""Searches for leaks at most: each names one training example a test, and clusters have found nearly all before."""

_NAME: Final = 12
"""Hexadecimal digits that name a unit."""


@dataclass(frozen=True)
class Division:
    """Where every example goes."""

    parts: dict[str, Part]
    """The part of every identity that stays."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often a training example is used; absent: once."""
    near: int = 0
    """Examples that are near duplicates of another."""
    near_dropped: int = 0
    """Those of them that were dropped."""
    outside_pilot: int = 0
    """Training examples that a pilot leaves aside."""
    alike: dict[str, str] = field(default_factory=dict)
    """Of examples of validation and test that stand in one unit with others of their part: the unit's name, which does
    not tell what the user calls the group."""
    largest_unit: int = 0
    """Examples of the largest unit; 0 where none has a second example or a name."""


def divide(ledger: Ledger, near: Near, texts: Texts, dataset: Dataset) -> Division:
    """The division that the spec asks for, with the near duplicates that were found.

    What the sources provide for training and for the test, (nearly) the same, is left out of training, or, as
    ``acrossParts`` has it, raises StageError (DatasetInvalid).
    """
    conflicts = ledger.train_test_conflicts()
    if conflicts and dataset.duplicates.across_parts is AcrossParts.FAIL:
        raise leakage.refusal(conflicts)
    ledger.duplicates -= len(conflicts)
    ledger.leave_out_of_training(conflicts)
    clusters = _clusters(near.clusters, ledger)
    found = sum(len(members) - 1 for members in clusters)
    dropped: set[str] = set()
    if dataset.duplicates.near is OnNear.DROP:
        _settle(ledger, unite(_links(clusters)), dataset)
        dropped = {identity for members in _clusters(near.clusters, ledger) for identity in members[1:]}
        ledger.leave_out(dropped)
        clusters = []
    parts, units = _without_leaks(ledger, _links(clusters), near.boilerplate, texts, dataset)
    trained = {identity: ledger.labels[identity] for identity, part in parts.items() if part is Part.TRAIN}
    pilot = dataset.pilot
    chosen = sampling.pilot(trained, pilot.examples, dataset.split.seed) if pilot else set(trained)
    stay = {identity: part for identity, part in parts.items() if part is not Part.TRAIN or identity in chosen}
    repeats = _repeats(ledger, chosen, dataset)
    stay = {identity: part for identity, part in stay.items() if repeats.get(identity, 1)}
    largest = max(Counter(units[each] for each in parts if each in units).values(), default=0)
    return Division(stay, repeats, found, len(dropped), len(trained) - len(chosen), _alike(stay, units), largest)


def _alike(parts: Mapping[str, Part], units: Mapping[str, str]) -> dict[str, str]:
    """As Division has it. A unit is called after the hash of its first example: that of the user's own name for it
    could be guessed."""
    members: dict[tuple[Part, str], list[str]] = defaultdict(list)
    for identity, part in parts.items():
        if part is not Part.TRAIN and identity in units:
            members[part, units[identity]].append(identity)
    together = [identities for identities in members.values() if len(identities) > 1]
    return {identity: short(["unit", min(each)], _NAME) for each in together for identity in each}


def _clusters(near: Mapping[str, str], ledger: Ledger) -> list[list[str]]:
    """Near duplicates that are still there, the one to keep first: of the user's own test, if it has any of them."""
    members: dict[str, list[str]] = defaultdict(list)
    for identity, cluster in sorted(near.items(), key=lambda entry: (CLAIMS.index(ledger.given.get(entry[0])), entry)):
        if identity in ledger.labels:
            members[cluster].append(identity)
    return [identities for identities in members.values() if len(identities) > 1]


def _without_leaks(
    ledger: Ledger, links: list[tuple[str, str]], boilerplate: Hashes, texts: Texts, dataset: Dataset
) -> tuple[dict[str, Part], dict[str, str]]:
    """A division whose test contains nothing that is trained, and the units that were kept together.

    The search for leaks is another one than that for clusters. What only it finds joins its cluster, and the division
    is made once more; where the sources decide, that does not help: the training example goes, or the pairs
    are refused.
    """
    provided = set(ledger.given.values())
    split = dataset.split.model_copy(
        update={f"{part}_percent": 0 for part in (Part.VALIDATION, Part.TEST) if part in provided}
    )
    leaks: list[leakage.Leak] = []
    fails = dataset.duplicates.across_parts is AcrossParts.FAIL
    for _ in range(2 if fails else _ROUNDS):
        links = [*links, *((leak.train, leak.test) for leak in leaks)]
        units = unite(links, ledger.groups.items())
        _settle(ledger, units, dataset)
        parts = assign(ledger.labels, split, units, ledger.given)
        train, test = (
            {identity for identity, where in parts.items() if where is part} for part in (Part.TRAIN, Part.TEST)
        )
        leaks = leakage.find(texts(train), texts(test), dataset.duplicates.sought_percent, boilerplate)
        if not leaks:
            return parts, units
    raise leakage.refusal(_places(ledger, leaks))


def _links(clusters: list[list[str]]) -> list[tuple[str, str]]:
    return [(members[0], identity) for members in clusters for identity in members[1:]]


def _settle(ledger: Ledger, units: Mapping[str, str], dataset: Dataset) -> None:
    """Leave out of training what the sources provide for it beside something of the test, in one unit. Raises
    StageError (DatasetInvalid) where ``acrossParts`` has it."""
    if dataset.duplicates.across_parts is AcrossParts.FAIL:
        if conflicts := leakage.across(units, ledger.given):
            raise leakage.refusal(_places(ledger, conflicts))
        return
    shared = leakage.trained_beside_tests(units, ledger.given)
    ledger.leave_out_of_training(_places(ledger, shared))
    ledger.leave_out({leak.train for leak in shared})


def _places(ledger: Ledger, leaks: list[leakage.Leak]) -> list[tuple[str, str]]:
    return [(ledger.place(leak.test), ledger.place(leak.train)) for leak in leaks]


def _repeats(ledger: Ledger, trained: set[str], dataset: Dataset) -> dict[str, int]:
    """How often the training examples of sources with a weight other than 1 are used."""
    weights = {number: float(source.weight) for number, source in enumerate(dataset.sources)}
    by_source: dict[int, list[str]] = defaultdict(list)
    for identity in trained:
        if weights[ledger.source_of(identity)] != 1:
            by_source[ledger.source_of(identity)].append(identity)
    return {
        identity: times
        for number, identities in sorted(by_source.items())
        for identity, times in sampling.repeats(identities, weights[number], dataset.split.seed).items()
    }
