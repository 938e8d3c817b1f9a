"""The division: units, shares, what the user provided, and what moves when examples are added."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import Split
from finetune_jobs.examples.parts import Part
from finetune_jobs.splitting.split import allot, assign, unite

pytestmark = pytest.mark.unit


def test_a_unit_is_connected_over_clusters_and_groups() -> None:
    links = [("a", "a"), ("b", "a"), ("d", "d"), ("e", "d")]
    groups = [("b", "customer 1"), ("c", "customer 1"), ("f", "customer 2"), ("c", "customer 3"), ("h", "a")]
    assert unite(links, groups) == {
        **dict.fromkeys("abc", "group/customer 1"),
        **dict.fromkeys("de", "d"),
        "f": "group/customer 2",
        "h": "group/a",
    }


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"))), st.integers(0, 9999))
def test_units_depend_on_no_order(links: list[tuple[str, str]], seed: int) -> None:
    chance = random.Random(seed)
    groups = [(a, f"group of {b}") for a, b in links[::2]]
    found = unite(links, groups)
    chance.shuffle(links)
    chance.shuffle(groups)
    assert unite(links, groups) == found
    assert all(found[a] == found[b] for a, b in links)


EXAMPLES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 20),
        st.sampled_from([None, None, None, Part.TRAIN, Part.VALIDATION, Part.TEST]),
    ),
    min_size=1,
    max_size=150,
)
"""Label, number of the unit and provided part of each example."""
SPLITS = st.builds(
    Split, validation_percent=st.integers(1, 30), test_percent=st.integers(1, 30), seed=st.integers(0, 1000)
)


@given(EXAMPLES, SPLITS)
def test_units_stay_whole_and_every_label_is_trained(rows: list[tuple[str, int, Part | None]], split: Split) -> None:
    labels = {f"{n:03}": label for n, (label, _, _) in enumerate(rows)}
    units = {f"{n:03}": f"unit {unit}" for n, (_, unit, _) in enumerate(rows) if unit < 15}
    parts = assign(labels, split, units)
    assert parts.keys() == labels.keys()
    for unit in set(units.values()):
        assert len({parts[identity] for identity in units if units[identity] == unit}) == 1
    assert {labels[identity] for identity in labels if parts[identity] is Part.TRAIN} == set(labels.values())
    assert parts == assign(dict(reversed(labels.items())), split, dict(reversed(units.items())))


@given(EXAMPLES, SPLITS)
def test_what_the_user_provided_is_respected_and_the_rest_of_the_unit_follows(
    rows: list[tuple[str, int, Part | None]], split: Split
) -> None:
    labels = {f"{n:03}": label for n, (label, _, _) in enumerate(rows)}
    units = {f"{n:03}": f"unit {unit}" for n, (_, unit, _) in enumerate(rows)}
    part_of_unit: dict[str, Part] = {}
    provided: dict[str, Part] = {}
    for n, (_, _, part) in enumerate(rows):
        if part and part_of_unit.setdefault(units[f"{n:03}"], part) is part:
            provided[f"{n:03}"] = part
    parts = assign(labels, split, units, provided)
    assert {identity: parts[identity] for identity in provided} == provided
    assert all(parts[identity] is part_of_unit.get(units[identity], parts[identity]) for identity in labels)


def test_of_a_unit_with_two_provided_parts_each_example_keeps_its_own() -> None:
    """The user's own validation and test may share a customer: nothing of either is trained."""
    labels = {f"{n:03}": "a" for n in range(40)}
    provided = {"000": Part.VALIDATION, "001": Part.TEST, "002": Part.VALIDATION}
    parts = assign(labels, Split(), dict.fromkeys(provided, "a customer"), provided)
    assert {identity: parts[identity] for identity in provided} == provided


def test_a_label_with_a_single_example_is_trained() -> None:
    labels = {f"{n:03}": f"label {n}" for n in range(20)}
    parts = assign(labels, Split(validation_percent=30, test_percent=30))
    assert set(parts.values()) == {Part.TRAIN}


