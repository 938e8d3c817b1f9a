"""The files that sources stand for: in S3 (a real server), on a hub (a small one on loopback), in ConfigMaps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from finetune_api.dataset import ConfigMapKey, DataFormat, Dataset, Source
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading import sources
from finetune_jobs.reading.hub_files import hub_place
from finetune_jobs.reading.sources import SourceFile, find_sources, source_digest
from finetune_jobs.store.s3 import Store
from hack.cluster.layout import free_port
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import unsaid

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "source",
    [
        {"uri": "s3://datasets/transactions.csv"},
        {"uri": "s3://datasets/"},
        {"uri": "s3://data-sets.eu/a/dt=2026-01-31/", "format": "Parquet"},
        {"uri": "s3://datasets/a/*.jsonl.gz", "format": "JSONL"},
        {"uri": "hf://datasets/org/name@main/train.json"},
        {"uri": "hf://datasets/org/na.me@refs/convert/parquet/default/train/*.parquet"},
        {"uri": "hf://datasets/org/name@5e5e5e/"},
        {"configMap": {"name": "rows", "key": "rows.csv"}},
        {"configMap": {"name": "rows.v1", "key": ".rows_v1-a.jsonl"}, "format": "JSON"},
    ],
)
def test_a_source(source: dict[str, Any]) -> None:
    assert Source.model_validate(source).model_dump(mode="json", by_alias=True, exclude_defaults=True) == source


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"uri": "s3://datasets/a.csv", "configMap": {"name": "rows", "key": "rows.csv"}},
        {"uri": "s3://datasets"},
        {"uri": "s3://datasets/*/a.csv"},
        {"uri": "s3://datasets/a.csv?versionId=1"},
        {"uri": "s3://datasets/a b.csv"},
        {"uri": "s3://datasets/[a].csv"},
        {"uri": "https://example.com/a.csv"},
        {"uri": "file:///etc/passwd"},
        {"uri": "hf://datasets/org/name/train.json"},
        {"uri": "hf://datasets/name@main/train.json"},
        {"uri": "hf://org/name@main/train.json"},
        {"uri": "hf://datasets/org/name@main"},
        {"uri": "s3://datasets/a.csv", "format": "XML"},
        {"configMap": {"name": "rows", "key": ".."}},
        {"configMap": {"name": "rows", "key": "a/b"}},
        {"configMap": {"name": "Rows", "key": "rows.csv"}},
    ],
)
def test_no_source(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(source)


OBJECTS = {
    "a.csv": b"a",
    "set/b.csv": b"bb",
    "set/a.jsonl.gz": b"aaa",
    "set/part=1/c.parquet": b"cccc",
    "set/_SUCCESS": b"x",
    "set/_temporary/d.csv": b"x",
    "set/.a.csv.crc": b"x",
    "set/part=1/manifest.json": b"x",
    "set/empty.csv": b"",
    "settings.csv": b"x",
    "rows": b"x",
}


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    found = Store.connect(s3.storage, place)
    for name, content in OBJECTS.items():
        found.put(name, content)
    return found


def names(store: Store, files: list[SourceFile]) -> list[str]:
    return [file.uri.removeprefix(f"{store.uri()}/") for file in files]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "found", "one_of_many"),
    [
        ("a.csv", ["a.csv"], False),
        ("set/_temporary/d.csv", ["set/_temporary/d.csv"], False),
        ("set/empty.csv", ["set/empty.csv"], False),
        ("set/", ["set/a.jsonl.gz", "set/b.csv", "set/part=1/c.parquet"], True),
        ("set/*.csv", ["set/b.csv"], True),
        ("set/*", ["set/a.jsonl.gz", "set/b.csv"], True),
        ("*.csv", ["a.csv", "settings.csv"], True),
    ],
)
def test_files_in_s3_in_the_order_of_their_names(
    store: Store, tmp_path: Path, uri: str, found: list[str], one_of_many: bool
) -> None:
    source = Source(uri=f"{store.uri()}/{uri}")
    files = find_sources(store, Dataset(sources=[source]))
    assert names(store, files) == found
    assert {(file.one_of_many, file.origin.source) for file in files} == {(one_of_many, source)}
    for file, name in zip(files, found, strict=True):
        file.copy_to(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == OBJECTS[name]
        assert file.size == len(OBJECTS[name])


@pytest.mark.slow
def test_formats_and_the_order_of_sources(store: Store) -> None:
    given = [Source(uri=store.uri("rows"), format=DataFormat.JSON), Source(uri=f"{store.uri()}/set/")]
    assert [(file.format, file.origin.source) for file in find_sources(store, Dataset(sources=given))] == [
        (DataFormat.JSON, given[0]),
        (DataFormat.JSONL, given[1]),
        (DataFormat.CSV, given[1]),
        (DataFormat.PARQUET, given[1]),
    ]


@pytest.mark.slow
def test_the_identity_follows_names_order_and_content(store: Store) -> None:
    def identity(*uris: str) -> str:
        return source_digest(find_sources(store, Dataset(sources=[Source(uri=f"{store.uri()}/{uri}") for uri in uris])))

    whole = identity("set/")
    assert whole == identity("set/a.jsonl.gz", "set/b.csv", "set/part=1/c.parquet")
    assert whole != identity("set/b.csv", "set/a.jsonl.gz", "set/part=1/c.parquet")
    store.put("set/_SUCCESS", b"again")
    assert identity("set/") == whole
    store.put("set/b.csv", b"bB")
    assert identity("set/") != whole


NO_FILES = [
    ("none.csv", Reason.DATASET_NOT_FOUND, " does not exist."),
    (
        "none/",
        Reason.DATASET_NOT_FOUND,
        " stands for no file (empty ones, hidden ones and manifest.json do not count).",
    ),
    (
        "set/_*",
        Reason.DATASET_NOT_FOUND,
        " stands for no file (empty ones, hidden ones and manifest.json do not count).",
    ),
    (
        "rows",
        Reason.SPEC_INVALID,
        ": the name ends with none of .csv, .jsonl, .ndjson, .json, .parquet (each also with .gz or .zst). Set "
        "spec.dataset.sources[].format, or leave the file out.",
    ),
    ("set/*", Reason.SPEC_INVALID, " stands for more than 1 files. Join them into fewer, larger ones."),
]


@pytest.mark.slow
@pytest.mark.parametrize(("uri", "reason", "problem"), NO_FILES)
def test_a_source_that_stands_for_no_files(
    store: Store, monkeypatch: pytest.MonkeyPatch, uri: str, reason: Reason, problem: str
) -> None:
    monkeypatch.setattr(sources, "MAX_FILES", 1)
    with pytest.raises(StageError) as error:
        find_sources(store, Dataset(sources=[Source(uri=f"{store.uri()}/{uri}")]))
    assert (error.value.reason, error.value.message) == (reason, f"{store.uri()}/{uri}{problem}")


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["s3://no-such-bucket/a.csv", "s3://no-such-bucket/a/", "s3://no-such-bucket/*.csv"])
def test_a_bucket_that_does_not_exist(store: Store, uri: str) -> None:
    with pytest.raises(StageError, match="bucket 'no-such-bucket' does not exist") as error:
        find_sources(store, Dataset(sources=[Source(uri=uri)]))
    assert error.value.reason is Reason.BUCKET_NOT_FOUND


DELETED = " was deleted while it was being copied."


@pytest.mark.slow
def test_a_file_that_is_deleted_meanwhile(store: Store, tmp_path: Path) -> None:
    [file] = find_sources(store, Dataset(sources=[Source(uri=store.uri("a.csv"))]))
    store.delete("a.csv")
    with pytest.raises(StageError) as error:
        file.copy_to(tmp_path / "copy")
    assert (error.value.reason, error.value.message) == (Reason.DATASET_NOT_FOUND, f"{file.uri}{DELETED}")


NO_KEY = "ConfigMap 'rows' has no key 'rows.csv'."


@pytest.mark.slow
def test_a_config_map_is_read_where_it_is_mounted(store: Store, tmp_path: Path) -> None:
    mounted = tmp_path / "1" / "rows.csv"
    mounted.parent.mkdir()
    mounted.write_bytes(b"text,label\na,b\n")
    given = [Source(uri=store.uri("a.csv")), Source(config_map=ConfigMapKey(name="rows", key="rows.csv"))]
    file = find_sources(store, Dataset(sources=given), tmp_path)[1]
    assert (file.uri, file.size, file.format) == ("configmap://rows/rows.csv", 15, DataFormat.CSV)
    mounted.write_bytes(b"changed")  # as when the object changes: the file is still what was found
    file.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"text,label\na,b\n"
    assert find_sources(store, Dataset(sources=given), tmp_path)[1].tag != file.tag
    mounted.unlink()
    with pytest.raises(StageError) as error:
        find_sources(store, Dataset(sources=given), tmp_path)
    assert (error.value.reason, error.value.message) == (Reason.DATASET_NOT_FOUND, NO_KEY)


HUB = {
    "README.md": b"a card",
    "data/train-0.parquet": b"0" * 2000,
    "data/train-1.parquet": b"1",
    "data/test.jsonl": b"{}",
    "data/.hidden.jsonl": b"{}",
    "data/more/extra.csv": b"a",
}
REPO = "hf://datasets/org/set"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("@main/data/test.jsonl", ["data/test.jsonl"]),
        ("@main/data/train-*.parquet", ["data/train-0.parquet", "data/train-1.parquet"]),
        (f"@{COMMIT}/data/more/", ["data/more/extra.csv"]),
        (
            "@refs/convert/parquet/data/",
            ["data/more/extra.csv", "data/test.jsonl", "data/train-0.parquet", "data/train-1.parquet"],
        ),
    ],
)
def test_files_on_the_hub(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str, found: list[str]
) -> None:
    with fake_hub(monkeypatch, "dataset", "org/set", HUB, revisions=("main", "refs/convert/parquet")):
        files = find_sources(store, Dataset(sources=[Source(uri=REPO + uri)]))
        revision = uri[1:].partition("/data")[0]
        assert [file.uri for file in files] == [f"{REPO}@{revision}/{name}" for name in found]
        for file, name in zip(files, found, strict=True):
            file.copy_to(tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == HUB[name]
            assert (file.size, len(file.tag)) == (len(HUB[name]), 64 if file.size > 1000 else 40)
    assert list(tmp_path.iterdir()) == [tmp_path / "copy"]


@pytest.mark.slow
def test_the_identity_on_the_hub_follows_the_content_and_not_the_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(files: dict[str, bytes]) -> str:
        with fake_hub(monkeypatch, "dataset", "org/set", files):
            return source_digest(find_sources(store, Dataset(sources=[Source(uri=f"{REPO}@main/data/*.parquet")])))

    assert identity(HUB) == identity(HUB | {"README.md": b"another card"})
    assert identity(HUB) != identity(HUB | {"data/train-1.parquet": b"2"})


NOT_ON_THE_HUB = [
    (f"{REPO}@main/a.csv", True, f"{REPO}@main is gated, and the pod has no token that may read it."),
    (
        "hf://datasets/org/none@main/a.csv",
        False,
        "hf://datasets/org/none@main does not exist on the hub, or is private.",
    ),
    (f"{REPO}@v9/a.csv", False, f"{REPO}@v9: the data set has no such revision."),
    (f"{REPO}@main/a.csv", False, f"{REPO}@main/a.csv does not exist."),
    (f"{REPO}@main/no/a.csv", False, f"{REPO}@main/no/a.csv does not exist."),
    (
        f"{REPO}@main/no/*.csv",
        False,
        f"{REPO}@main/no/*.csv stands for no file (empty ones, hidden ones and manifest.json do not count).",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("uri", "gated", "message"), NOT_ON_THE_HUB)
def test_files_that_the_hub_does_not_give(
    store: Store, monkeypatch: pytest.MonkeyPatch, uri: str, gated: bool, message: str
) -> None:
    with fake_hub(monkeypatch, "dataset", "org/set", HUB, gated=gated), pytest.raises(StageError) as error:
        find_sources(store, Dataset(sources=[Source(uri=uri)]))
    assert (error.value.reason, error.value.message) == (Reason.DATASET_NOT_FOUND, message)
    assert not error.value.retriable


GONE = f"{REPO}@main: a file is gone from the hub."


@pytest.mark.slow
def test_a_file_that_leaves_the_hub_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_hub(monkeypatch, "dataset", "org/set", HUB):
        [file] = find_sources(store, Dataset(sources=[Source(uri=f"{REPO}@main/data/test.jsonl")]))
    with fake_hub(monkeypatch, "dataset", "org/set", {"README.md": b"a card"}), pytest.raises(StageError) as error:
        file.copy_to(tmp_path / "copy")
    assert (error.value.reason, error.value.message) == (Reason.DATASET_NOT_FOUND, GONE)


AWAY = "the hub at {hub} cannot be reached ({cause}). Without a way to the hub, copy the data set to S3."


@pytest.mark.slow
def test_a_hub_that_is_away_is_worth_a_retry(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Source(uri=f"{REPO}@main/data/test.jsonl")
    with fake_hub(monkeypatch, "dataset", "org/set", HUB):
        [file] = find_sources(store, Dataset(sources=[source]))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the client's own retries
    actions: dict[str, Callable[[], object]] = {
        "ConnectError": lambda: find_sources(store, Dataset(sources=[source])),
        "LocalEntryNotFoundError": lambda: file.copy_to(tmp_path / "copy"),
    }
    for cause, action in actions.items():
        with pytest.raises(StageError) as error:
            action()
        message = f"{REPO}@main: {AWAY.format(hub=constants.ENDPOINT, cause=cause)}"
        assert (error.value.message, error.value.retriable) == (message, True)


NO_URI = "'hf://datasets/set/a.csv' is not of the form hf://datasets/organisation/name@revision/path."


def test_what_is_no_place_on_the_hub() -> None:
    """The API server refuses it before; a stage may be run without one."""
    with pytest.raises(StageError) as error:
        hub_place("hf://datasets/set/a.csv")
    assert (error.value.reason, error.value.message) == (Reason.SPEC_INVALID, NO_URI)


@pytest.mark.parametrize("module", ["reading.sources", "reading.hub_files", "store.hub"])
def test_every_sentence_about_a_source_is_tested(module: str) -> None:
    tables = [*(problem for *_, problem in NO_FILES), *(message for *_, message in NOT_ON_THE_HUB)]
    assert unsaid(f"finetune_jobs.{module}", [*tables, DELETED, NO_KEY, GONE, f"x: {AWAY}", NO_URI]) == []
