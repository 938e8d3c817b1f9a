"""Contamination: 13 words in a row of a benchmark."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jobs.splitting.contamination import GRAM, SHORTEST, Reference

pytestmark = pytest.mark.unit

QUESTION = "A train leaves the station at noon and travels at sixty miles an hour for three hours. How far does it go?"


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        (QUESTION, True),
        (f"Please solve this: {QUESTION} Thank you.", True),
        ("a train leaves THE station, at noon, and travels at sixty miles AN", True),
        ("A train leaves the station at noon and travels at sixty miles", False),
        ("A train leaves the station at noon and travels at fifty miles an hour for three hours.", False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row_overlap(text: str, overlap: bool) -> None:
    assert Reference(
        ["Another text of the benchmark, quite as long as the first one is, or longer.", QUESTION]
    ).overlaps(text) is (overlap)


def test_a_short_text_of_the_benchmark_counts_as_a_whole() -> None:
    reference = Reference(["What is the capital of France and of Spain?", "What is the capital of France?", ""])
    assert reference.ignored == 2
    assert reference.overlaps("Tell me: what is the capital of France and of Spain")
    assert not reference.overlaps("What is the capital of France?")
    assert not reference.overlaps("What is the capital of France and of Italy?")


def test_an_empty_benchmark_overlaps_nothing() -> None:
    assert not Reference([]).overlaps(QUESTION)


WORDS = st.lists(st.sampled_from("abc"), max_size=60)


@given(st.lists(WORDS, max_size=4), WORDS)
def test_overlap_is_that_of_the_word_sequences(texts: list[list[str]], example: list[str]) -> None:
    known = {
        tuple(text[begin : begin + size])
        for text in texts
        if len(text) >= SHORTEST
        for size in [min(GRAM, len(text))]
        for begin in range(len(text) - size + 1)
    }
    expected = any(
        tuple(example[begin : begin + size]) in known
        for size in range(SHORTEST, GRAM + 1)
        for begin in range(len(example) - size + 1)
    )
    assert Reference(map(" ".join, texts)).overlaps(" ".join(example)) is expected


@pytest.mark.slow
def test_half_a_million_sequences_raise_no_false_alarm() -> None:
    chance = random.Random(1)
    reference = Reference(" ".join(f"{chance.randrange(100)}" for _ in range(1000)) for _ in range(250))
    assert not any(reference.overlaps(" ".join(f"{chance.randrange(100)}" for _ in range(1000))) for _ in range(250))
