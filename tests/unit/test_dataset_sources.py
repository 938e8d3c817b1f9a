"""The files that sources stand for: in S3 (a real server), on a hub (a small one on loopback), in ConfigMaps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from finetune_api.dataset import DataFormat, Dataset, Source
from finetune_api.reasons import Reason
from finetune_api.references import ConfigMapKeyRef, SecretKeyRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading import sources
from finetune_jobs.reading.hub_files import hub_place
from finetune_jobs.reading.sources import SourceFile, find_sources, source_digest
from finetune_jobs.store.s3 import Store
from tests.support.closed_port import closed_port
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says, unsaid
from tests.support.stages import Lent

pytestmark = pytest.mark.unit

REFUSED = "s3://data/sources-that-are-refused"


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
        {"configMapKeyRef": {"name": "rows", "key": "rows.csv"}},
        {"configMapKeyRef": {"name": "rows.v1", "key": ".rows_v1-a.jsonl"}, "format": "JSON"},
    ],
)
def test_a_source(source: dict[str, Any]) -> None:
    assert Source.model_validate(source).model_dump(mode="json", by_alias=True, exclude_defaults=True) == source


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"uri": "s3://datasets/a.csv", "configMapKeyRef": {"name": "rows", "key": "rows.csv"}},
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
        {"configMapKeyRef": {"name": "rows", "key": ".."}},
        {"configMapKeyRef": {"name": "rows", "key": "a/b"}},
        {"configMapKeyRef": {"name": "Rows", "key": "rows.csv"}},
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
    files = find_sources(Lent(store), Dataset(sources=[source]))
    assert names(store, files) == found
    assert {(file.one_of_many, file.origin.source) for file in files} == {(one_of_many, source)}
    for file, name in zip(files, found, strict=True):
        file.copy_to(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == OBJECTS[name]
        assert file.size == len(OBJECTS[name])


@pytest.mark.slow
def test_formats_and_the_order_of_sources(store: Store) -> None:
    given = [Source(uri=store.uri("rows"), format=DataFormat.JSON), Source(uri=f"{store.uri()}/set/")]
    assert [(file.format, file.origin.source) for file in find_sources(Lent(store), Dataset(sources=given))] == [
        (DataFormat.JSON, given[0]),
        (DataFormat.JSONL, given[1]),
        (DataFormat.CSV, given[1]),
        (DataFormat.PARQUET, given[1]),
    ]


@pytest.mark.slow
def test_the_identity_follows_names_order_and_content(store: Store) -> None:
    def identity(*uris: str) -> str:
        return source_digest(
            find_sources(Lent(store), Dataset(sources=[Source(uri=f"{store.uri()}/{uri}") for uri in uris]))
        )

    whole = identity("set/")
    assert whole == identity("set/a.jsonl.gz", "set/b.csv", "set/part=1/c.parquet")
    assert whole != identity("set/b.csv", "set/a.jsonl.gz", "set/part=1/c.parquet")
    store.put("set/_SUCCESS", b"again")
    assert identity("set/") == whole
    store.put("set/b.csv", b"bB")
    assert identity("set/") != whole


NO_FILE = ("no file", "empty", "hidden", "manifest.json")
NO_FILES: list[tuple[str, Reason, tuple[str, ...]]] = [
    ("none.csv", Reason.DATASET_NOT_FOUND, ("does not exist.",)),
    ("set", Reason.DATASET_NOT_FOUND, ("does not exist", "a folder ends with /")),
    ("none/", Reason.DATASET_NOT_FOUND, NO_FILE),
    ("set/_*", Reason.DATASET_NOT_FOUND, NO_FILE),
    (
        "rows",
        Reason.SPEC_INVALID,
        (
            *(".csv, .jsonl, .ndjson, .json, .parquet", ".gz", ".zst"),
            *("spec.dataset.sources[].format", "remove the file"),
        ),
    ),
    ("set/*", Reason.SPEC_INVALID, ("more than 1", "Merge", "larger files")),
]
"""Where no files are found, and the parts of what is said of it."""


@pytest.mark.slow
@pytest.mark.parametrize(("uri", "reason", "problem"), NO_FILES)
def test_a_source_that_stands_for_no_files(
    refused: dict[str, StageError], uri: str, reason: Reason, problem: tuple[str, ...]
) -> None:
    error = refused[uri]
    assert error.reason is reason
    assert error.message.startswith(f"{REFUSED}/{uri}")
    assert_says(error.message, f"{REFUSED}/{uri}", *problem)


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["s3://no-such-bucket/a.csv", "s3://no-such-bucket/a/", "s3://no-such-bucket/*.csv"])
def test_a_bucket_that_does_not_exist(store: Store, uri: str) -> None:
    with pytest.raises(StageError, match="bucket 'no-such-bucket' does not exist") as error:
        find_sources(Lent(store), Dataset(sources=[Source(uri=uri)]))
    assert error.value.reason is Reason.BUCKET_NOT_FOUND


def test_a_file_that_is_deleted_meanwhile(refused: dict[str, StageError]) -> None:
    assert refused["deleted"].reason is Reason.DATASET_NOT_FOUND
    assert_says(refused["deleted"].message, f"{REFUSED}/a.csv", "deleted", "copied")


@pytest.mark.slow
def test_a_config_map_is_read_where_it_is_mounted(store: Store, tmp_path: Path) -> None:
    mounted = tmp_path / "1" / "rows.csv"
    mounted.parent.mkdir()
    mounted.write_bytes(b"text,label\na,b\n")
    given = [Source(uri=store.uri("a.csv")), Source(config_map_key_ref=ConfigMapKeyRef(name="rows", key="rows.csv"))]
    file = find_sources(Lent(store), Dataset(sources=given), tmp_path)[1]
    assert (file.uri, file.size, file.format) == ("configmap://rows/rows.csv", 15, DataFormat.CSV)
    mounted.write_bytes(b"changed")  # as when the object changes: the file is still what was found
    file.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"text,label\na,b\n"
    assert find_sources(Lent(store), Dataset(sources=given), tmp_path)[1].tag != file.tag


def test_a_config_map_without_the_key(refused: dict[str, StageError]) -> None:
    assert refused["no key"].reason is Reason.DATASET_NOT_FOUND
    assert_says(refused["no key"].message, "ConfigMap 'rows'", "no key", "'rows.csv'")


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
        files = find_sources(Lent(store), Dataset(sources=[Source(uri=REPO + uri)]))
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
            return source_digest(
                find_sources(Lent(store), Dataset(sources=[Source(uri=f"{REPO}@main/data/*.parquet")]))
            )

    assert identity(HUB) == identity(HUB | {"README.md": b"another card"})
    assert identity(HUB) != identity(HUB | {"data/train-1.parquet": b"2"})


NOT_ON_THE_HUB: list[tuple[str, bool, tuple[str, ...]]] = [
    (f"{REPO}@main/a.csv", True, (f"{REPO}@main", "gated", "no token")),
    ("hf://datasets/org/none@main/a.csv", False, ("hf://datasets/org/none@main", "does not exist", "private")),
    (f"{REPO}@v9/a.csv", False, (f"{REPO}@v9:", "revision")),
    (f"{REPO}@main/a.csv", False, (f"{REPO}@main/a.csv", "does not exist")),
    (f"{REPO}@main/no/a.csv", False, (f"{REPO}@main/no/a.csv", "does not exist")),
    (f"{REPO}@main/no/*.csv", False, (f"{REPO}@main/no/*.csv", *NO_FILE)),
]
"""What the hub does not give, whether its repository is gated, and the parts of what is said of it."""


TOKENS: list[tuple[str, str, Reason, tuple[str, ...]]] = [
    (
        "",
        f"{REPO}@main/a.csv",
        Reason.SECRET_MISSING,
        ("FINETUNE_SECRET.hub_token is empty", "Secret 'hub'"),
    ),
    ("of two\nlines", f"{REPO}@main/a.csv", Reason.SECRET_MISSING, ("Secret 'hub'", "'token'", "no line breaks")),
    ("nobody's", f"{REPO}@main/a.csv", Reason.GATED_DATASET_UNAUTHORIZED, ("http://127.0.0.1:", "refuses", "'hub'")),
    ("without-access", f"{REPO}@main/a.csv", Reason.GATED_DATASET_UNAUTHORIZED, (f"{REPO}@main is gated", "'hub'")),
    (
        "without-access",
        "hf://datasets/org/none@main/a.csv",
        Reason.DATASET_NOT_FOUND,
        ("does not exist on the hub", "the token in Secret 'hub' (key 'token') does not show it"),
    ),
]
"""Values of the Secret, and what is said of them."""


@pytest.mark.parametrize("number", range(len(TOKENS)))
def test_a_token_that_opens_nothing(refused: dict[str, StageError], number: int) -> None:
    token, _, reason, parts = TOKENS[number]
    error = refused[f"token {number}"]
    assert (error.reason, error.retriable) == (reason, False)
    assert_says(error.message, *parts)
    assert not token or token not in error.message


@pytest.mark.parametrize("number", range(len(NOT_ON_THE_HUB)))
def test_files_that_the_hub_does_not_give(refused: dict[str, StageError], number: int) -> None:
    error = refused[f"hub {number}"]
    gated = NOT_ON_THE_HUB[number][1]
    reason = Reason.GATED_DATASET_UNAUTHORIZED if gated else Reason.DATASET_NOT_FOUND
    assert (error.reason, error.retriable) == (reason, False)
    assert_says(error.message, *NOT_ON_THE_HUB[number][2])


def test_a_file_that_leaves_the_hub_meanwhile(refused: dict[str, StageError]) -> None:
    assert refused["removed"].reason is Reason.DATASET_NOT_FOUND
    assert_says(refused["removed"].message, f"{REPO}@main:", "file", "removed from", "hub")


@pytest.mark.parametrize("cause", ["ConnectError", "LocalEntryNotFoundError"])
def test_a_hub_that_is_away_is_worth_a_retry(refused: dict[str, StageError], cause: str) -> None:
    assert refused[cause].retriable
    hub = "http://127.0.0.1:"
    assert_says(refused[cause].message, f"{REPO}@main:", hub, f"({cause})", "copy", "to S3")


def test_an_answer_that_is_not_of_the_hub_is_worth_a_retry(refused: dict[str, StageError]) -> None:
    """As a proxy gives it, with status 200, before anybody has logged in."""
    error = refused["proxy"]
    assert (error.reason, error.retriable) == (Reason.DATASET_NOT_FOUND, True)
    assert_says(error.message, f"{REPO}@main:", "http://127.0.0.1:", "not the hub", "JSONDecodeError", "proxy", "to S3")


def test_what_is_no_place_on_the_hub(refused: dict[str, StageError]) -> None:
    """The API server refuses it before; a stage may be run without one."""
    assert refused["no place"].reason is Reason.SPEC_INVALID
    form = "hf://datasets/organisation/name@revision/path"
    assert_says(refused["no place"].message, "'hf://datasets/set/a.csv'", form)


@pytest.fixture(scope="module")
def refused(s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageError]:
    """How sources are refused, each provoked once: those of the tables above by URI or number, others by a name."""
    folder, source = tmp_path_factory.mktemp("refused"), Source(uri=f"{REPO}@main/data/test.jsonl")
    made: dict[str, StageError] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADMIN.environment().items():
            patch.setenv(name, value)
        patch.setattr(time, "sleep", lambda _seconds: None)  # the hub client's own retries
        store = Store.connect(s3.storage, REFUSED)
        for name, content in OBJECTS.items():
            store.put(name, content)
        with patch.context() as few:
            few.setattr(sources, "MAX_FILES", 1)
            for uri, *_ in NO_FILES:
                made[uri] = refusal(find_sources, Lent(store), Dataset(sources=[Source(uri=f"{REFUSED}/{uri}")]))
        [stored] = find_sources(Lent(store), Dataset(sources=[Source(uri=store.uri("a.csv"))]))
        store.delete("a.csv")
        made["deleted"] = refusal(stored.copy_to, folder / "copy")
        mounted = Source(config_map_key_ref=ConfigMapKeyRef(name="rows", key="rows.csv"))
        made["no key"] = refusal(find_sources, Lent(store), Dataset(sources=[mounted]), folder)
        for number, (uri, gated, _) in enumerate(NOT_ON_THE_HUB):
            with fake_hub(patch, "dataset", "org/set", HUB, gated=gated):
                made[f"hub {number}"] = refusal(find_sources, Lent(store), Dataset(sources=[Source(uri=uri)]))
        for number, (token, uri, *_) in enumerate(TOKENS):
            named = SecretKeyRef(name="hub", key="token")
            patch.setenv(named.variable, token)
            with fake_hub(patch, "dataset", "org/set", HUB, tokens={"with-access": True, "without-access": False}):
                asked = Dataset(sources=[Source(uri=uri, secret_key_ref=named)])
                made[f"token {number}"] = refusal(find_sources, Lent(store), asked)
        with fake_hub(patch, "dataset", "org/set", HUB):
            [file] = find_sources(Lent(store), Dataset(sources=[source]))
        with fake_hub(patch, "dataset", "org/set", {"README.md": b"a card"}):
            made["removed"] = refusal(file.copy_to, folder / "copy")
        with fake_hub(patch, "dataset", "org/set", HUB, spoil=lambda _answer: b"<html>log in</html>"):
            made["proxy"] = refusal(find_sources, store, Dataset(sources=[source]))
        with closed_port() as port:
            patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            made["ConnectError"] = refusal(find_sources, Lent(store), Dataset(sources=[source]))
            made["LocalEntryNotFoundError"] = refusal(file.copy_to, folder / "copy")
        made["no place"] = refusal(hub_place, "hf://datasets/set/a.csv")
    return made


def refusal(action: Callable[..., object], *given: object) -> StageError:
    with pytest.raises(StageError) as error:
        action(*given)
    return error.value


@pytest.mark.parametrize("module", ["reading.sources", "reading.hub_files", "store.hub"])
def test_every_sentence_about_a_source_is_provoked(refused: dict[str, StageError], module: str) -> None:
    assert unsaid(f"finetune_jobs.{module}", [error.message for error in refused.values()]) == []
