"""Pilots, weights of sources, and replay."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jobs.splitting.sampling import pilot, repeats, replay

pytestmark = pytest.mark.unit

NAMES = [f"{n:04}" for n in range(1000)]


def test_a_pilot_has_the_shares_of_the_labels() -> None:
    labels = {name: "aaaaaaabbc"[n % 10] for n, name in enumerate(NAMES)}
    chosen = pilot(labels, 100, seed=0)
    assert Counter(labels[name] for name in chosen) == {"a": 70, "b": 20, "c": 10}
    assert chosen == pilot(dict(reversed(labels.items())), 100, seed=0)
    assert chosen != pilot(labels, 100, seed=1)
    assert chosen <= pilot(labels, 200, seed=0)


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from("abc"), max_size=200), st.integers(1, 250))
def test_a_pilot_has_as_many_as_asked_or_all(labels: dict[str, str], examples: int) -> None:
    chosen = pilot(labels, examples, seed=0)
    assert len(chosen) == min(examples, len(labels))
    assert chosen <= labels.keys()


@pytest.mark.parametrize(
    ("weight", "counts"),
    [
        (1, {1: 1000}),
        (2, {2: 1000}),
        (0.5, {0: 500, 1: 500}),
        (0.001, {0: 999, 1: 1}),
        (1.25, {1: 750, 2: 250}),
        (2.1, {2: 900, 3: 100}),
    ],
)
def test_a_weight_is_how_often_an_example_is_used(weight: float, counts: dict[int, int]) -> None:
    found = repeats(NAMES, weight, seed=0)
    assert Counter(found.values()) == counts
    assert found == repeats(NAMES[::-1], weight, seed=0)


def test_a_smaller_weight_keeps_some_of_what_a_larger_one_keeps() -> None:
    third, half = ({name for name, count in repeats(NAMES, w, seed=0).items() if count} for w in (0.3, 0.5))
    assert third < half


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_is_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        repeats(NAMES, weight, seed=0)


@pytest.mark.parametrize(
    ("own", "percent", "count"),
    [(900, 10, 100), (950, 5, 50), (100, 0, 0), (100, 50, 100), (0, 10, 0), (99_999, 50, 1000)],
)
def test_replay_makes_its_share_of_training(own: int, percent: int, count: int) -> None:
    chosen = replay(NAMES, own, percent, seed=0)
    assert len(chosen) == count
    assert set(chosen) <= set(NAMES)
    assert set(chosen) == set(replay(NAMES[::-1], own, percent, seed=0))


@pytest.mark.parametrize("percent", [-1, 100])
def test_replay_alone_is_no_training(percent: int) -> None:
    with pytest.raises(ValueError, match="0 to 99 percent"):
        replay(NAMES, 100, percent, seed=0)
