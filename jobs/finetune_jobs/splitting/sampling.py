"""Which training examples are used, and how often: pilots, weights of sources, and replay (pure).

All choices are made by the hash of a seed and the identity: the same on every machine, and a larger choice holds
(nearly) all of a smaller one.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from fractions import Fraction

from finetune_jobs.splitting.split import allot, rank


def pilot(labels: Mapping[str, str], examples: int, seed: int) -> set[str]:
    """At most ``examples`` identities, each label with its share, rounded up or down.

    ``labels``: the label of every training example. A label whose share is less than one example may be without.
    """
    if len(labels) <= examples:
        return set(labels)
    by_label: dict[str, list[str]] = defaultdict(list)
    for identity, label in labels.items():
        by_label[label].append(identity)
    sizes = {label: len(identities) for label, identities in by_label.items()}
    quota = allot(sizes, Fraction(examples, len(labels)), sizes, f"{seed}/pilot")
    return {identity for label, each in by_label.items() for identity in _first(each, quota[label], seed)}


def repeats(identities: Collection[str], weight: float, seed: int) -> dict[str, int]:
    """How often each training example of a source with this weight is used: 2 for all twice, 0.5 for half of them once.

    1.25: each once, and a quarter of them, chosen by hash, twice. Raises ValueError for a weight that is not positive.
    """
    if not 0 < weight < float("inf"):
        raise ValueError(f"the weight of a source must be positive, not {weight}")
    exact = Fraction(str(weight))
    whole = int(exact)
    extra = round((exact - whole) * len(identities))
    once_more = set(_first(identities, extra, seed))
    return {identity: whole + (identity in once_more) for identity in identities}


def replay(general: Collection[str], own: int, percent: int, seed: int) -> list[str]:
    """Of ``general`` data as many identities as make ``percent`` of training, beside ``own`` examples of the task.

    Fewer when there are not so many. Mixing in 5 to 10 % of general data is the usual remedy against forgetting. Raises
    ValueError for a percentage outside 0 to 99.
    """
    if not 0 <= percent < 100:
        raise ValueError(f"the share of replay must be 0 to 99 percent, not {percent}")
    return _first(general, round(Fraction(own * percent, 100 - percent)), seed)


def _first(identities: Collection[str], count: int, seed: int) -> list[str]:
    return sorted(identities, key=lambda identity: rank(seed, identity))[:count]
