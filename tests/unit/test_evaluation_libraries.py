"""Statistics that are written here, beside those of scipy and scikit-learn, which no image holds (decision 73)."""

import random
from typing import Final

import numpy as np
import pytest

from finetune_jobs.evaluation.behaviour.paired import student_95
from finetune_jobs.evaluation.clusters import Groups, drawn_means
from finetune_jobs.evaluation.metrics import mcnemar, score, wilson

pytestmark = [pytest.mark.unit, pytest.mark.slow]

COUNTS: Final = [(0, 1), (1, 1), (0, 9), (9, 9), (3, 10), (50, 100), (92, 100), (199, 200), (4321, 10000)]


@pytest.mark.parametrize(("right", "rows"), COUNTS)
def test_wilson_is_that_of_scipy(right: int, rows: int) -> None:
    from scipy.stats import binomtest

    found = binomtest(right, rows).proportion_ci(method="wilson")
    assert wilson(right, rows) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 6), (5, 0), (3, 9), (20, 20), (40, 70), (900, 1000)])
def test_mcnemar_is_that_of_scipy(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 29, 500])
def test_students_quantile_is_that_of_scipy(freedom: int) -> None:
    from scipy.stats import t

    assert student_95(freedom) == pytest.approx(float(t.ppf(0.975, freedom)), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    """With answers that are no label, which count for no class."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    drawn = random.Random(seed)
    truth = drawn.choices("abcd", [50, 20, 5, 1], k=120)
    said = [each if drawn.random() < 0.6 else drawn.choice("abcdx") for each in truth]
    found = score(truth, said, list("abcd"))
    assert found.accuracy == pytest.approx(accuracy_score(truth, said))
    labels = sorted(found.labels)
    table = precision_recall_fscore_support(truth, said, labels=labels, zero_division=0)
    for number, label in enumerate(labels):
        row = found.labels[label]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(tuple(each[number] for each in table))
    mean = precision_recall_fscore_support(truth, said, labels=labels, average="macro", zero_division=0)
    assert (found.precision, found.recall, found.f1) == pytest.approx(mean[:3])


def test_drawing_groups_is_scipys_bootstrap_of_groups() -> None:
    """Groups of equal size: the mean of their means, of which scipy draws again; both but for the noise of drawing."""
    from scipy.stats import bootstrap

    generator = np.random.default_rng(4)
    values = (generator.random((30, 6)) < generator.beta(4, 2, (30, 1))).astype(float)
    groups = Groups.of([str(n // 6) for n in range(180)])
    assert groups is not None
    ours = drawn_means(values.reshape(-1, 1), groups)[:, 0]
    theirs = bootstrap((values.mean(1),), np.mean, n_resamples=2000, method="percentile", rng=generator)
    assert np.std(ours) == pytest.approx(theirs.standard_error, rel=0.08)
    ends = np.percentile(ours, [2.5, 97.5])
    assert ends == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
