"""Examples as tokens: what is too long is refused, left out, cut or split, and an answer is never cut."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset import Cleaning, Source, Task, TaskType, TooLong
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import Example
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.preparation.spool import BATCH, Spooled, SpoolWriter, read_spool
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.preparation.writing import DatasetWriter
from finetune_jobs.reading.rows import Row
from tests.support.preparing import intake_of, params_of
from tests.support.sentences import assert_says
from tests.support.stages import prepare_params
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

LIMIT = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    base = build_tiny_llama(tmp_path_factory.mktemp("tokens") / "base")
    found = load_tokenizer(base)
    return found, stop_token(base, found)


def encoder(tokenizer: tuple[Any, int], rule: TooLong, limit: int = LIMIT) -> Encoder:
    params = prepare_params(
        sources=[Source(uri="s3://data/rows.jsonl")],
        task=Task(type=TaskType.TEXT),
        cleaning=Cleaning(too_long=rule),
        max_length=limit,
    )
    return Encoder(*tokenizer, params)


def conversation(*turns: str, system: str = "") -> Example:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return Example([{"role": "system", "content": system}, *messages] if system else messages)


LONG = " ".join(f"word{n}" for n in range(60))


def test_what_fits_is_taken_as_a_server_and_a_model_say_it(tokenizer: tuple[Any, int]) -> None:
    found = encoder(tokenizer, TooLong.FAIL)
    [encoded] = found.encode(conversation("why?", "because", system="Be brief."), "a.jsonl line 1")
    [piece] = encoded.pieces
    assert tokenizer[0].decode([i for i in piece.labels if i != chat.IGNORED]) == "because<|im_end|>"
    assert encoded.tokens == len(piece.input_ids) == found.longest
    found.require_short()


def test_code_is_learned_with_its_indentation(tokenizer: tuple[Any, int]) -> None:
    code = "    return [\n        1,\n    ]"
    fields = {"prompt": "  finish it", "completion": f"{code}  \n"}
    taken = intake_of(params_of()).take(Row(1, fields))
    assert isinstance(taken, Example)
    [encoded] = encoder(tokenizer, TooLong.FAIL, 100).encode(taken, "a.jsonl line 1")
    learned = [i for i in encoded.pieces[0].labels if i != chat.IGNORED]
    assert tokenizer[0].decode(learned) == f"{code}<|im_end|>"
    assert taken.messages[0]["content"] == "finish it"


@pytest.mark.parametrize("rule", [TooLong.FAIL, TooLong.DROP])
def test_what_is_too_long_is_left_out_and_named(tokenizer: tuple[Any, int], rule: TooLong) -> None:
    found = encoder(tokenizer, rule)
    assert found.encode(conversation(LONG, "yes"), "a.jsonl line 7") == []
    assert found.over == 1
    if rule is TooLong.DROP:
        found.require_short()
        return
    with pytest.raises(StageError) as caught:
        found.require_short()
    assert caught.value.reason is Reason.DATASET_INVALID
    length = ("spec.training.maxLength", f"{LIMIT} tokens", f"a.jsonl line 7 has {found.longest}")
    remedies = (f"set maxLength to {found.longest}", "spec.dataset.cleaning.tooLong", "Drop", "Truncate", "Split")
    assert_says(caught.value.message, "1 examples", *length, *remedies)


def test_truncation_cuts_the_longest_question_and_nothing_else(tokenizer: tuple[Any, int]) -> None:
    found = encoder(tokenizer, TooLong.TRUNCATE)
    [encoded] = found.encode(conversation("first?", "one", LONG, "the whole answer"), "")
    assert LIMIT - 3 <= encoded.tokens <= LIMIT
    first, one, cut, answer = (m["content"] for m in encoded.example.messages)
    assert (first, one, answer) == ("first?", "one", "the whole answer")
    assert LONG.startswith(cut)
    assert cut


@pytest.mark.parametrize("limit", range(LIMIT, LIMIT + 4))
def test_truncation_cuts_between_characters(tokenizer: tuple[Any, int], limit: int) -> None:
    text = "こんにちは" * 20
    [encoded] = encoder(tokenizer, TooLong.TRUNCATE, limit).encode(conversation(text, "an answer"), "")
    assert text.startswith(encoded.example.messages[0]["content"])


def test_an_answer_that_does_not_fit_is_left_out_rather_than_cut(tokenizer: tuple[Any, int]) -> None:
    for rule in (TooLong.TRUNCATE, TooLong.SPLIT):
        assert encoder(tokenizer, rule).encode(conversation("why?", LONG), "") == []


def test_exchanges_that_do_not_fit_are_left_out_of_a_split_and_counted(tokenizer: tuple[Any, int]) -> None:
    found = encoder(tokenizer, TooLong.SPLIT)
    turns = ["first?", "one", LONG, "two", "third?", "three", "fourth?", LONG]
    pieces = found.encode(conversation(*turns), "")
    assert [[m["content"] for m in piece.example.messages] for piece in pieces] == [
        ["first?", "one"],
        ["third?", "three"],
    ]
    assert found.left_out == 2
    assert found.encode(conversation(LONG, "yes"), "") == []
    assert found.left_out == 2


def test_a_conversation_is_split_between_questions_and_keeps_its_system_message(tokenizer: tuple[Any, int]) -> None:
    turns = [text for n in range(6) for text in (f"question number {n}", f"answer number {n}")]
    found = encoder(tokenizer, TooLong.SPLIT)
    pieces = found.encode(conversation(*turns, system="Be brief."), "")
    assert len(pieces) > 1
    assert all(piece.tokens <= LIMIT for piece in pieces)
    assert all(piece.example.messages[0] == {"role": "system", "content": "Be brief."} for piece in pieces)
    assert [m["content"] for piece in pieces for m in piece.example.messages[1:]] == turns
    assert len({piece.example.group for piece in pieces} - {""}) == 1
    others = found.encode(conversation(*turns[2:], system="Be brief."), "")
    assert {piece.example.group for piece in others}.isdisjoint(piece.example.group for piece in pieces)
    grouped = replace(conversation(*turns), group="customer 7")
    assert {piece.example.group for piece in found.encode(grouped, "")} == {"customer 7"}


def test_a_spool_gives_back_what_it_was_given(tokenizer: tuple[Any, int], tmp_path: Path) -> None:
    found = encoder(tokenizer, TooLong.FAIL)
    [encoded] = found.encode(conversation("why?", "because"), "")
    examples = [Spooled(n, f"text {n} ü".encode(), encoded.pieces * (1 + n % 2)) for n in range(BATCH + 3)]
    with SpoolWriter(tmp_path / "spool") as out:
        for example in examples:
            out.add(example)
    assert list(read_spool(tmp_path / "spool")) == examples


@pytest.mark.parametrize("file", ["train.jsonl", "train.parquet"])
def test_a_full_disk_is_told_as_what_it_is(tmp_path: Path, file: str) -> None:
    (tmp_path / file).symlink_to("/dev/full")
    spooled = Spooled(0, b"x" * 1000, [chat.Encoded(list(range(1000)), list(range(1000)))])
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write(tmp_path, spooled)


def write(folder: Path, spooled: Spooled) -> None:
    with DatasetWriter(folder) as out:
        for _ in range(3000):
            out.add(Part.TRAIN, spooled)
