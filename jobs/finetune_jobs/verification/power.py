"""How small a drop in accuracy a sample of the test split shows, and how large it must be for a given one. Pure.

A server is found worse by McNemar's exact test on the answers that changed (Fagerland, Lydersen, Laake, "The McNemar
test for binary matched-pairs data", 2013). How many will change is not known before, only the accuracy that was
evaluated. So a worse server is taken to answer independently of the artifact: then the most answers change in both
directions, and the test needs the most of them. One that shares its right answers with the artifact, as damaged weights
do, is found worse with a higher probability.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil, exp, lgamma, log
from typing import Final

from finetune_api.verification import DEFAULT_SAMPLES
from finetune_jobs.evaluation.metrics import mcnemar

POWER: Final = 0.9
"""Probability with which a drop that a sample is said to show is found."""
_SIGNIFICANCE: Final = 0.05
"""Level of the test, for both directions."""
_NEGLIGIBLE: Final = 1e-9


@dataclass(frozen=True)
class SampleSize:
    """How many test examples a server is asked, and what they can show."""

    samples: int
    shown: float | None
    """The smallest drop in accuracy that they show, in hundredths; None: not even the loss of every right answer."""
    wanted: float | None = None
    """The drop that they are to show; None: their number was given."""
    in_vain: int | None = None
    """That many are there, and not even all of them would show the loss of every right answer, so the default number is
    asked; None: otherwise."""

    def __str__(self) -> str:
        if self.in_vain is not None:
            return f"not even {self.in_vain} examples show a drop: too few answers are right"
        shown = "they show no drop" if self.shown is None else f"they show a drop of {self.shown:.2f}"
        enough = self.wanted is None or (self.shown is not None and self.shown <= self.wanted)
        return shown if enough else f"too few for {self.wanted:.2f}: {shown}"


def size_sample(rights: Sequence[bool], most: int, drop: float | None) -> SampleSize:
    """How many of an artifact's test examples a server is asked: as many as show a drop, of at most ``most``; without a
    drop, ``most``. ``rights``: whether the artifact answered each example right.

    Where ``most`` do not show the drop, they are asked for the sake of the larger one that they show. If they show
    none, as of texts, which are right only with the very words, more than DEFAULT_SAMPLES prove nothing."""
    most = min(most, len(rights))
    accuracy = sum(rights) / max(1, len(rights))
    if drop is not None and most > DEFAULT_SAMPLES and smallest_drop(accuracy, most) is None:
        return SampleSize(DEFAULT_SAMPLES, None, drop, in_vain=most)
    needed = None if drop is None else smallest_sample(accuracy, drop, most)
    samples = most if needed is None else needed
    return SampleSize(samples, smallest_drop(accuracy, samples), drop)


def is_worse(losses: int, wins: int) -> bool:
    """Whether more answers became wrong than right, beyond chance."""
    return losses > wins and mcnemar(wins, losses) < _SIGNIFICANCE


def power(samples: int, accuracy: float, drop: float) -> float:
    """Probability that a server is found worse whose accuracy is lower by ``drop`` than the evaluated one (both are
    shares, from 0 to 1). A drop of more than the accuracy is the loss of every right answer."""
    left = max(0.0, accuracy - drop)
    lost, won = accuracy * (1 - left), (1 - accuracy) * left
    if not lost:
        return 0.0
    changes = ((changed, _chance(changed, samples, lost + won)) for changed in range(samples + 1))
    return sum(chance * _found(changed, lost / (lost + won)) for changed, chance in changes if chance > _NEGLIGIBLE)


def smallest_sample(accuracy: float, drop: float, most: int) -> int | None:
    """The fewest examples that show a drop; None if ``most`` do not."""
    samples = 1 + bisect_left(range(1, most + 1), True, key=lambda number: power(number, accuracy, drop) >= POWER)
    return samples if samples <= most else None


def smallest_drop(accuracy: float, samples: int) -> float | None:
    """The smallest drop, in hundredths, that so many examples show; None if they show none."""
    hundredths = range(1, ceil(100 * accuracy) + 1)
    first = bisect_left(hundredths, True, key=lambda drop: power(samples, accuracy, drop / 100) >= POWER)
    return hundredths[first] / 100 if first < len(hundredths) else None


@lru_cache(maxsize=4096)
def _found(changed: int, lost: float) -> float:
    """Probability that a server is found worse of which so many answers changed; ``lost``: the share of its changed
    answers that become wrong, in the long run."""
    return sum(_chance(losses, changed, lost) for losses in range(_fewest_losses(changed), changed + 1))


@cache
def _fewest_losses(changed: int) -> int:
    """Of so many changed answers, the fewest wrong ones with which a server is found worse; one more than all of them
    if it never is."""
    return bisect_left(range(changed + 1), True, key=lambda losses: is_worse(losses, changed - losses))


def _chance(successes: int, trials: int, share: float) -> float:
    """Probability of so many successes (binomial distribution)."""
    if not 0 < share < 1:
        return float(successes == (trials if share else 0))
    ways = lgamma(trials + 1) - lgamma(successes + 1) - lgamma(trials - successes + 1)
    return exp(ways + successes * log(share) + (trials - successes) * log(1 - share))
