"""How near texts come to what is expected, and how unlikely models find that: tables and properties."""

import random
from functools import lru_cache
from math import exp, log, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import TaskType
from finetune_api.gates import Gates
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.report import Evaluated, Probabilities
from finetune_jobs.evaluation.texts import FEWEST, LARGEST, Likelihoods, chrf
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

COMMON = [
    ("abc", "abc", 1.0),
    ("abc", "abd", (2 / 3 + 1 / 2 + 0) / 3),  # of one, two and three characters in a row; precision is recall
    ("ab", "abab", (5 * (1 / 2 + 1 / 3) / 2 * 1) / (4 * (1 / 2 + 1 / 3) / 2 + 1)),  # recall is 1 and counts twice
    ("abc", "xyz", 0.0),
    ("abc", "", 0.0),
    ("Käse", "kase", (2 / 4 + 1 / 3 + 0 + 0) / 4),
    ("重启路由器", "重启路由器", 1.0),
]


@pytest.mark.parametrize(("truth", "answer", "expected"), COMMON)
def test_characters_in_a_row_count(truth: str, answer: str, expected: float) -> None:
    assert chrf(truth, answer) == pytest.approx(expected)


def test_a_longer_common_part_is_nearer_where_words_say_nothing() -> None:
    """Inflected words, and a language without spaces: words in common would see none of it."""
    assert chrf("die Rechnungen zahlen", "die Rechnung bezahlen") > 0.6 > chrf("die Rechnungen zahlen", "das Wetter")
    assert chrf("重启路由器", "请重启路由器") > 0.6


@given(st.text(max_size=30), st.text(max_size=30))
def test_chrf_is_a_share_and_whole_where_texts_are_equal(truth: str, answer: str) -> None:
    assert 0 <= chrf(truth, answer) <= 1 + 1e-9
    if truth.strip():
        assert chrf(truth, truth) == pytest.approx(1)


def test_a_model_that_guesses_among_eight_has_perplexity_eight() -> None:
    tokens = [3, 5, 9, 2]
    found = Likelihoods(tokens, {"base": [count * log(8) for count in tokens]}).perplexities()["base"]
    assert (found.value, found.low, found.high) == pytest.approx((8, 8, 8))


def test_long_answers_count_by_their_tokens() -> None:
    """30 tokens at 1 nat and 10 at 3 nats: 1.5 on average, however many rows they are."""
    found = Likelihoods([10, 20, 5, 5], {"base": [10, 20, 15, 15]}).perplexities()["base"]
    assert found.value == pytest.approx(exp(1.5))
    assert found.low < found.value < found.high


def test_the_interval_holds_what_it_should() -> None:
    """Of 200 tests of 30 rows whose tokens cost 1 nat on average, 95 in 100 have e in their interval."""
    drawn, held = random.Random(7), 0
    for _ in range(200):
        tokens = [drawn.randint(5, 60) for _ in range(30)]
        losses = [count * drawn.gauss(1, 0.3) for count in tokens]
        it = Likelihoods(tokens, {"base": losses}).perplexities()["base"]
        held += it.low <= exp(1) <= it.high
    assert 180 <= held <= 198


def test_what_is_paired_is_told_apart_where_single_intervals_overlap() -> None:
    drawn = random.Random(7)
    tokens = [drawn.randint(5, 60) for _ in range(40)]
    base = [count * drawn.uniform(0.2, 3) for count in tokens]
    less = [loss - 0.05 * count for loss, count in zip(base, tokens, strict=True)]
    found = Likelihoods(tokens, {"base": base, "tuned": less})
    assert found.perplexities()["base"].low < found.perplexities()["tuned"].high
    change = found.change("tuned", "base")
    assert change is not None
    assert (change.value, change.low, change.high) == pytest.approx([exp(-0.05) - 1] * 3)


@pytest.mark.parametrize(
    ("tokens", "losses", "measured"),
    [
        ([5] * FEWEST, [4.0] * FEWEST, True),
        ([5] * (FEWEST - 1), [4.0] * (FEWEST - 1), False),
        ([5] * 9, [4.0] * 8 + [nan], False),
        ([5] * 9, [1e9] * 9, True),
    ],
    ids=["enough", "too few rows", "no number", "beyond measure"],
)
def test_what_has_no_perplexity(tokens: list[int], losses: list[float], measured: bool) -> None:
    found = Likelihoods(tokens, {"base": [3.0 * count for count in tokens], "tuned": losses})
    assert ("tuned" in found.perplexities()) is measured
    assert (found.change("tuned", "base") is not None) is measured
    assert all(it.high <= exp(LARGEST) for it in found.perplexities().values())


