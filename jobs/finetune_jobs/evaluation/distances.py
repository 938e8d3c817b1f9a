"""How far models are from each other in given texts. Pure functions, no model.

Answers tell too little: they may all be the same while the model is another one, or differ where rounding has broken a
tie. The probabilities of given tokens move with every weight that moves (``reference``).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean

from finetune_jobs.artifacts.measurements import Distances

LogProbs = Sequence[Sequence[float]]
"""Of each text, the log-probabilities of its tokens."""


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Mean absolute difference of log-probabilities, in nats a token."""
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / max(1, len(left))


def distances(long: Sequence[bool], likely: Mapping[str, LogProbs]) -> list[Distances]:
    """Of the short texts and of the long ones, which ``long`` tells apart; ``likely``: of ``base``, ``tuned`` and
    ``artifact``. Texts for which a model computes no numbers are left out; if no text is left, that is what is found: a
    distance of none, which tells nothing apart."""
    known = [
        number
        for number in range(len(long))
        if all(map(math.isfinite, chain(*(each[number] for each in likely.values()))))
    ]
    if long and not known:
        return [Distances(long=False, texts=0, tuned_base=0, artifact_base=0, artifact_tuned=0)]
    found: list[Distances] = []
    for kind in (False, True):
        if chosen := [number for number in known if long[number] is kind]:
            found.append(_of(kind, {name: [each[number] for number in chosen] for name, each in likely.items()}))
    return found


def without_numbers(likely: Mapping[str, LogProbs]) -> int:
    """Of how many texts the artifact has lost what the base model has: probabilities that are numbers."""

    def numbers(text: Sequence[float]) -> bool:
        return all(map(math.isfinite, text))

    return sum(numbers(base) and not numbers(it) for base, it in zip(likely["base"], likely["artifact"], strict=True))


def _of(long: bool, likely: Mapping[str, LogProbs]) -> Distances:
    def apart(one: str, other: str) -> float:
        return round(fmean(distance(a, b) for a, b in zip(likely[one], likely[other], strict=True)), 4)

    return Distances(
        long=long,
        texts=len(likely["base"]),
        tuned_base=apart("tuned", "base"),
        artifact_base=apart("artifact", "base"),
        artifact_tuned=apart("artifact", "tuned"),
    )
