"""What sources are read for, through the real stage: weights, general data that is mixed in, benchmarks."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetune_api.dataset import (
    Replay,
    SourcePart,
)
from finetune_jobs.base.errors import StageError
from tests.support.preparing import WORDS, Prepared, Row, rows, text
from tests.support.sentences import Saying, assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_weights_repeat_and_thin_out_training_examples_only(prepared: Prepared, tmp_path: Path) -> None:
    often = prepared.put("often.jsonl", rows(100), weight="2")
    seldom = prepared.put("seldom.jsonl", rows(100, 900), weight="0.5")
    scalars = prepared.run(often, seldom).scalars
    (tmp_path / "train.parquet").write_bytes(prepared.file("train.parquet"))
    trained = prepared.texts("train")
    twice = [each for each in trained if each in {row["text"] for row in rows(100)}]
    half = len(trained) - len(twice)
    assert 38 <= half <= 42
    assert pq.read_table(tmp_path / "train.parquet").num_rows == 2 * len(twice) + half == int(scalars["rowsTrain"])
    assert (scalars["rowsValidation"], scalars["rowsTest"]) == ("20", "20")


def test_general_data_is_mixed_in_unless_it_is_in_the_test(prepared: Prepared) -> None:
    general = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5100)]
    general += [general[0], {"text": "of no form"}, {"prompt": "word " * 5000, "completion": "too long"}]
    source = prepared.put("own.jsonl", rows())
    replay = Replay(source=prepared.put("general.jsonl", general), percent=20)
    scalars = prepared.run(source, replay=replay, instruction="Classify.").scalars
    assert scalars["rowsTrain"] == "200"
    mixed = [json.loads(line)["messages"] for line in prepared.file("train.jsonl").splitlines()][-40:]
    assert all([m["role"] for m in messages] == ["user", "assistant"] for messages in mixed)
    assert prepared.report["rows"]["added"] == 40
    assert prepared.report["replay"] == {
        "read": 103,
        "usable": 100,
        "chosen": 40,
        "filters": {"duplicates": 1, "missingMessages": 1, "tooLong": 1},
    }
    message = prepared.result.message.rpartition("test examples.")[2]
    dropped = "duplicates 1, missingMessages 1, tooLong 1"
    assert_says(message, "100 of 103", "general data", "dropped", dropped, "40 mixed in")


def test_general_data_is_a_share_of_what_is_trained_repetitions_included(prepared: Prepared) -> None:
    general = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5100)]
    replay = Replay(source=prepared.put("general.jsonl", general), percent=20)
    scalars = prepared.run(prepared.put("own.jsonl", rows(100), weight="2"), replay=replay).scalars
    assert scalars["rowsTrain"] == "200"
    assert prepared.report["replay"]["chosen"] == 40


def test_what_a_benchmark_asks_is_not_trained(prepared: Prepared) -> None:
    question = " ".join(f"{word}q" for word in WORDS)
    benchmark = prepared.put("benchmark.jsonl", [{"question": question, "answer": "42"}])
    source = prepared.put("own.jsonl", [*rows(), {"text": f"As they ask: {question}!", "label": "a"}])
    prepared.run(source, benchmarks=[benchmark])
    assert prepared.report["filters"] == {"inBenchmark": 1}


def test_what_a_benchmark_asks_is_not_trained_with_a_pseudonym_in_it(prepared: Prepared) -> None:
    """Rows are masked and benchmarks are not: a text with an address in every 13 words was trained."""
    question = f"{' '.join(WORDS[:6])} anna@example.org {' '.join(WORDS[6:12])}"
    benchmark = prepared.put("benchmark.jsonl", [{"question": question}])
    prepared.run(prepared.put("own.jsonl", [*rows(), {"text": question, "label": "a"}]), benchmarks=[benchmark])
    assert prepared.report["filters"] == {"inBenchmark": 1}


def test_a_benchmark_as_your_own_test_stays_whole(prepared: Prepared) -> None:
    """Training and validation hold none of it, general data neither; that nobody learns from, the test may."""
    questions = [" ".join(f"{word}q{n}" for word in WORDS) for n in range(30)]
    benchmark = prepared.put("benchmark.jsonl", [{"question": question} for question in questions])
    tested = [{"text": question, "label": "ab"[n % 2]} for n, question in enumerate(questions)]
    sources = [
        prepared.put("own.jsonl", [*rows(), *tested[:2], tested[0]]),
        prepared.put("validation.jsonl", [*rows(30, 900), tested[2]], part=SourcePart.VALIDATION),
        prepared.put("test.jsonl", tested, part=SourcePart.TEST),
    ]
    general = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5010)]
    general += [{"prompt": f"Say {question}", "completion": "No."} for question in questions]
    replay = Replay(source=prepared.put("general.jsonl", general), percent=50)
    prepared.run(*sources, benchmarks=[benchmark], replay=replay)
    assert prepared.texts("test") == questions
    assert not any(
        question in each for part in ("train", "validation") for each in prepared.texts(part) for question in questions
    )
    assert prepared.report["filters"] == {"inBenchmark": 4}
    assert (prepared.report["rows"]["duplicates"], prepared.report["rows"]["added"]) == (0, 10)
    assert prepared.report["benchmarks"] == {"read": 30, "filters": {}, "ownTest": 30}
    assert prepared.report["replay"]["filters"] == {"inBenchmark": 30}
    leakage = next(item for item in prepared.report["readiness"] if item["name"] == "leakage")
    assert leakage["evidence"].endswith("dropped. 30 examples of your own test do; they stay in the test part.")


def test_invalid_rows_beside_the_sources_are_told(prepared: Prepared) -> None:
    general: list[Row] = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5100)]
    replay = Replay(source=prepared.put("general.jsonl", [*general, {"prompt": "no answer"}]))
    benchmark = prepared.put("benchmark.jsonl", [{"question": "What is it?"}])
    prepared.store.put("benchmark.jsonl", (prepared.store.get("benchmark.jsonl") or b"") + b"{\n")
    source = prepared.put("own.jsonl", rows())
    result = prepared.run(source, replay=replay, benchmarks=[benchmark])
    report = prepared.report
    assert [(each["file"], each["line"]) for each in report["errors"]] == [(replay.source.uri, 101), (benchmark.uri, 2)]
    assert report["replay"]["filters"] == {"missingMessages": 1}
    assert report["benchmarks"]["filters"] == {"malformedJson": 1}
    assert report["rows"]["invalid"] == 0
    assert report["warnings"] == [
        Saying("1 of 101", "spec.dataset.replay", "invalid", "dropped", "(missingMessages 1)"),
        Saying("1 of 2", "spec.dataset.benchmarks", "invalid", "dropped", "(malformedJson 1)"),
    ]
    assert f"{replay.source.uri} line 101" in result.message
    assert f"{benchmark.uri} line 2" in result.message
    states = {item["name"]: item["state"] for item in report["readiness"]}
    assert (states["structured"], states["leakage"]) == ("Warn", "Warn")
    assert b"general.<wbr>jsonl" in prepared.file("readiness.html")
    with pytest.raises(StageError, match=r"1 of 101 .* 0 %"):
        prepared.run(source, replay=replay, max_invalid_percent=0)
