"""Contamination: 13 words in a row of a benchmark."""

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import (
    Cleaning,
    Columns,
    Dataset,
    DatasetSource,
    Markup,
    OnFinding,
    Pii,
    Source,
    SourceRole,
    Task,
    TaskType,
)
from finetune_jobs.examples.validation import Example
from finetune_jobs.preparation.benchmarks import read_benchmarks
from finetune_jobs.preparation.collect import Copy
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.reading.rows import Row
from finetune_jobs.splitting.contamination import GRAM, SHORTEST, Reference
from tests.support.preparing import source_file

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


@pytest.mark.parametrize("role", ["user", "assistant", "tool", "call"])
def test_a_benchmark_is_found_wherever_it_is_said(role: str) -> None:
    """What a tool is called with is learned as an answer is."""
    said = dict.fromkeys(("user", "assistant", "tool", "call"), "Fine.") | {role: f"So: {QUESTION}"}
    call = {"type": "function", "function": {"name": "run", "arguments": {"deep": [{"code": said["call"]}]}}}
    example = Example(
        [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": said["user"]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": said["tool"]},
            {"role": "assistant", "content": said["assistant"]},
        ]
    )
    assert Reference([QUESTION]).overlaps(example.said)


def test_texts_of_a_benchmark_are_cleaned_as_those_of_the_examples_are(tmp_path: Path) -> None:
    text = "Le caf\u00e9 est ferm\u00e9 et la for\u00eat est d\u00e9j\u00e0 l\u00e0 o\u00f9 je la vois encore."
    written = unicodedata.normalize("NFD", text).replace(" ", " <b>\u00ad", 3)
    (tmp_path / "rows").write_text(json.dumps({"question": written}), encoding="utf-8")
    origin = DatasetSource(SourceRole.BENCHMARK, 0, Source(uri="s3://data/rows.jsonl"))
    found = read_benchmarks([Copy(source_file(origin), tmp_path / "rows")], Cleaning(markup=Markup.STRIP))
    assert found
    assert found.reference.overlaps(text)


WITH_PERSON = "Please write to anna.bauer@example.org what a train at sixty miles an hour costs from noon on."
"""More than 13 words, but no 13 in a row without the address."""


@pytest.mark.parametrize("mode", [OnFinding.MASK, OnFinding.REPORT])
def test_a_benchmark_is_found_where_masking_has_changed_its_text(mode: OnFinding) -> None:
    """What is compared with it is what the row said."""
    columns, sources = Columns(input="text", label="label"), [Source(uri="s3://data/rows.jsonl")]
    intake = Intake(Dataset(sources=sources, columns=columns, pii=Pii(mode=mode)), Task(type=TaskType.TEXT))
    taken = intake.take(Row(1, {"text": f"Hello. {WITH_PERSON}", "label": "Sure."}))
    assert isinstance(taken, Example)
    assert ("anna" in taken.said) is (mode is OnFinding.REPORT)
    reference = Reference([WITH_PERSON])
    assert reference.overlaps(taken.said) or reference.overlaps(taken.unmasked)
    assert "anna" not in repr(replace(taken, messages=[])), "no log may show it"


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
