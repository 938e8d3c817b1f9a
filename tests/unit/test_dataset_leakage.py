"""Leakage: found from the texts, whoever made the division, and refused with places."""

import random

import pytest

from finetune_api.dataset import Split
from finetune_api.reasons import Reason
from finetune_jobs.examples.parts import Part
from finetune_jobs.splitting import leakage
from finetune_jobs.splitting.leakage import Leak, across, find, refusal
from finetune_jobs.splitting.near_duplicates import NearDuplicates
from finetune_jobs.splitting.split import assign, unite
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


def texts(count: int, copied: int, words: int = 60) -> dict[str, str]:
    """Texts of random words; the first ``copied`` have a copy with another word in one place."""
    chance = random.Random(count)
    made = {f"{n:04}": [f"w{chance.randrange(5000)}" for _ in range(words)] for n in range(count)}
    for n in range(copied):
        made[f"{n:04}-copy"] = [*made[f"{n:04}"][:-9], "other", *made[f"{n:04}"][-8:]]
    return {name: " ".join(text) for name, text in made.items()}


@pytest.mark.slow
def test_every_planted_leak_is_found() -> None:
    rows = texts(2000, 300)
    test = {name: text for name, text in rows.items() if name.endswith("-copy")}
    train = {name: text for name, text in rows.items() if name not in test}
    assert find(train.items(), test.items(), 85) == [Leak(name[:4], name) for name in test]
    assert find(train.items(), test.items(), 95) == []


@pytest.mark.slow
def test_training_texts_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texts(900, 40)
    test = {name: text for name, text in rows.items() if name.endswith("-copy")}
    train = {name: text for name, text in rows.items() if name not in test}
    whole = find(train.items(), test.items(), 85)
    monkeypatch.setattr(leakage, "_CHUNK", 1)
    assert find(iter(train.items()), iter(test.items()), 85) == whole == [Leak(name[:4], name) for name in test]


def test_the_most_similar_training_text_is_named() -> None:
    words = [f"w{n}" for n in range(100)]
    train = {"one": [*words[:-1], "x"], "two": [*words[:-2], "x", "y"], "same": words, "other": ["z", *words[40:]]}
    assert find([(k, " ".join(v)) for k, v in train.items()], [("t", " ".join(words) + "!")], 85) == [Leak("same", "t")]


def test_duplicates_within_one_part_are_no_leak() -> None:
    rows = list(texts(200, 200).items())
    assert find(rows, [], 85) == find([], rows, 85) == find(rows, [("t", "nothing like it")], 85) == []
    assert find(rows, rows, None) == []


@pytest.mark.slow
def test_a_division_by_clusters_leaks_nothing_and_one_by_chance_does() -> None:
    rows = texts(1500, 500)
    near = NearDuplicates(85)
    for name, text in rows.items():
        near.add(name, text)
    labels = dict.fromkeys(rows, "")
    leaks = {}
    for name, units in {"clusters": unite(near.clusters().items()), "chance": {}}.items():
        parts = assign(labels, Split(), units)
        trained, tested = ([(i, rows[i]) for i in rows if parts[i] is part] for part in (Part.TRAIN, Part.TEST))
        leaks[name] = find(trained, tested, 85)
    assert leaks["clusters"] == []
    assert len(leaks["chance"]) > 50


def test_leaks_can_be_united_and_divided_again() -> None:
    rows = texts(300, 100)
    labels = dict.fromkeys(rows, "")
    links: list[tuple[str, str]] = []
    for _ in range(2):
        parts = assign(labels, Split(), unite(links))
        trained, tested = ([(i, rows[i]) for i in rows if parts[i] is part] for part in (Part.TRAIN, Part.TEST))
        links += find(trained, tested, 85)
    assert 10 <= len(links) <= 40


def test_units_across_parts_that_the_user_provided() -> None:
    units = {**dict.fromkeys("abcd", "1"), **dict.fromkeys("ef", "2"), **dict.fromkeys("gh", "3"), "i": "4"}
    train, validation, test = Part.TRAIN, Part.VALIDATION, Part.TEST
    parts = {
        "d": train,
        "b": train,
        "a": test,
        "c": test,
        "e": train,
        "f": validation,
        "g": test,
        "i": test,
        "j": train,
    }
    assert across(units, parts) == [Leak("b", "a"), Leak("b", "c")]
    assert across({}, parts) == across(units, {}) == []


def test_the_refusal_names_places_and_remedy() -> None:
    error = refusal([(f"s3://data/p.csv line {n}", f"s3://data/s.csv line {n}") for n in range(7)])
    assert error.reason is Reason.DATASET_INVALID
    assert not error.retriable
    pair = "s3://data/p.csv line 0 (test) and s3://data/s.csv line 0 (training); "
    assert_says(error.message, "7 test examples", "training examples", pair, "2 more", "remove one")
