"""Measures of free text: how near an answer comes to the expected one, and how unlikely that one is for a model. Pure
functions, no model.

chrF (Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015), by sacrebleu with its defaults:
characters in a row, up to six, recall counting twice as much as precision, white space left out. It needs no tokenizer
and no stemmer, so that it reads any language, and half a word that is right counts. A model's score is the mean over
the answers, 0 to 1.

Perplexity is the exponential of the mean negative log-likelihood of the expected answers' tokens. That mean is a ratio
of two sums over the rows; its interval is that of a ratio estimator (Cochran, "Sampling Techniques", 3rd edition, 1977,
chapter 6), with Student's quantile, and then raised like the mean; where rows stand in groups that are alike, it holds
that of the groups' sums too. All models have seen the same tokens, so the
difference between two of them is paired: row by row, as a ratio of perplexities less 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, expm1, inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any, Final

from finetune_jobs.artifacts.measurements import Figure
from finetune_jobs.evaluation.behaviour.paired import student_95

if TYPE_CHECKING:
    from finetune_jobs.evaluation.clusters import Groups  # needs numpy, which publishing does without

FEWEST: Final = 4
"""Rows from which perplexity is measured: fewer say too little of how much they differ."""
LARGEST: Final = 20.0
"""Nats a token that are told apart: guessing among a vocabulary of 256,000 tokens takes 12.5."""


@lru_cache(maxsize=16_384)
def chrf(truth: str, answer: str) -> float:
    """How much of an answer agrees with the expected one, 0 to 1. Cached: models often give the same answer."""
    return float(_chrf().sentence_score(answer, [truth]).score) / 100


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF  # takes a fifth of a second, and only texts need it

    return CHRF()


@dataclass(frozen=True)
class Likelihoods:
    """How unlikely models find the expected answers."""

    tokens: Sequence[int]
    """Of each expected answer, with its thoughts and the token that ends it."""
    losses: Mapping[str, Sequence[float]]
    """By model: the negative log-likelihood of each of these answers, in nats."""
    groups: "Groups | None" = None
    """Which rows are alike; None: each stands for itself."""

    def perplexities(self) -> dict[str, Figure]:
        """Of each model that computes numbers; of none where there are fewer than FEWEST rows."""
        means = {model: self._mean(losses) for model, losses in self.losses.items()}
        return {model: _raised(exp, mean) for model, mean in means.items() if mean}

    def change(self, model: str, against: str) -> Figure | None:
        """By which share the perplexity of a model is above that of another: -0.2 is a fifth less. None if one of them
        has none."""
        if not {model, against} <= self.losses.keys():
            return None
        pairs = zip(self.losses[model], self.losses[against], strict=True)
        mean = self._mean([mine - other for mine, other in pairs])
        return _raised(expm1, mean) if mean else None

    def _mean(self, losses: Sequence[float]) -> Figure | None:
        """Nats per token."""
        rows, total = len(self.tokens), sum(self.tokens)
        if rows < FEWEST or not all(map(isfinite, losses)):
            return None
        mean = sum(losses) / total
        residuals = [loss - mean * tokens for loss, tokens in zip(losses, self.tokens, strict=True)]
        half = _half(residuals) / total
        if self.groups:
            half = max(half, _half(self.groups.sums(residuals).tolist()) / total)
        return Figure(value=mean, low=mean - half, high=mean + half)


def _half(residuals: Sequence[float]) -> float:
    """Half of the interval of a sum; of one group alone, nothing is known."""
    count = len(residuals)
    if count < 2:
        return inf
    return student_95(count - 1) * sqrt(count / (count - 1) * sum(each * each for each in residuals))


def _raised(function: Callable[[float], float], mean: Figure) -> Figure:
    value, low, high = (function(max(-LARGEST, min(LARGEST, nats))) for nats in (mean.value, mean.low, mean.high))
    return Figure(value=value, low=low, high=high)
