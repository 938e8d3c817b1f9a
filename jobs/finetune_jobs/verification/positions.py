"""How far a server is on the way from right to wrong rotary positions. Pure.

The distance from the evaluation would not tell: with activations of 8 bits, a rotary base of 0.7 of the right one is no
further away than the same weights in another precision. But that noise goes in no direction, and wrong positions do.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Final

from finetune_jobs.artifacts.artifact import ReferenceText
from finetune_jobs.verification.engine import Forced

HALF_WAY: Final = 0.5
_SENSITIVE: Final = 0.15
"""Largest standard error of the way to wrong positions with which half of it can be told from none."""
_NOTICEABLE: Final = 0.25
"""Share of the usual tolerance by which wrong positions must change texts. In one that repeated three lines, in which a
lost layer cost 0.1 nats a token, vLLM was 0.6 of the way with the right positions."""

Pairs = Sequence[tuple[ReferenceText, Forced]]


def ways_to_wrong_positions(pairs: Pairs, usual_tolerance: float) -> dict[str, float]:
    """The share of the way in ``long`` and in ``short`` texts, without those that cannot tell.

    Long ones show a base that is nearly right, which short ones hardly show; short ones show one that is far off, which
    long ones may not show. ``pairs``: recorded texts and the server's probabilities of the same tokens.
    """
    noticeable = _NOTICEABLE * usual_tolerance
    # A long text that repeats itself must not dilute the other one. Short ones are too short to be told apart.
    long = [pair for pair in pairs if pair[0].long and _moved([pair]) >= noticeable]
    short = [pair for pair in pairs if not pair[0].long]
    ways = {"long": _way(long), "short": _way(short) if _moved(short) >= noticeable else None}
    return {name: way for name, way in ways.items() if way is not None}


def _moved(pairs: Pairs) -> float:
    """By how much wrong positions change these texts, in nats a token.

    What they hardly change repeats itself, so that every token is nearly certain: then all that is worse, noise too,
    makes the same tokens less so.
    """
    changes = [abs(change) for change in _recorded(pairs)]
    return fmean(changes) if changes else 0.0


def _way(pairs: Pairs) -> float | None:
    """The share of the way (least squares); None where noise hides it."""
    wrong = _recorded(pairs)
    seen = [b - a for r, f in pairs for a, b in zip(r.artifact, f.log_probs, strict=True)]
    length = sum(w * w for w in wrong)
    if not length:
        return None
    way = sum(w * s for w, s in zip(wrong, seen, strict=True)) / length
    rest = sum((s - way * w) ** 2 for w, s in zip(wrong, seen, strict=True))
    return way if math.sqrt(rest / len(seen) / length) <= _SENSITIVE else None


def _recorded(pairs: Pairs) -> list[float]:
    """What wrong positions change of each token."""
    return [b - a for r, _ in pairs for a, b in zip(r.straight, r.turned, strict=True)]
