"""The CPU stages of a FineTuneJob against a real S3 server: results, reuse, and what users get wrong."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset import Columns, DataFormat, Dataset, Source, Task
from finetune_api.finetunejob import Output
from finetune_api.hashing import canonical_json
from finetune_api.layout import (
    MANIFEST,
    READINESS_PAGE,
    REPORTS_INDEX,
    ChannelPointer,
    channel_object,
    output_folder,
    run_folder,
)
from finetune_api.meta import FINETUNEJOB, ExitCode
from finetune_api.reasons import REMEDIES, Reason, with_remedy
from finetune_api.stages import Outcome, PrepareParams, Stage, StageInput, Upstream
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_jobs.artifacts.folders import fetch_folder, require_manifest
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.base_model import find_base_model
from finetune_jobs.prepare import REPORT, prepare
from finetune_jobs.reading.sources import find_sources, source_digest
from finetune_jobs.resolve import resolve
from finetune_jobs.runtime.runner import Context, StageOutput, execute
from finetune_jobs.store.s3 import Store
from tests.support.forgetful_store import forgetful
from tests.support.seaweedfs import ADMIN, READER, STRANGER, SeaweedFS, User
from tests.support.sentences import assert_says
from tests.support.stages import RUN, Lent, context, pipeline_params, run_process, stage_input
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def rows(count: int = 300, labels: Sequence[str] = "abc") -> bytes:
    """A CSV with ``count`` different examples."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows([f"payment number {n}, at shop {n % 7}", labels[n % len(labels)]] for n in range(count))
    return out.getvalue().encode()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, of which prepare needs the tokenizer."""
    return build_tiny_llama(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def store(s3: SeaweedFS, place: str, base: Path) -> Store:
    """A place with good sources (rows.csv) and a base model (model/)."""
    found = Store.connect(s3.storage, place)
    found.put("rows.csv", rows())
    for file in base.glob("*.json"):
        found.put(f"model/{file.name}", file.read_bytes())
    found.put("model/model.safetensors", b"weights")
    found.put("model/pytorch_model.bin", b"a pickle that nobody takes")
    return found


def given(store: Store, stage: Stage, storage: Storage, **prepare_fields: Any) -> StageInput:
    """Input of resolve or prepare for the sources of ``store``."""
    output = Output(uri=store.uri("out"), name="transactions")
    params = pipeline_params([store.uri("rows.csv")], output, **prepare_fields)
    upstream = (
        Upstream() if stage is Stage.RESOLVE else Upstream(source=_source_digest(store), model=_model_digest(store))
    )
    return stage_input(stage, storage, output, params, upstream, base_model_uri=store.uri("model"))


def _source_digest(store: Store) -> str:
    return source_digest(find_sources(Lent(store), Dataset(sources=[Source(uri=store.uri("rows.csv"))])))


def _model_digest(store: Store) -> str:
    return find_base_model(Lent(store), store.uri("model")).digest


def test_prepare_writes_a_data_set_that_can_be_trained_on(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    store.put("rows.csv", rows() + b'"PAYMENT  number 0, at shop 0",a\nempty,\nclash,a\nclash,b\n')
    result = execute(context(given(store, Stage.PREPARE, s3.storage, instruction="Classify."), tmp_path), prepare)
    folder = store.below(f"out/{output_folder(Stage.PREPARE, result.output_digest)}")
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
    assert report["errors"][0] == {"file": store.uri("rows.csv"), "line": 303, "field": "label", "kind": "empty"}
    assert report["labels"]["a"] == {"test": 10, "train": 80, "validation": 10}
    assert_says(result.message, "3 invalid rows", "(conflictingLabels 2, empty 1)")


@pytest.mark.parametrize(("labels", "named"), [("abA", "'A', 'a'"), (["1", "2", "1.0"], "'1', '1.0'")])
def test_labels_that_hardly_differ_are_named(
    s3: SeaweedFS, store: Store, tmp_path: Path, labels: Sequence[str], named: str
) -> None:
    store.put("rows.csv", rows(labels=labels))
    result = execute(context(given(store, Stage.PREPARE, s3.storage), tmp_path), prepare)
    assert result.message.endswith(f"Labels differ only in letter case, or in how a number is written: {named}.")


def test_the_same_rows_give_the_same_bytes(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    first = execute(context(given(store, Stage.PREPARE, s3.storage), tmp_path), prepare)
    lines = [{"label": label, "text": text} for text, label in list(csv.reader(io.StringIO(rows().decode())))[1:]]
    store.put("rows.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    other = given(store, Stage.PREPARE, s3.storage)
    before = need_prepare(other)
    dataset = before.dataset.model_copy(update={"sources": [Source(uri=store.uri("rows.jsonl"))]})
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
        {file.path: file.sha256 for file in require_manifest(store.below("out"), folder).files}
        for folder in (output_folder(Stage.PREPARE, each.output_digest) for each in (first, second))
    ]
    data = [{name: found for name, found in each.items() if name not in (REPORT, READINESS_PAGE)} for each in files]
    assert data[0] == data[1]  # the reports name the sources
    assert set(data[0]) == {
        *("labels.json", "test.jsonl", "train.jsonl", "train.parquet", "validation.jsonl", "validation.parquet")
    }


def test_another_process_on_another_machine_gives_the_same_bytes(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Seeds of hashes, clocks, locales and threads differ; the reports and the page must not."""
    dirty = [f"Zahlung Nr. {n} an Café {n % 9}: ana{n}@example.org,{'äbc'[n % 3]}" for n in range(60)]
    dirty += [f"{'same words in a long row ' * 3}{n % 20},{'äbc'[n % 2]}" for n in range(60)] + ["empty,", '"open']
    store.put("rows.csv", rows() + "\n".join(dirty).encode())
    asked = given(store, Stage.PREPARE, s3.storage, max_invalid_percent=50)
    machines = [
        {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8", "RAYON_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "2", "TZ": "Asia/Kolkata", "OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3"}
        | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ]
    results = []
    for number, machine in enumerate(machines):
        folder = tmp_path / str(number)
        folder.mkdir()
        fresh = asked.model_copy(update={"reuse": False})
        results.append(run_process(fresh, folder, ADMIN, variables=machine).result)
    assert [each.output_digest for each in results] == [results[0].output_digest] * 2
    assert results[0].message == results[1].message
    assert results[0].scalars["rowsInvalid"] == "2"


