"""Near duplicates: what counts as near, exactness of the measure, order, and hot buckets."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jobs.splitting.components import join
from finetune_jobs.splitting.near_duplicates import (
    SEED,
    WINDOW,
    NearDuplicates,
    Sketches,
    band_rows,
    compared_text,
    find,
    shared_boilerplate,
    shingles,
    words,
)
from tests.support.cost import assert_grows_with_the_size_only
from tests.support.fast import share

pytestmark = pytest.mark.unit


def clusters(texts: dict[str, str], percent: int = 85) -> dict[str, str]:
    near = NearDuplicates(percent)
    for identity, text in texts.items():
        near.add(identity, text)
    return near.clusters()


def sets(found: dict[str, str]) -> set[frozenset[str]]:
    return {frozenset(each for each, name in found.items() if name == other) for other in found.values()}


def jaccard(left: str, right: str) -> float:
    a, b = set(shingles(left)), set(shingles(right))
    return len(a & b) / len(a | b)


def prose(seed: int, count: int, vocabulary: int = 5000) -> list[str]:
    chance = random.Random(seed)
    return [f"w{chance.randrange(vocabulary)}" for _ in range(count)]


def changed(text: list[str], places: int, seed: int = 0) -> list[str]:
    chance = random.Random(f"{seed}/{text[0]}")
    result = list(text)
    for place in chance.sample(range(len(text)), places):
        result[place] = f"new{chance.randrange(10**9)}"
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where is my ORDER?", ["where", "is", "my", "order"]),
        ("“Ja”, sagte er … genau!", ["ja", "sagte", "er", "genau"]),
        ("3 - 4", ["3", "-", "4"]),
        ("5 % of 10€", ["5", "%", "of", "10", "€"]),
        ("👍", ["👍"]),
        ("今日は。", ["今", "日", "は"]),
        ("की का", ["की", "का"]),
        ("Straße", ["strasse"]),
        ("<EMAIL_ADDRESS_1>", ["<", "email_address_1", ">"]),
        ("?!", []),
    ],
)
def test_words_are_what_is_compared(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("left", "right", "near"),
    [
        ("Where is my order?", "where is my order", True),
        ("REWE 4711", "REWE 4712", False),
        ("PAYPAL 123456789012", "PAYPAL 123456789013", False),
        ("4711 REWE", "REWE 4711", False),
        ("3 + 4", "3 - 4", False),
        ("ok", "OK!", True),
        ("👍", "👎", False),
        ("?", "!", False),
        (
            "今日はとても良い天気ですねと彼は言った、そして散歩に出かけた",
            "今日はとても良い天気ですねと彼は言った。そして散歩に出かけた",
            True,
        ),
        ("今日は良い天気", "明日は悪い天気", False),
    ],
)
def test_short_texts(left: str, right: str, near: bool) -> None:
    assert bool(clusters({"a": left, "b": right})) is near


@pytest.mark.parametrize("length", range(2, 13))
def test_bills_that_differ_in_a_number_do_not_collapse(length: int) -> None:
    """By signatures alone they would: at 12 words (similarity 0.82) one pair in six is estimated over 0.85."""
    words_before = [f"shop{n}" for n in range(length - 1)]
    assert clusters({f"{n:04}": " ".join([*words_before, str(100_000 + 7 * n)]) for n in range(600)}) == {}


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=60).map(" ".join), max_size=30))
def test_boilerplate_is_what_nine_of_ten_texts_share(texts: list[str]) -> None:
    counts = Counter(each for text in texts for each in set(shingles(text)))
    expected = sum(10 * count >= 9 * len(texts) for count in counts.values()) if len(texts) >= 20 else 0
    assert len(shared_boilerplate(texts)) == len(set(shared_boilerplate(texts).tolist())) == expected


def found(*sources: dict[str, str]) -> dict[str, str]:
    """Clusters of texts by source."""
    texts = {identity: text for source in sources for identity, text in source.items()}
    return find(map(set, sources), lambda some: ((name, texts[name]) for name in some), 85).clusters


def test_each_source_has_its_own_boilerplate() -> None:
    sources = [
        {f"{key}{n}": f"{' '.join(prose(ord(key), 60))} {' '.join(prose(n, 3))}" for n in range(50)} for key in "xyz"
    ]
    assert found(*sources) == {}
    assert len(found({**sources[0], **sources[1], **sources[2]})) == 150


def test_near_duplicates_are_no_boilerplate_although_most_rows_are_such() -> None:
    near = {f"n{n}": f"{' '.join(prose(1, 60))} {n}" for n in range(80)}
    others = {f"o{n}": " ".join(prose(100 + n, 60)) for n in range(20)}
    assert set(found({**near, **others})) == set(near)
    assert set(found({name: near[name] for name in list(near)[:3]})) == {"n0", "n1", "n2"}


def test_what_is_nothing_but_boilerplate_is_compared_whole() -> None:
    shared = " ".join(f"w{n}" for n in range(60))
    texts = {f"{n}": f"{shared} {' '.join(prose(n, 9))}" for n in range(50)} | {"a": shared, "b": f"{shared}!"}
    assert found(texts) == {"a": "a", "b": "a"}
    assert clusters(texts) != found(texts)


@pytest.mark.slow
def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    originals = {f"{n:04}": prose(n, 60) for n in range(2000)}
    copies = {f"{n:04}-copy": changed(originals[f"{n:04}"], 1) for n in range(500)}
    others = {f"{n:04}-other": changed(originals[f"{n:04}"], 12) for n in range(500, 1000)}
    found = clusters({name: " ".join(text) for name, text in (originals | copies | others).items()})
    assert found == {f"{n:04}{end}": f"{n:04}" for n in range(500) for end in ("", "-copy")}


@pytest.mark.slow
@pytest.mark.parametrize("percent", [30, 50, 70, 85, 95, 100])
def test_the_threshold_is_exact(percent: int) -> None:
    """Pairs of 40 to 100 words around the threshold: those below are never joined, of those above 99 in 100 are."""
    chance = random.Random(percent)
    texts: dict[str, str] = {}
    above: list[str] = []
    below: list[str] = []
    for n in range(600):
        left = prose(n, chance.randrange(40, 101))
        # A word is in three triples: of c changed ones, (length - 3 c) of (length + 3 c) triples are shared at least.
        expected = len(left) * (100 - percent) / (100 + percent) / 3
        right = changed(left, round(expected * chance.uniform(0.3, 1.7)) + n % 2)
        texts |= {f"{n}": " ".join(left), f"{n}-copy": " ".join(right)}
        (above if jaccard(texts[f"{n}"], texts[f"{n}-copy"]) >= percent / 100 else below).append(f"{n}")
    found = clusters(texts, percent)
    assert len(above) >= 100
    assert not [name for name in below if name in found]
    assert sum(name in found for name in above) >= 0.99 * len(above)


@pytest.mark.parametrize(("length", "error"), [(5, 0.0), (60, 0.0), (129, 0.0), (400, 0.12)])
def test_the_measure_is_exact_for_texts_below_128_triples(length: int, error: float) -> None:
    sketches = Sketches(SEED)
    lefts = [prose(n, length) for n in range(200)]
    rights = [changed(left, n % 5 * length // 20) for n, left in enumerate(lefts)]
    for text in lefts + rights:
        sketches.add(" ".join(text))
    measured = sketches.freeze().similarity(np.arange(200), np.arange(200, 400))
    expected = [jaccard(" ".join(left), " ".join(right)) for left, right in zip(lefts, rights, strict=True)]
    assert np.abs(measured - expected).max() <= error
    assert np.abs((measured - expected).mean()) <= error / 10


FAMILIES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3)), max_size=60)


@given(FAMILIES, st.integers(0, 9999))
@settings(max_examples=share(50), deadline=None)
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, int, int]], seed: int) -> None:
    texts = {f"{n}": " ".join(changed(prose(f, 30), d, s)) for n, (f, d, s) in enumerate(rows)}
    shuffled = list(texts.items())
    random.Random(seed).shuffle(shuffled)
    found = clusters(texts)
    assert found == clusters(dict(shuffled))
    assert all(name == min(members) for members in sets(found) for name in {found[each] for each in members})
    assert all(len(members) > 1 for members in sets(found))


@pytest.mark.slow
def test_the_order_of_rows_does_not_matter_in_a_hot_bucket() -> None:
    base = prose(1, 100)
    texts = {f"{n:04}": " ".join(changed(base, 1 + n % 5, n)) for n in range(800)}
    found = clusters(texts)
    assert 160 <= len(found) < 800
    assert found == clusters(dict(reversed(texts.items())))


@pytest.mark.slow
def test_a_hot_bucket_costs_its_size_and_not_its_square() -> None:
    """A family whose members share most bands but stay below the threshold: nothing joins, everything is compared."""

    def compared(size: int) -> int:
        sketches = Sketches(SEED)
        base = prose(1, 100)
        for n in range(size):
            sketches.add(" ".join(changed(base, 5, n)))
        return sum(len(left) for left, _ in sketches.freeze().candidates(np.arange(size), band_rows(85)))

    small, large = compared(2000), compared(8000)
    assert large <= 6 * small
    assert large <= 8000 * WINDOW * (128 // band_rows(85))


@pytest.mark.slow
def test_a_thousand_copies_are_one_cluster_for_four_times_the_cost_of_a_quarter() -> None:
    base = prose(1, 200)

    def cluster(size: int) -> None:
        found = clusters({f"{n:04}": " ".join(changed(base, 1, n)) for n in range(size)})
        assert set(found.values()) == {"0000"}
        assert len(found) == size

    assert_grows_with_the_size_only(cluster, 250)


def test_near_over_others_is_near() -> None:
    base = prose(1, 100)
    chain = {"a": base, "b": ["x", "y", "z", *base[5:]], "c": ["x", "y", "z", *base[5:-6], "u", "v"]}
    texts = {name: " ".join(text) for name, text in chain.items()}
    assert jaccard(texts["a"], texts["c"]) < 0.85
    assert clusters(texts) == {"a": "a", "b": "a", "c": "a"}


def test_the_result_is_the_same_in_every_process() -> None:
    """The numbers are part of the contract: another version of the hash would move examples between parts."""
    sketches = Sketches(SEED)
    sketches.add("where is my order please")
    frozen = sketches.freeze()
    assert frozen.signatures[0, :4].tolist() == [30122, 33496, 26198, 15524]
    assert frozen.hashes.tolist() == [952620141, 3399271011, 4200375837]


@pytest.mark.slow
def test_texts_of_any_length_and_in_any_batch() -> None:
    texts = {"empty": "", "blank": " \n ", "long": " ".join(prose(1, 100_000)), "again": " ".join(prose(1, 100_000))}
    near = NearDuplicates(85)
    for identity, text in texts.items():
        near.add(identity, text)
    assert near.clusters() == {"blank": "blank", "empty": "blank", "again": "again", "long": "again"}
    near.add("blank too", "\t")
    assert near.clusters()["blank too"] == "blank"


def test_without_rows_or_threshold_there_are_none() -> None:
    assert clusters({}) == {}
    assert clusters({"a": "the same", "b": "the same"}, percent=0) == {}


EDGES = st.integers(1, 30).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
)


@given(EDGES)
def test_joining_gives_the_smallest_member_of_each_component(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = case
    left, right = np.array(edges, dtype=np.intp).reshape(-1, 2).T
    half = len(edges) // 2
    roots = join(join(np.arange(count), left[:half], right[:half]), left[half:], right[half:])
    expected = list(range(count))
    for _ in range(count):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert roots.tolist() == expected


def test_what_all_rows_share_is_not_compared() -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Bye"),
        ("assistant", "Good bye"),
    ]
    assert compared_text([{"role": role, "content": content} for role, content in turns]) == "Hello\nHi\nBye"
