"""Measures of a classification, from pairs of right and given labels. Pure functions, no model."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt
from operator import eq
from typing import Final

Z_95: Final = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 % interval."""


@dataclass(frozen=True)
class LabelScores:
    """The scores of one label. A ratio without cases is 0, as with scikit-learn's ``zero_division=0``."""

    support: int
    """Examples whose right answer is this label."""
    given: int
    """Answers with this label, right and wrong ones."""
    precision: float
    """Share of the answers with this label that are right."""
    recall: float
    """Share of this label's examples that were answered right."""
    f1: float
    """Harmonic mean of precision and recall."""


@dataclass(frozen=True)
class Scores:
    """The scores of a model."""

    samples: int
    accuracy: float
    """Share of answers that are exactly the right label."""
    interval: tuple[float, float]
    """Wilson 95 % interval of the accuracy."""
    precision: float
    """Mean over the labels (macro), as recall and f1."""
    recall: float
    f1: float
    labels: dict[str, LabelScores]
    """Every label that is right for an example or was answered; an answer that is not a label is simply wrong."""
    unknown_answers: int
    """Answers that are not a label."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same examples (McNemar's test, exact)."""

    wins: int
    """Examples that only the second answered right."""
    losses: int
    """Examples that only the first answered right."""
    p_value: float
    """Probability of a difference at least this large if both were equally good."""


def score(truth: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Scores:
    """Scores of ``answers`` against ``truth``; ``labels`` are the allowed ones. Raises ValueError when empty."""
    if not truth:
        raise ValueError("no examples to score")
    support, given = Counter(truth), Counter(answers)
    right = Counter(t for t, a in zip(truth, answers, strict=True) if t == a)
    seen = [label for label in sorted({*labels, *support}) if support[label] or given[label]]
    table = {label: label_scores(support[label], given[label], right[label]) for label in seen}
    correct = right.total()
    return Scores(
        samples=len(truth),
        accuracy=correct / len(truth),
        interval=wilson(correct, len(truth)),
        precision=sum(row.precision for row in table.values()) / len(table),
        recall=sum(row.recall for row in table.values()) / len(table),
        f1=sum(row.f1 for row in table.values()) / len(table),
        labels=table,
        unknown_answers=sum(count for answer, count in given.items() if answer not in table),
    )


def wilson(correct: float, samples: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927), sound for small samples and shares near 0 and 1: of 95 %, or with the
    given quantile of the normal distribution."""
    share, z2 = correct / samples, z**2
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = z / (1 + z2 / samples) * sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def at_every_look(won: float, samples: int) -> tuple[float, float]:
    """A 95 % interval of a mean of values from 0 to 1 that may be looked at as often as one likes: with 95 %
    probability the true mean is in all intervals of a growing sample (a confidence sequence).

    A mean is in it while a binomial distribution gives what was found a probability above 0.05 / (samples + 1)
    (Robbins, "Statistical methods related to the law of the iterated logarithm", 1970, by Ville's inequality). Values
    between 0 and 1 only make it wider than it has to be.
    """
    lost = samples - won
    ways = log(samples + 1) + lgamma(samples + 1) - lgamma(won + 1) - lgamma(lost + 1)

    def inside(mean: float) -> bool:
        return ways + won * log(mean) + lost * log(1 - mean) > log(0.05)

    def edge(within: float, outside: float) -> float:
        for _ in range(40):
            middle = (within + outside) / 2
            within, outside = (middle, outside) if inside(middle) else (within, middle)
        return within

    share = won / samples
    return edge(share, 0.0) if won else 0.0, edge(share, 1.0) if lost else 1.0


def compare(
    truth: Sequence[str], first: Sequence[str], second: Sequence[str], right: Callable[[str, str], bool] = eq
) -> Comparison:
    """Whether ``second`` answers better than ``first`` on the same examples; ``right`` decides what a right answer
    is."""
    pairs = [(right(t, a), right(t, b)) for t, a, b in zip(truth, first, second, strict=True)]
    wins, losses = pairs.count((False, True)), pairs.count((True, False))
    return Comparison(wins, losses, mcnemar(wins, losses))


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact test: given that they differ, each model is right with probability 1/2."""
    differing = wins + losses
    term = tail = 1  # binomial coefficients, each from the one before
    for k in range(min(wins, losses)):
        term = term * (differing - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << differing))


def confusions(truth: Sequence[str], answers: Sequence[str], limit: int) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: right label, answer, how often."""
    wrong = Counter((t, a) for t, a in zip(truth, answers, strict=True) if t != a)
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [(right, answer, count) for (right, answer), count in ordered[:limit]]


def label_scores(support: int, given: int, right: int) -> LabelScores:
    """From how often something was expected, said, and both."""
    precision = right / given if given else 0.0
    recall = right / support if support else 0.0
    f1 = 2 * right / (support + given) if support + given else 0.0
    return LabelScores(support, given, precision, recall, f1)