ROWS = 40
TRUTH = [f"restart the router number {n} and wait" for n in range(ROWS)]
TOKENS = [9] * ROWS


@lru_cache
def texts(artifact: float = 0.5) -> Measurements:
    """The base writes nothing and finds each token of the answer two nats unlikely; tuned model and artifact come
    near. ``artifact``: what a token costs it."""
    said = {"base": [""] * ROWS, "tuned": [t[:-5] for t in TRUTH], "artifact": [t[:-4] for t in TRUTH]}
    nats = {"base": 2.0, "tuned": 0.5, "artifact": artifact}
    losses = {model: [9 * (each + n % 3 * 0.1) for n in range(ROWS)] for model, each in nats.items()}
    return measure(TaskType.TEXT, TRUTH, said, [], Likelihoods(TOKENS, losses))


def test_a_text_has_no_accuracy() -> None:
    found = texts()
    assert [row.metric for row in found.measured] == [
        *("exactMatch", "precision", "recall", "f1", "chrf", "perplexity"),
    ]
    exact = found.difference("exactMatch", "artifact", "base")
    assert exact is not None
    assert exact.p_value == 1
    chrf_difference = found.difference("chrf", "artifact", "base")
    assert chrf_difference is not None
    assert chrf_difference.better_beyond_chance


@pytest.mark.parametrize(("nats", "worse", "better"), [(0.5, False, False), (0.6, True, False), (0.4, False, True)])
def test_a_lower_perplexity_is_better(nats: float, worse: bool, better: bool) -> None:
    found = texts(nats).difference("perplexity", "artifact", "tuned")
    assert found is not None
    assert (found.worse_beyond_chance, found.better_beyond_chance) == (worse, better)


GOALS = [
    ({"metric": "perplexity", "atMost": "2"}, "Pass", "Met perplexity at most 2: 1.8176"),
    ({"metric": "perplexity", "atMost": "1.7"}, "Fail", "Missed perplexity at most 1.7: 1.8176"),
    ({"metric": "perplexity", "atMost": "1.82"}, "Inconclusive", "Too few test examples for perplexity … would decide"),
    ({"metric": "chrf", "atLeast": "0.7"}, "Pass", "Met chrf at least 0.7"),
    ({"metric": "chrf", "improveOverBase": "0.5"}, "Pass", "Met chrf better than the base model's by 0.5"),
    ({"metric": "exactMatch", "atLeast": "0.5"}, "Fail", "Missed exactMatch at least 0.5: 0.0000"),
]


@pytest.mark.parametrize(("goal", "outcome", "parts"), GOALS)
def test_goals_read_them(goal: dict[str, str], outcome: str, parts: str) -> None:
    [found] = judge(Gates.model_validate({"goals": [goal]}), texts(), TaskType.TEXT)
    assert found.outcome == outcome
    assert_says(found.sentence, *parts.split(" … "))


def test_without_goals_chrf_decides_or_in_an_older_evaluation_f1() -> None:
    """Both find an artifact worse that says less than its base model."""
    said = {"base": TRUTH, "tuned": TRUTH, "artifact": ["no"] * ROWS}
    found = measure(TaskType.TEXT, TRUTH, said, [])
    older = found.model_copy(
        update={
            "measured": [each for each in found.measured if each.metric != "chrf"],
            "differences": [each for each in found.differences if each.metric != "chrf"],
        }
    )
    for measurements, metric in ((found, "chrf"), (older, "f1")):
        [judged] = judge(Gates(), measurements, TaskType.TEXT)
        assert (judged.goal, judged.outcome) == (f"{metric} not worse than the base model's", "Fail")


def test_the_status_is_told_all_of_them() -> None:
    said = {"base": ["no"] * ROWS, "tuned": TRUTH, "artifact": TRUTH}
    losses = {"base": [18.0] * ROWS, "tuned": [9.0] * ROWS, "artifact": [9.0] * ROWS}
    evaluated = Evaluated.of(
        TaskType.TEXT, TRUTH, said, [], probabilities=Probabilities(expected=Likelihoods(TOKENS, losses))
    )
    scalars = evaluated.scalars()
    assert {"exactMatchBase", "chrfTuned", "perplexityArtifact", "f1Artifact"} <= scalars.keys()
    assert not any(name.startswith("accuracy") for name in scalars)
    assert (scalars["chrfArtifact"], scalars["perplexityBase"]) == ("1.0000", f"{exp(2):.4f}")
    assert_says(
        evaluated.summary(), "chrF on 40 examples: base 4.0%", "artifact 100.0%", "Perplexity: base 7.39, tuned 2.72"
    )
    assert "accuracy" not in str(evaluated.metrics())
