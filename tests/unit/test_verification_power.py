"""How many test examples show a drop in accuracy, and which drop so many show."""

import math

import pytest

from finetune_api.verification import Verification
from finetune_jobs.verification.power import (
    POWER,
    SampleSize,
    is_worse,
    power,
    size_sample,
    smallest_drop,
    smallest_sample,
)

pytestmark = pytest.mark.unit


def counted(samples: int, accuracy: float, drop: float) -> float:
    """The power by its definition: every outcome of independent answers, with its probability."""
    left = accuracy - drop
    lost, won = accuracy * (1 - left), (1 - accuracy) * left
    return sum(
        math.comb(samples, losses)
        * math.comb(samples - losses, wins)
        * (lost**losses * won**wins * (1 - lost - won) ** (samples - losses - wins))
        for losses in range(samples + 1)
        for wins in range(samples - losses + 1)
        if is_worse(losses, wins)
    )


@pytest.mark.parametrize(
    ("samples", "accuracy", "drop"), [(5, 1.0, 0.5), (6, 1.0, 0.9), (20, 0.9, 0.5), (40, 0.6, 0.3), (33, 0.95, 0.05)]
)
def test_the_power_is_exact(samples: int, accuracy: float, drop: float) -> None:
    assert power(samples, accuracy, drop) == pytest.approx(counted(samples, accuracy, drop), abs=1e-6)


@pytest.mark.parametrize(
    ("accuracy", "drop", "samples"),
    [
        # Nothing can be won, and six losses are beyond chance: of 91 answers of which a tenth is lost.
        (1.0, 0.1, 91),
        (0.9, 0.2, 91),
        (0.9, 0.4, 31),
        (0.9, 0.1, 282),
        (0.9, 0.05, None),
        (0.0, 0.1, None),
    ],
)
def test_the_smallest_sample_that_shows_a_drop(accuracy: float, drop: float, samples: int | None) -> None:
    assert smallest_sample(accuracy, drop, 300) == samples
    if samples:
        assert power(samples - 1, accuracy, drop) < POWER <= power(samples, accuracy, drop)


@pytest.mark.parametrize(
    ("accuracy", "samples", "drop"),
    [
        (0.9, 50, 0.29),
        (0.9, 282, 0.10),
        (1.0, 91, 0.10),
        (0.9, 6, None),
        (1.0, 5, None),
        (0.0, 50, None),
        (0.3, 0, None),
    ],
)
def test_the_smallest_drop_that_a_sample_shows(accuracy: float, samples: int, drop: float | None) -> None:
    assert smallest_drop(accuracy, samples) == drop


@pytest.mark.parametrize("drop", ["0.15", "0.2", "0.3", "0.5", "0.7", "0.8", "0.9", "0.95", "0.99"])
def test_the_operator_makes_room_for_the_largest_sample_that_a_drop_may_need(drop: str) -> None:
    """It knows no accuracy. The most answers change, and so the most are needed, at 0.5 and half of the drop."""
    most, wanted = Verification(detect_drop=drop).most_samples, float(drop)
    needed = smallest_sample(0.5 + wanted / 2, wanted, most)
    assert needed is not None
    assert most < 2 * needed + 10, "a verification that does not run holds hardware for as long"


@pytest.mark.parametrize(
    ("rights", "most", "drop", "size", "said"),
    [
        ([True] * 90 + [False] * 10, 50, None, SampleSize(50, 0.29), "they show a drop of 0.29"),
        ([True] * 27 + [False] * 3, 1000, None, SampleSize(30, 0.41), "they show a drop of 0.41"),
        ([True] * 90 + [False] * 10, 606, 0.2, SampleSize(91, 0.2, 0.2), "they show a drop of 0.20"),
        (
            [True] * 90 + [False] * 10,
            606,
            0.1,
            SampleSize(100, 0.19, 0.1),
            "too few for 0.10: they show a drop of 0.19",
        ),
        ([True] * 4, 606, 0.1, SampleSize(4, None, 0.1), "too few for 0.10: they show no drop"),
        # As of texts: six losses are the fewest beyond chance.
        (
            [True] * 6 + [False] * 994,
            606,
            0.1,
            SampleSize(50, None, 0.1, in_vain=606),
            "not even 606 examples show a drop: too few answers are right",
        ),
        (
            [False] * 51,
            1000,
            0.1,
            SampleSize(50, None, 0.1, 51),
            "not even 51 examples show a drop: too few answers are right",
        ),
        ([False] * 50, 1000, 0.1, SampleSize(50, None, 0.1), "too few for 0.10: they show no drop"),
        ([False] * 200, 100, None, SampleSize(100, None), "they show no drop"),
        ([], 50, None, SampleSize(0, None), "they show no drop"),
    ],
)
def test_the_size_of_a_sample(rights: list[bool], most: int, drop: float | None, size: SampleSize, said: str) -> None:
    assert size_sample(rights, most, drop) == size
    assert str(size) == said
