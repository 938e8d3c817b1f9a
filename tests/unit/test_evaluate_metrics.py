"""The arithmetic of the evaluation, against worked examples and against what must hold for any data."""

from collections.abc import Sequence
from math import comb, isclose
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.metrics import LabelScores, compare, confusions, mcnemar, score, wilson
from finetune_jobs.evaluation.sample import quotas, sample
from finetune_jobs.modelling.token_files import Conversation
from tests.support.training import row

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LABELS = ["a", "b", "c"]
SEEDS = st.integers(0, 9999)
"""Of an order."""
answered = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "", "no label"])), min_size=1)


def columns(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def test_scores_of_a_worked_example() -> None:
    truth = ["a", "a", "a", "b", "b", "c"]
    answers = ["a", "a", "b", "b", "nonsense", "a"]

    scores = score(truth, answers, [*LABELS, "d"])

    assert scores.accuracy == 3 / 6
    assert scores.labels == {
        "a": LabelScores(support=3, given=3, precision=2 / 3, recall=2 / 3, f1=2 / 3),
        "b": LabelScores(support=2, given=2, precision=1 / 2, recall=1 / 2, f1=1 / 2),
        "c": LabelScores(support=1, given=0, precision=0.0, recall=0.0, f1=0.0),
    }
    assert scores.precision == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.unknown_answers == 1
    assert confusions(truth, answers, 2) == [("a", "b", 1), ("b", "nonsense", 1)]


def test_a_label_that_was_only_answered_counts_against_the_mean() -> None:
    assert score(["a"] * 3, ["a", "a", "b"], LABELS).f1 == pytest.approx((0.8 + 0) / 2)


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no examples"):
        score([], [], LABELS)


@given(answered)
def test_scores_stay_in_their_bounds_and_agree(pairs: list[tuple[str, str]]) -> None:
    truth, answers = columns(pairs)
    scores = score(truth, answers, LABELS)
    lower, upper = scores.interval
    tolerance = 1e-12
    assert 0 <= lower <= scores.accuracy + tolerance <= upper + 2 * tolerance <= 1 + 2 * tolerance
    assert sum(row.support for row in scores.labels.values()) == len(truth)
    right = sum(row.recall * row.support for row in scores.labels.values())
    assert isclose(right, scores.accuracy * len(truth))
    for labelled in scores.labels.values():
        assert min(labelled.precision, labelled.recall) - tolerance <= labelled.f1
        assert labelled.f1 <= max(labelled.precision, labelled.recall) + tolerance


@given(answered, SEEDS)
def test_the_order_of_examples_does_not_matter(pairs: list[tuple[str, str]], seed: int) -> None:
    shuffled = list(pairs)
    Random(seed).shuffle(shuffled)
    first, second = score(*columns(pairs), LABELS), score(*columns(shuffled), LABELS)
    assert first == second


@given(st.lists(st.sampled_from(LABELS), min_size=1))
def test_right_answers_score_one(truth: list[str]) -> None:
    scores = score(truth, truth, LABELS)
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == (1, 1, 1, 1)
    assert scores.interval[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("correct", "samples", "lower", "upper"),
    [
        (48, 60, 0.682, 0.882),
        (160, 200, 0.739, 0.850),
        (800, 1000, 0.774, 0.824),
        (0, 10, 0.0, 0.278),
        (10, 10, 0.722, 1),
    ],
)
def test_wilson(correct: int, samples: int, lower: float, upper: float) -> None:
    assert wilson(correct, samples) == pytest.approx((lower, upper), abs=0.001)


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(12, 3, 0.0352), (8, 2, 0.1094), (0, 0, 1), (5, 5, 1), (6, 0, 0.03125)]
)
def test_mcnemar(wins: int, losses: int, p: float) -> None:
    assert mcnemar(wins, losses) == pytest.approx(p, abs=0.0001)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_two_sided_binomial_test(wins: int, losses: int) -> None:
    total = wins + losses
    extreme = sum(comb(total, k) for k in range(total + 1) if abs(k - total / 2) >= abs(wins - total / 2))
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, extreme / 2**total))
    assert mcnemar(wins, losses) == mcnemar(losses, wins)


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_mcnemar_takes_large_numbers(wins: int, losses: int) -> None:
    assert 0 <= mcnemar(wins, losses) <= 1


def test_comparison_counts_only_where_they_differ() -> None:
    comparison = compare(["a", "a", "a", "b"], ["b", "a", "a", "x"], ["a", "a", "b", "y"])
    assert (comparison.wins, comparison.losses, comparison.p_value) == (1, 1, 1)


sizes = st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=8)


@given(sizes, st.floats(0, 1))
def test_quotas_are_all_places_and_within_one_of_the_share(groups: dict[str, int], share: float) -> None:
    total = sum(groups.values())
    limit = round(share * total)
    given_places = quotas(groups, limit)
    assert sum(given_places.values()) == limit
    for name, size in groups.items():
        assert abs(given_places[name] - limit * size / total) < 1
        assert given_places[name] <= size


def examples(count: int) -> list[Conversation]:
    return [Conversation(row(f"text {n}", LABELS[0] if n % 5 else LABELS[1])["messages"]) for n in range(count)]


@given(st.integers(0, 80), st.integers(1, 60), st.sampled_from(TaskType), SEEDS)
def test_the_sample_depends_on_the_examples_alone(count: int, limit: int, task: TaskType, seed: int) -> None:
    split = examples(count)
    chosen = sample(split, limit, task)
    assert len(chosen) == min(limit, count)
    assert chosen == [example for example in split if example in chosen]  # each once, in the order of the split
    shuffled = list(split)
    Random(seed).shuffle(shuffled)
    assert sorted(e.prompt[-1]["content"] for e in sample(shuffled, limit, task)) == sorted(
        e.prompt[-1]["content"] for e in chosen
    )


def test_the_sample_keeps_the_shares_of_the_labels() -> None:
    chosen = [example.label for example in sample(examples(100), 20, TaskType.CLASSIFICATION)]
    assert (chosen.count("a"), chosen.count("b")) == (16, 4)


@pytest.mark.parametrize("task", [TaskType.TEXT, TaskType.EXTRACTION])
def test_answers_that_are_no_classes_are_sampled_from_the_whole_alphabet(task: TaskType) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    split = [Conversation(row(f"text {n}", f"{letters[n % 26]} answer {n}")["messages"]) for n in range(1000)]
    assert {example.label[0] for example in sample(split, 200, task)} == set(letters)


def test_equal_remainders_do_not_favour_the_start_of_the_alphabet() -> None:
    chosen = quotas({f"label {n:03}": 1 for n in range(100)}, 50)
    assert 10 < sum(chosen[f"label {n:03}"] for n in range(50)) < 40
