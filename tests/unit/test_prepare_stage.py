"""The stage prepare against a real S3 server: the data set, the same bytes again, reuse, and what users get wrong."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset import Columns, DataFormat, Source, Task
from finetune_api.layout import (
    MANIFEST,
    READINESS_PAGE,
    output_folder,
)
from finetune_api.meta import FINETUNEJOB
from finetune_api.reasons import REMEDIES, Reason, with_remedy
from finetune_api.stages import Stage, Upstream
from finetune_jobs.artifacts.folders import fetch_folder, require_manifest
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.token_files import REPORT
from finetune_jobs.prepare import prepare
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.first_stages import given, need_prepare, never, rows
from tests.support.forked import HASH_SEED
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context, run_process

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_prepare_writes_a_data_set_that_can_be_trained_on(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    stocked.put("rows.csv", rows() + b'"PAYMENT  number 0, at shop 0",a\nempty,\nclash,a\nclash,b\n')
    result = execute(context(given(stocked, Stage.PREPARE, s3.storage, instruction="Classify."), tmp_path), prepare)
    folder = stocked.below(f"out/{output_folder(Stage.PREPARE, result.output_digest)}")
    assert result.scalars == {
        "rowsRead": "304",
        "rowsInvalid": "3",
        "rowsDropped": "0",
        "rowsDuplicates": "1",
        "rowsTrain": "240",
        "rowsValidation": "30",
        "rowsTest": "30",
        "rowsTestMasked": "0",
        "answersMasked": "0",
        "labels": "3",
        "tokens": result.scalars["tokens"],
        "longest": result.scalars["longest"],
        "readiness": "8 passed, 4 warnings (examples, anonymised, split, baseline), 0 failed",
    }
    examples = [
        json.loads(line)["messages"]
        for part in ("train", "validation", "test")
        for line in (folder.get(f"{part}.jsonl") or b"").decode().splitlines()
    ]
    assert len({e[1]["content"] for e in examples}) == len(examples) == 300
    assert all([m["role"] for m in e] == ["system", "user", "assistant"] for e in examples)
    assert json.loads(folder.get("labels.json") or b"") == ["a", "b", "c"]
    report = json.loads(folder.get("report.json") or b"")
    assert report["filters"] == {"conflictingLabels": 2, "empty": 1}
    assert report["errors"][0] == {"file": stocked.uri("rows.csv"), "line": 303, "field": "label", "kind": "empty"}
    assert report["labels"]["a"] == {"test": 10, "train": 80, "validation": 10}
    assert_says(result.message, "3 invalid rows", "(conflictingLabels 2, empty 1)")


@pytest.mark.parametrize(("labels", "named"), [("abA", "'A', 'a'"), (["1", "2", "1.0"], "'1', '1.0'")])
def test_labels_that_hardly_differ_are_named(
    s3: SeaweedFS, stocked: Store, tmp_path: Path, labels: Sequence[str], named: str
) -> None:
    stocked.put("rows.csv", rows(labels=labels))
    result = execute(context(given(stocked, Stage.PREPARE, s3.storage), tmp_path), prepare)
    assert result.message.endswith(f"Labels differ only in letter case, or in how a number is written: {named}.")


def test_the_same_rows_give_the_same_bytes(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    first = execute(context(given(stocked, Stage.PREPARE, s3.storage), tmp_path), prepare)
    lines = [{"label": label, "text": text} for text, label in list(csv.reader(io.StringIO(rows().decode())))[1:]]
    stocked.put("rows.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    other = given(stocked, Stage.PREPARE, s3.storage)
    before = need_prepare(other)
    dataset = before.dataset.model_copy(update={"sources": [Source(uri=stocked.uri("rows.jsonl"))]})
    prepare_params = before.model_copy(update={"dataset": dataset})
    other = other.model_copy(
        update={
            "input_key": "1" * 64,
            "params": other.params.model_copy(update={"prepare": prepare_params}),
            "upstream": Upstream(),
        }
    )
    second = execute(context(other, tmp_path), prepare)
    files = [
        {file.path: file.sha256 for file in require_manifest(stocked.below("out"), folder).files}
        for folder in (output_folder(Stage.PREPARE, each.output_digest) for each in (first, second))
    ]
    data = [{name: found for name, found in each.items() if name not in (REPORT, READINESS_PAGE)} for each in files]
    assert data[0] == data[1]  # the reports name the sources
    assert set(data[0]) == {
        *("labels.json", "test.jsonl", "train.jsonl", "train.parquet", "validation.jsonl", "validation.parquet")
    }


def test_another_process_on_another_machine_gives_the_same_bytes(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    """Seeds of hashes, clocks, locales and threads differ; the reports and the page must not."""
    dirty = [f"Zahlung Nr. {n} an Café {n % 9}: ana{n}@example.org,{'äbc'[n % 3]}" for n in range(60)]
    dirty += [f"{'same words in a long row ' * 3}{n % 20},{'äbc'[n % 2]}" for n in range(60)] + ["empty,", '"open']
    stocked.put("rows.csv", rows() + "\n".join(dirty).encode())
    asked = given(stocked, Stage.PREPARE, s3.storage, max_invalid_percent=50)
    asked = asked.model_copy(update={"reuse": False})
    one = {"TZ": "UTC", "RAYON_NUM_THREADS": "1"}  # HASH_SEED, and the locale of the tests
    other = {"PYTHONHASHSEED": "2", "TZ": "Asia/Kolkata", "OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3"}
    other |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert other["PYTHONHASHSEED"] != HASH_SEED
    results = []
    for machine, fresh in ((one, False), (other, True)):
        folder = tmp_path / machine["RAYON_NUM_THREADS"]
        folder.mkdir()
        results.append(run_process(asked, folder, ADMIN, variables=machine, fresh=fresh).result)
    assert [each.output_digest for each in results] == [results[0].output_digest] * 2
    assert results[0].message == results[1].message
    assert results[0].scalars["rowsInvalid"] == "2"


def test_work_is_done_once(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    asked = given(stocked, Stage.PREPARE, s3.storage)
    first = execute(context(asked, tmp_path), prepare)
    again = execute(context(asked, tmp_path), never)
    assert (first.reused, again.reused, again.reason) == (False, True, Reason.STAGE_REUSED)
    assert (again.output_digest, again.scalars) == (first.output_digest, first.scalars)
    forced = execute(context(asked.model_copy(update={"reuse": False}), tmp_path), prepare)
    assert (forced.reused, forced.output_digest) == (False, first.output_digest)


def test_a_damaged_folder_is_made_again_once_its_remedy_is_followed(
    s3: SeaweedFS, stocked: Store, tmp_path: Path
) -> None:
    asked, out = given(stocked, Stage.PREPARE, s3.storage), stocked.below("out")
    made = execute(context(asked, tmp_path), prepare)
    folder = output_folder(Stage.PREPARE, made.output_digest)
    out.put(f"{folder}/train.jsonl", b"cut off")
    with pytest.raises(StageError) as caught:
        fetch_folder(out, folder, tmp_path / "damaged")
    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert out.uri(f"{folder}/train.jsonl") in caught.value.message
    assert execute(context(asked, tmp_path), never).reused, "a rerun alone would take the damaged folder again"
    assert "manifest.json" in REMEDIES[Reason.ARTIFACT_CORRUPT]
    out.delete(f"{folder}/train.jsonl")
    out.delete(f"{folder}/{MANIFEST}")
    again = execute(context(asked, tmp_path), prepare)
    assert (again.reused, again.output_digest) == (False, made.output_digest)
    assert fetch_folder(out, folder, tmp_path / "healed").content_digest() == made.output_digest


@pytest.mark.parametrize(
    ("content", "fields", "reason", "fragments"),
    [
        (
            b"text,lable\na,b\n",
            {},
            Reason.DATASET_INVALID,
            ["rows.csv: column 'label' does not exist; the file has 'text', 'lable'. Did you mean 'lable'?"],
        ),
        (b"", {}, Reason.DATASET_INVALID, ["rows.csv: the file is empty"]),
        (
            rows() + b"bad \xff,a\n" * 20,
            {},
            Reason.DATASET_INVALID,
            [
                "20 of 320",
                "5 %",
                "rows.csv line 302",
                "UTF-8",
                "('0xff')",
                "Fix",
                "raise spec.dataset.maxInvalidPercent. ",
            ],
        ),
        (
            b'{"text": "x" "label": "a"}\n',
            {"kind": DataFormat.JSONL},
            Reason.DATASET_INVALID,
            ["1 of 1", "rows.csv line 1", "JSON", "column 14: Expecting ',' delimiter"],
        ),
        (
            rows(labels="a"),
            {},
            Reason.DATASET_INVALID,
            ["300 examples", "'a'", "two labels"],
        ),
        (
            rows() + b"some text,Fod\n" * 20,
            {"task": Task(labels=["a", "b", "c", "Food"])},
            Reason.DATASET_INVALID,
            ["rows.csv line 302, label: is not one of spec.task.labels ('Fod'). Did you mean 'Food'?"],
        ),
        (
            rows(),
            {"columns": Columns(input="label", label="text")},
            Reason.DATASET_INVALID,
            ["300 of 300", "('payment number 0, at shop 0')"],
        ),
        (
            b"text,label\n" + b"".join(b"payment %d,reason %d\n" % (n, n) for n in range(200)),
            {},
            Reason.DATASET_INVALID,
            ["200 examples", "200 different labels", "('reason 0', 'reason 1', 'reason 10', …)"],
        ),
        (rows(50), {}, Reason.DATASET_TOO_SMALL, ["5 for validation", "5 for test", "each part", "10 examples"]),
        (
            rows(),
            {"columns": None},
            Reason.DATASET_INVALID,
            ["rows.csv:", "CSV", "spec.dataset.columns", "'text', 'label'"],
        ),
    ],
)
def test_bad_data_is_named_with_place_value_and_remedy(
    s3: SeaweedFS,
    stocked: Store,
    tmp_path: Path,
    content: bytes,
    fields: dict[str, Any],
    reason: Reason,
    fragments: list[str],
) -> None:
    stocked.put("rows.csv", content)
    kind = fields.pop("kind", DataFormat.CSV)
    fields["sources"] = [Source(uri=stocked.uri("rows.csv"), format=kind)]
    with pytest.raises(StageError) as error:
        execute(context(given(stocked, Stage.PREPARE, s3.storage, **fields), tmp_path), prepare)
    assert error.value.reason is reason
    assert not error.value.retriable
    message = with_remedy(error.value.reason, error.value.message, FINETUNEJOB)
    assert_says(message, *fragments)
    assert message.endswith(REMEDIES[reason])
