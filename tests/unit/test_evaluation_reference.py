"""What is recorded of an artifact to prove its weights: which texts, how long, and in which order."""

import random
from math import inf, nan
from typing import Any

import pytest

from finetune_jobs.evaluation.disturbance import Disturbed
from finetune_jobs.evaluation.passages import CANDIDATES, LONG, LONG_TOKENS, WORDS, Passage, make_passages
from finetune_jobs.evaluation.reference import SHORT, make_references, to_record
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.verification.tolerance import measured_tolerance
from tests.support.sentences import assert_says
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import row

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch

EXAMPLES = [Conversation(row(f"refund of parcel {n}", f"label {n}")["messages"], []) for n in range(40)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """A tokenizer, and the token that ends an answer."""
    base = build_tiny_llama(tmp_path_factory.mktemp("models") / "base")
    tokenizer = load_tokenizer(base)
    return tokenizer, stop_token(base, tokenizer)


def test_two_texts_are_a_thousand_tokens_long_and_end_with_an_example(tokens: tuple[Any, int]) -> None:
    """Only there does a rotary base show that is nearly right; runtimes take 1,024 tokens by default."""
    passages = make_passages(*_asked(tokens), 8192)
    short, long = ([each for each in passages if each.long is length] for length in (False, True))
    assert (len(short), len(long)) == (CANDIDATES, LONG) == (16, 2)
    for each in long:
        assert 1000 <= len(each.ids) <= LONG_TOKENS
        assert any(each.text.rstrip().endswith(other.text[-40:].rstrip()) for other in short), "as it was trained"
    own, words = (each.text for each in long)
    assert "refund of parcel" in own[:200]
    assert "able about above absent" in words[:200], "not of the job's examples, which may be all alike"


def test_one_example_ends_both_long_texts(tokens: tuple[Any, int]) -> None:
    """A small test split still shows positions."""
    tokenizer, stop = tokens
    long = [each for each in make_passages(tokenizer, EXAMPLES[:1], stop, 8192) if each.long]
    assert len(long) == LONG
    assert all(EXAMPLES[0].messages[-1]["content"] in each.text[-200:] for each in long)


@pytest.mark.parametrize("longest", [40, 512, 1008])
def test_no_text_is_longer_than_the_model_takes(tokens: tuple[Any, int], longest: int) -> None:
    passages = make_passages(*_asked(tokens), longest)
    assert all(len(each.ids) <= longest for each in passages)
    assert sum(each.long for each in passages) == (0 if longest < 100 else LONG)


def test_the_list_of_words_is_long_enough_not_to_begin_again() -> None:
    """However few tokens a word takes. What repeats itself shows no positions."""
    words = WORDS.read_text(encoding="utf-8").split()
    assert len(words) > LONG_TOKENS
    assert words == sorted(set(words))


def test_the_order_of_the_examples_does_not_count(tokens: tuple[Any, int]) -> None:
    other = random.Random(5).sample(EXAMPLES, len(EXAMPLES))
    tokenizer, stop = tokens
    assert make_passages(tokenizer, other, stop, 2048) == make_passages(tokenizer, EXAMPLES, stop, 2048)


def test_what_differs_most_is_recorded_first_and_what_has_no_numbers_is_not() -> None:
    passages = [Passage(f"text {n}", [1, 2, 3], long=n >= 18) for n in range(20)]
    base = [[-1.0, -1.0]] * 20
    artifact = [[-1.0 - n, -1.0] for n in range(20)]
    artifact[17], artifact[18] = [nan, -1.0], [-inf, -1.0]
    chosen = to_record(passages, base, artifact)
    assert chosen == [*range(16, -1, -1), 19], "the short ones by how far apart they are, then the long ones"
    disturbed = {number: Disturbed([-1.0, -1.0], [-2.0, -1.0], 0.1) for number in chosen}
    disturbed[3] = Disturbed([], [], 0.1)  # nothing about positions, for which alone it would be there
    disturbed[2] = Disturbed([-1.0, nan], [-2.0, -1.0], 0.1)
    found = make_references(passages, base, artifact, disturbed)
    weights = [each for each in found if not each.positions_only]
    assert [each.text for each in weights] == [f"text {n}" for n in (*range(16, 16 - SHORT, -1), 19)]
    assert [each.text for each in found if each.positions_only] == [f"text {n}" for n in (8, 7, 6, 5, 4, 1, 0)]
    assert (found[0].base, found[0].artifact) == (base[16], artifact[16])


def test_what_a_change_costs_of_numbers_costs_no_text_that_has_them(caplog: pytest.LogCaptureFixture) -> None:
    """The artifact itself computes them: its record stays, but for what the change was to show."""
    passages = [Passage("short", [1, 2, 3]), Passage("other", [1, 2, 4]), Passage("long", [1, 2, 5], long=True)]
    base, artifact = [[-1.0, -1.0]] * 3, [[-2.0, -1.0]] * 3
    disturbed = {
        0: Disturbed([-1.0, -1.0], [-2.0, -1.0], nan),
        1: Disturbed([-1.0, -1.0], [-inf, -1.0], 0.1),
        2: Disturbed([nan, -1.0], [-2.0, -1.0], None),
    }
    with caplog.at_level("WARNING"):
        short, other, long = make_references(passages, base, artifact, disturbed)
    assert (short.turned, short.noise) == ([-2.0, -1.0], None)
    assert (other.straight, other.turned, other.noise) == ([-1.0, -1.0], [], 0.1)
    assert (long.straight, long.turned, long.long) == ([], [], True)
    said = [each.getMessage() for each in caplog.records]
    assert_says(said[0], "texts/0 shows no noise", "no numbers", "its format usually allows", "maxDistance")
    assert_says(said[1], "texts/1 shows no wrong positions", "no numbers")
    assert len(said) == 3
    assert measured_tolerance([short, other, long], 0.25) == 0.25
    assert measured_tolerance([other, long], 0.25) == 0.5


def _asked(tokens: tuple[Any, int]) -> tuple[Any, list[Conversation], int]:
    tokenizer, stop = tokens
    return tokenizer, EXAMPLES, stop