def need_prepare(found: StageInput) -> PrepareParams:
    assert found.params.prepare
    return found.params.prepare


def test_work_is_done_once(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    asked = given(store, Stage.PREPARE, s3.storage)
    first = execute(context(asked, tmp_path), prepare)
    again = execute(context(asked, tmp_path), _never)
    assert (first.reused, again.reused, again.reason) == (False, True, Reason.STAGE_REUSED)
    assert (again.output_digest, again.scalars) == (first.output_digest, first.scalars)
    forced = execute(context(asked.model_copy(update={"reuse": False}), tmp_path), prepare)
    assert (forced.reused, forced.output_digest) == (False, first.output_digest)


def test_a_damaged_folder_is_made_again_once_its_remedy_is_followed(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    asked, out = given(store, Stage.PREPARE, s3.storage), store.below("out")
    made = execute(context(asked, tmp_path), prepare)
    folder = output_folder(Stage.PREPARE, made.output_digest)
    out.put(f"{folder}/train.jsonl", b"cut off")
    with pytest.raises(StageError) as caught:
        fetch_folder(out, folder, tmp_path / "damaged")
    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert out.uri(f"{folder}/train.jsonl") in caught.value.message
    assert execute(context(asked, tmp_path), _never).reused, "a rerun alone would take the damaged folder again"
    assert "manifest.json" in REMEDIES[Reason.ARTIFACT_CORRUPT]
    out.delete(f"{folder}/train.jsonl")
    out.delete(f"{folder}/{MANIFEST}")
    again = execute(context(asked, tmp_path), prepare)
    assert (again.reused, again.output_digest) == (False, made.output_digest)
    assert fetch_folder(out, folder, tmp_path / "healed").content_digest() == made.output_digest


def _never(_: Context) -> StageOutput:
    raise AssertionError("the work was done again")


def test_resolve_finds_what_was_done(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    asked = given(store, Stage.RESOLVE, s3.storage)
    before = execute(context(asked, tmp_path), resolve)
    assert (before.found, before.scalars["sourceDigest"]) == ([], _source_digest(store))
    made = execute(context(given(store, Stage.PREPARE, s3.storage), tmp_path), prepare)
    after = execute(context(asked, tmp_path), resolve)
    assert [(f.stage, f.output_digest, f.scalars) for f in after.found] == [
        (Stage.PREPARE, made.output_digest, made.scalars)
    ]
    assert execute(context(asked.model_copy(update={"reuse": False}), tmp_path), resolve).found == []
    store.delete(f"out/{output_folder(Stage.PREPARE, made.output_digest)}/{MANIFEST}")
    assert execute(context(asked, tmp_path), resolve).found == []
    index = f"{run_folder(RUN)}/{REPORTS_INDEX}"
    assert [entry.key for entry in store.list("out/runs")] == [index.removeprefix("runs/")], "no probe is left"
    page = (store.get(f"out/{index}") or b"").decode()
    assert f"{output_folder(Stage.PREPARE, made.output_digest)}/{READINESS_PAGE}" in page, "it was reused: linked here"


def test_resolve_sees_changes_of_the_model_but_not_of_pickles(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    def model_digest() -> str:
        return execute(context(given(store, Stage.RESOLVE, s3.storage), tmp_path), resolve).scalars["modelDigest"]

    first = model_digest()
    store.put("model/pytorch_model.bin", b"another pickle")
    assert model_digest() == first
    store.put("model/model.safetensors", b"weightz")
    assert model_digest() != first


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
    store: Store,
    tmp_path: Path,
    content: bytes,
    fields: dict[str, Any],
    reason: Reason,
    fragments: list[str],
) -> None:
    store.put("rows.csv", content)
    kind = fields.pop("kind", DataFormat.CSV)
    fields["sources"] = [Source(uri=store.uri("rows.csv"), format=kind)]
    with pytest.raises(StageError) as error:
        execute(context(given(store, Stage.PREPARE, s3.storage, **fields), tmp_path), prepare)
    assert error.value.reason is reason
    assert not error.value.retriable
    message = with_remedy(error.value.reason, error.value.message, FINETUNEJOB)
    assert_says(message, *fragments)
    assert message.endswith(REMEDIES[reason])


Spoil = Callable[[Store], None]


def _no_source(store: Store) -> None:
    store.delete("rows.csv")


def _no_model(store: Store) -> None:
    for entry in store.list("model"):
        store.delete(f"model/{entry.key}")


def _no_config(store: Store) -> None:
    store.delete("model/config.json")


def _only_pickles(store: Store) -> None:
    store.delete("model/model.safetensors")


def _other_owner(store: Store) -> None:
    owner = RUN.model_copy(update={"namespace": "team-b", "name": "cards"})
    pointer = ChannelPointer(artifact_digest="0" * 64, owner=owner, updated_at="2026-01-01T00:00:00Z")
    store.put(f"out/{channel_object('transactions')}", canonical_json(pointer))


@pytest.mark.parametrize(
    ("spoil", "reason", "parts"),
    [
        (_no_source, Reason.DATASET_NOT_FOUND, "{place}/rows.csv … does not exist"),
        (_no_model, Reason.MODEL_NOT_FOUND, "{place}/model … no files"),
        (
            _no_config,
            Reason.MODEL_NOT_FOUND,
            "{place}/model … no config.json (found: generation_config.json, model.safetensors, pytorch_model.bin, "
            "tokenizer.json, tokenizer_config.json)",
        ),
        (
            _only_pickles,
            Reason.MODEL_UNSUPPORTED,
            "{place}/model … pickles (pytorch_model.bin), … run code … *.safetensors",
        ),
        (
            _other_owner,
            Reason.OUTPUT_NAME_CONFLICT,
            "{place}/out/channels/transactions/stable.json … FineTuneJob team-b/cards, … team-a/transactions may not … "
            "gone for good, delete this object",
        ),
    ],
)
def test_resolve_refuses_before_anything_is_spent(
    s3: SeaweedFS, store: Store, place: str, tmp_path: Path, spoil: Spoil, reason: Reason, parts: str
) -> None:
    asked = given(store, Stage.RESOLVE, s3.storage)
    spoil(store)
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), resolve)
    assert error.value.reason is reason
    assert_says(error.value.message, *parts.format(place=place).split(" … "))
    assert reason in REMEDIES


@pytest.mark.parametrize(
    ("field", "uri", "parts"),
    [
        ("output", "s3://no-such-bucket/out", "s3://no-such-bucket/out … bucket 'no-such-bucket' … not exist"),
        (
            "source",
            "s3://no-such-bucket/rows.csv",
            "s3://no-such-bucket/rows.csv … bucket 'no-such-bucket' … not exist",
        ),
        (
            "model",
            "s3://no-such-bucket/model",
            "s3://no-such-bucket/model … bucket 'no-such-bucket' … not exist",
        ),
    ],
)
def test_a_missing_bucket_is_named(
    s3: SeaweedFS, store: Store, tmp_path: Path, field: str, uri: str, parts: str
) -> None:
    output = Output(uri=uri if field == "output" else store.uri("out"), name="transactions")
    params = pipeline_params([uri if field == "source" else store.uri("rows.csv")], output)
    model = uri if field == "model" else store.uri("model")
    with pytest.raises(StageError) as error:
        execute(
            context(stage_input(Stage.RESOLVE, s3.storage, output, params, base_model_uri=model), tmp_path), resolve
        )
    assert error.value.reason is Reason.BUCKET_NOT_FOUND
    assert_says(error.value.message, *parts.split(" … "))


def test_resolve_refuses_a_store_that_forgets_conditions(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    with forgetful(s3.endpoint, ADMIN) as endpoint, pytest.raises(StageError) as error:
        execute(context(given(store, Stage.RESOLVE, Storage(endpoint=endpoint)), tmp_path), resolve)
    assert error.value.reason is Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED
    assert list(store.list("out")) == []


def test_resolve_refuses_an_encryption_that_the_store_does_not_give(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    encryption = Encryption(algorithm=EncryptionAlgorithm.KMS, kms_key_id="unknown")
    storage = s3.storage.model_copy(update={"encryption": encryption})
    ended = run_process(given(store, Stage.RESOLVE, storage), tmp_path, ADMIN)
    assert (ended.code, ended.result.reason) == (ExitCode.FATAL, Reason.S3_ENCRYPTION_REFUSED)
    assert "storage.encryption (algorithm aws:kms, kmsKeyId 'unknown')" in ended.result.message
    assert REMEDIES[Reason.S3_ENCRYPTION_REFUSED] not in ended.result.message, "the operator appends it"


@pytest.mark.parametrize(
    ("stage", "user", "message"),
    [
        (Stage.RESOLVE, STRANGER, "reading {place}/out/channels/transactions/stable.json failed: "),
        (Stage.RESOLVE, READER, "conditional put of {place}/out/runs/transactions/0b8a/probe-"),
        (Stage.PREPARE, READER, "writing {place}/out/datasets/"),
    ],
)
def test_wrong_keys_end_the_process_for_good(
    s3: SeaweedFS, store: Store, place: str, tmp_path: Path, stage: Stage, user: User, message: str
) -> None:
    ended = run_process(given(store, stage, s3.storage), tmp_path, user)
    assert (ended.code, ended.result.outcome, ended.result.reason) == (
        ExitCode.FATAL,
        Outcome.FAILED,
        Reason.S3_ACCESS_DENIED,
    )
    assert ended.result.message.startswith(message.format(place=place))
    assert_says(ended.result.message, "the store", "credentials (")
    assert REMEDIES[Reason.S3_ACCESS_DENIED] not in ended.result.message, "the operator appends it"


def test_the_process_writes_a_result_and_json_lines(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    ended = run_process(given(store, Stage.PREPARE, s3.storage), tmp_path, ADMIN)
    assert (ended.code, ended.result.outcome) == (ExitCode.OK, Outcome.SUCCEEDED)
    assert ended.log[-1]["message"] == f"StageSucceeded: {ended.result.message}"
    assert {"time", "level", "stage", "logger", "message"} <= ended.log[0].keys()
    assert ended.result.output_digest.encode() in (store.get(f"out/{run_folder(RUN)}/{REPORTS_INDEX}") or b"")


def test_the_documented_input_runs(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/prepare-data.md").read_text(encoding="utf-8")
    document = json.loads(re.findall(r"```json\n(\{\n.*?)```", page, re.DOTALL)[-1])
    document["storage"]["endpoint"] = s3.endpoint
    document["output"]["uri"] = store.uri("out")
    document["baseModelUri"] = store.uri("model")
    document["params"]["prepare"]["dataset"]["sources"] = [{"uri": store.uri("rows.csv")}]
    ended = run_process(StageInput.model_validate(document), tmp_path, ADMIN)
    assert (ended.code, ended.result.scalars["rowsTrain"]) == (ExitCode.OK, "240")


def test_a_store_that_is_away_is_worth_a_retry(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    ended = run_process(given(store, Stage.PREPARE, Storage(endpoint="http://127.0.0.1:9")), tmp_path, ADMIN)
    assert (ended.code, ended.result.reason) == (ExitCode.RETRIABLE, Reason.S3_UNREACHABLE)
