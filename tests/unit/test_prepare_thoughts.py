"""Data sets with thoughts before answers, through the real stage: all rows, some, general data, benchmarks."""

import json
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest

from finetune_api.dataset import Replay, Task, TaskType
from finetune_api.reasons import Reason
from finetune_api.training import Method
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.chat import IGNORED
from finetune_jobs.modelling.token_files import longest_thoughts
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.store.s3 import Store
from tests.support.preparing import WORDS, Prepared, Row, text
from tests.support.reasoning import DEEPSEEK_R1, QWEN3, QWEN3_THINKING
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.tiny_model import CHAT_TEMPLATE, build_tiny_llama, edit_json
from tests.support.training import run_training, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FREE: Final[dict[str, Any]] = {"columns": None, "task": Task(type=TaskType.TEXT), "max_length": 400}


def thinking(s3: SeaweedFS, place: str, folder: Path, template: str) -> Prepared:
    """A place with a base model of this template."""
    base = build_tiny_llama(folder / "base")
    edit_json(base / "tokenizer_config.json", chat_template=template)
    return Prepared(s3, place, base, folder)


def talk(number: int, thoughts: str = "", answer: str = "") -> Row:
    reasoning = {"reasoning_content": thoughts} if thoughts else {}
    said = {"role": "assistant", "content": answer or f"It is {text(number)}."} | reasoning
    return {"messages": [{"role": "user", "content": f"What is {text(number)}?"}, said]}


def learnt(prepared: Prepared, folder: Path, part: str = "train") -> list[str]:
    """What of each example carries loss."""
    (folder / f"{part}.parquet").write_bytes(prepared.file(f"{part}.parquet"))
    tokenizer, table = load_tokenizer(prepared.base), pq.read_table(folder / f"{part}.parquet").to_pylist()
    return [tokenizer.decode([token for token in row["labels"] if token != IGNORED]) for row in table]


@pytest.mark.parametrize(
    ("template", "begin"), [(QWEN3, "<think>\n"), (QWEN3_THINKING, "")], ids=["Qwen3", "Qwen3-Thinking"]
)
def test_rows_with_and_without_thoughts_are_learnt_after_one_prompt(
    s3: SeaweedFS, place: str, tmp_path: Path, template: str, begin: str
) -> None:
    prepared = thinking(s3, place, tmp_path, template)
    given = [talk(n, f"Now {text(n)}" if n % 4 else "") for n in range(200)]
    prepared.run(prepared.put("rows.jsonl", given), **FREE)
    lines = [json.loads(line)["messages"][-1] for line in prepared.file("train.jsonl").splitlines()]
    wanted = [
        f"{begin}{answer.get('reasoning_content', '')}\n</think>\n\n{answer['content']}<|im_end|>" for answer in lines
    ]
    assert learnt(prepared, tmp_path) == wanted
    report = prepared.report["reasoning"]
    assert {part: report[part] for part in ("train", "validation", "test")} == {
        part: sum("reasoning_content" in row for row in prepared.file(f"{part}.jsonl").decode().splitlines())
        for part in ("train", "validation", "test")
    }
    tokenizer = load_tokenizer(prepared.base)
    (tmp_path / "report.json").write_bytes(prepared.file("report.json"))
    assert longest_thoughts(tmp_path) >= max(len(tokenizer(each)["input_ids"]) for each in wanted)
    assert_says(prepared.result.message, "150 examples have thoughts", "50 have none")
    assert "50 have none" in prepared.file("readiness.html").decode()


def test_without_any_thoughts_the_block_is_closed_before_the_answer(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    prepared = thinking(s3, place, tmp_path, QWEN3)
    prepared.run(prepared.put("rows.jsonl", [talk(n) for n in range(200)]), **FREE)
    assert all(each.startswith("It is") for each in learnt(prepared, tmp_path))
    assert "reasoning" not in prepared.report
    (tmp_path / "report.json").write_bytes(prepared.file("report.json"))
    assert longest_thoughts(tmp_path) == 0


@pytest.mark.parametrize(
    ("template", "thoughts", "parts"),
    [
        (DEEPSEEK_R1, "so", "rows.jsonl line 1: … drops reasoning_content … Remove reasoning_content"),
        (DEEPSEEK_R1, "", "rows.jsonl line 1: … <think> … cannot close it"),
        (QWEN3_THINKING, "", "<think> … cannot close it … reasoning_content"),
    ],
)
def test_what_the_template_does_not_write_is_refused(
    s3: SeaweedFS, place: str, tmp_path: Path, template: str, thoughts: str, parts: str
) -> None:
    prepared = thinking(s3, place, tmp_path, template)
    source = prepared.put("rows.jsonl", [talk(n, thoughts) for n in range(200)])
    with pytest.raises(StageError) as caught:
        prepared.run(source, **FREE)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert_says(caught.value.message, *parts.split(" … "))


def test_the_first_row_with_thoughts_is_named(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    prepared = thinking(s3, place, tmp_path, CHAT_TEMPLATE)
    source = prepared.put("rows.jsonl", [talk(n, "so" if n == 2 else "") for n in range(200)])
    with pytest.raises(StageError) as caught:
        prepared.run(source, **FREE)
    assert_says(caught.value.message, "rows.jsonl line 3: ", "drops reasoning_content")


def test_thoughts_of_general_data_alone_are_refused(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    prepared = thinking(s3, place, tmp_path, QWEN3)
    general = prepared.put("general.jsonl", [talk(n) for n in range(5000, 5010)] + [talk(6000, "so")])
    with pytest.raises(StageError) as caught:
        prepared.run(
            prepared.put("rows.jsonl", [talk(n) for n in range(200)]),
            replay=Replay(source=general, percent=5),
            **FREE,
        )
    assert caught.value.reason is Reason.DATASET_INVALID
    parts = "general.jsonl line 11 has reasoning_content … spec.dataset.sources … Remove … spec.dataset.replay … add"
    assert_says(caught.value.message, *parts.split(" … "))


def test_what_a_benchmark_holds_is_found_in_thoughts(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    prepared = thinking(s3, place, tmp_path, QWEN3)
    question = " ".join(f"{word}q" for word in WORDS)
    rows = [talk(n, f"Now {text(n)}") for n in range(200)] + [talk(900, f"As they ask: {question}")]
    benchmark = prepared.put("benchmark.jsonl", [{"question": question}])
    prepared.run(prepared.put("rows.jsonl", rows), benchmarks=[benchmark], **FREE)
    assert prepared.report["filters"] == {"inBenchmark": 1}


def test_a_training_records_that_its_model_thinks(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    base, dataset = build_tiny_llama(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    (dataset / "report.json").write_text(json.dumps({"reasoning": {"longestAnswer": 80}}))
    training = settings(Method.LORA, epochs=1)
    run_training(base, dataset, tmp_path, training, Store.connect(s3.storage, place))
    assert read_tuning(tmp_path / "adapter", Method.LORA) == Tuning.of(training, thoughts=True)