def test_the_shares_count_what_was_provided() -> None:
    labels = {f"{n:03}": "ab"[n % 2] for n in range(200)}
    few = dict.fromkeys(list(labels)[:6], Part.TEST)
    many = dict.fromkeys(list(labels)[:60], Part.TEST)
    assert Counter(assign(labels, Split(), provided=few).values()) == {"train": 160, "validation": 20, "test": 20}
    assert Counter(assign(labels, Split(), provided=many).values()) == {"train": 120, "validation": 20, "test": 60}


@pytest.mark.parametrize("size", [2, 3, 7])
def test_shares_are_as_close_as_units_allow(size: int) -> None:
    """200 single examples fill every gap; units alone leave half a unit at most."""
    labels = {f"{n:04}": "ab"[n // size % 2] for n in range(840)}
    units = {identity: f"unit {int(identity) // size}" for identity in labels if int(identity) < 640}
    sizes = Counter(assign(labels, Split(), units).values())
    assert sizes == {Part.TRAIN: 672, Part.VALIDATION: 84, Part.TEST: 84}
    alone = Counter(assign(labels, Split(), {i: f"unit {int(i) // size}" for i in labels}).values())
    assert abs(alone[Part.TEST] - 84) <= size
    assert abs(alone[Part.VALIDATION] - 84) <= size


def test_a_unit_larger_than_a_part_is_trained() -> None:
    labels = {f"{n:03}": "a" for n in range(100)}
    units = dict.fromkeys(list(labels)[:70], "large")
    parts = assign(labels, Split(), units)
    assert {parts[identity] for identity in units} == {Part.TRAIN}
    assert Counter(parts.values()) == {Part.TRAIN: 80, Part.VALIDATION: 10, Part.TEST: 10}


def test_the_share_of_each_label_and_of_the_whole_is_exact() -> None:
    """77 labels of 13 examples: 1.3 each, 100 together."""
    labels = {f"{n:04}": f"label {n % 77}" for n in range(1001)}
    parts = assign(labels, Split())
    assert Counter(parts.values()) == {Part.TRAIN: 801, Part.VALIDATION: 100, Part.TEST: 100}
    for part in (Part.VALIDATION, Part.TEST):
        by_label = Counter(labels[identity] for identity, where in parts.items() if where is part)
        assert set(by_label.values()) == {1, 2}
        assert len(by_label) == 77


@pytest.mark.parametrize(("count", "classes"), [(300, 3), (1000, 77), (1000, 1), (400, 77), (3000, 10)])
@pytest.mark.parametrize("grouped", [0, 2, 5])
def test_few_examples_move_when_a_tenth_is_added(count: int, classes: int, grouped: int) -> None:
    """Also where labels have five examples, so that each has a test example or none."""
    chance = random.Random(f"{count}/{classes}/{grouped}")
    names = [f"{chance.getrandbits(128):032x}" for _ in range(count * 11 // 10)]
    labels = {name: f"label {chance.randrange(classes)}" for name in names}
    units = {name: f"group/{n // grouped}" for n, name in enumerate(names) if grouped}
    kept = []
    for seed in range(5):
        before = assign({name: labels[name] for name in names[:count]}, Split(seed=seed), units)
        after = assign(labels, Split(seed=seed), units)
        kept.append(sum(after[name] is part for name, part in before.items()) / count)
    assert min(kept) >= 0.9


def test_another_seed_decides_otherwise() -> None:
    labels = {f"{n:03}": "ab"[n % 2] for n in range(200)}
    units = {identity: f"unit {int(identity) // 4}" for identity in labels}
    assert assign(labels, Split(seed=1), units) != assign(labels, Split(seed=2), units)


SIZES = st.dictionaries(st.text(max_size=3), st.integers(0, 50), max_size=20)


@given(SIZES, st.fractions(0, 1), st.text(max_size=2))
def test_allotted_are_the_whole_and_each_rounded_up_or_down(sizes: dict[str, int], share: Fraction, salt: str) -> None:
    taken = allot(sizes, share, sizes, salt)
    assert sum(taken.values()) == int(sum(sizes.values()) * share)
    assert all(abs(taken[name] - size * share) < 1 for name, size in sizes.items())
    assert all(taken[name] <= size for name, size in sizes.items())


def test_allotted_is_no_more_than_there_is_room() -> None:
    assert allot({"a": 10, "b": 10}, Fraction(1, 2), {"a": 2, "b": 10}, "") == {"a": 2, "b": 5}
