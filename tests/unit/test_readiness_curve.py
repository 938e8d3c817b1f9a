"""The law behind a learning curve: found again in its points, with an interval, and asked no further than it knows."""

import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jobs.readiness import learning_curve
from finetune_jobs.readiness.learning_curve import LearningCurve, Point, PowerLaw

pytestmark = pytest.mark.unit


def measured(law: PowerLaw, sizes: Sequence[int], noise: Callable[[], float] = lambda: 0.0) -> list[Point]:
    return [Point(size, max(0.0, law.at(size) + noise())) for size in sizes]


@cache
def fitted() -> LearningCurve:
    return learning_curve.fit(measured(PowerLaw(0.1, 2, 0.5), [100, 200, 400, 800]))


@pytest.mark.slow
@given(st.floats(0, 0.5), st.floats(0.5, 5), st.floats(0.2, 1))
@settings(max_examples=10, deadline=None)
def test_a_power_law_is_found_again(a: float, b: float, c: float) -> None:
    law = PowerLaw(a, b, c)
    curve = learning_curve.fit(measured(law, [100, 250, 500, 750, 1000]))
    for size in (100, 1000, 4000):
        predicted = curve.predict(size)
        assert predicted.error == pytest.approx(law.at(size), rel=0.01, abs=1e-3)
        assert predicted.low <= predicted.error <= predicted.high


def test_data_that_do_not_help_give_a_flat_curve() -> None:
    curve = learning_curve.fit([Point(size, error) for size, error in ((100, 0.2), (200, 0.21), (400, 0.22))])
    assert curve.predict(1600).error == pytest.approx(0.21, abs=0.001)


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_most_simulations() -> None:
    chance = random.Random(7)
    hits = 0
    for seed in range(25):
        law = PowerLaw(chance.uniform(0, 0.3), chance.uniform(1, 4), chance.uniform(0.2, 0.7))
        points = measured(law, [125, 250, 500, 750, 1000], lambda: chance.gauss(0, 0.01))
        predicted = learning_curve.fit(points, seed=seed).predict(2000)
        hits += predicted.low <= law.at(2000) <= predicted.high
    assert hits >= 19


@pytest.mark.slow
def test_equal_points_give_equal_curves_in_any_order() -> None:
    points = measured(PowerLaw(0.1, 2, 0.5), [100, 200, 400])
    assert learning_curve.fit(points) == learning_curve.fit(points[::-1])


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([(100, 0.3), (200, 0.2)], "2 sizes: a learning curve needs 3"),
        ([(100, 0.3), (100, 0.31), (200, 0.2)], "2 sizes"),
        ([(0, 0.3), (100, 0.3), (200, 0.2)], "must be 1 or more"),
        ([(50, -0.1), (100, 0.3), (200, 0.2)], "0 or more"),
        ([(50, float("nan")), (100, 0.3), (200, 0.2)], "0 or more"),
    ],
)
def test_what_no_curve_goes_through(points: list[tuple[int, float]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        learning_curve.fit([Point(*point) for point in points])


@pytest.mark.parametrize("size", [0, 3201, 10**9])
def test_nobody_extrapolates_beyond_two_doublings(size: int) -> None:
    assert fitted().predict(3200).error > 0
    with pytest.raises(ValueError, match="measured up to 800 speaks of 1 to 3200"):
        fitted().predict(size)
