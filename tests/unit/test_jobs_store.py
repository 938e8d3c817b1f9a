"""The store, content-addressed folders and records, against a real S3 server."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.exceptions import ClientError
from urllib3 import HTTPResponse

from finetune_api.layout import (
    MANIFEST,
    FileEntry,
    Lineage,
    Manifest,
    StageRecord,
    cut_folder,
    key_object,
    output_folder,
)
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_api.storage import Addressing, Encryption, EncryptionAlgorithm, Storage
from finetune_jobs.artifacts.folders import fetch_folder, publish_folder, publish_record, read_manifest, read_record
from finetune_jobs.base.errors import StageError
from finetune_jobs.resolve import probe_writes
from finetune_jobs.store.errors import store_error
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import download_file
from tests.support.closed_port import closed_port
from tests.support.forgetful_store import forgetful
from tests.support.seaweedfs import ADMIN, KMS_KEY, READER, STRANGER, SeaweedFS, User
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_objects(store: Store, tmp_path: Path) -> None:
    assert (store.get("a"), store.head("a"), list(store.list())) == (None, None, [])
    store.put("a", b"one")
    store.put("b/c", b"three")
    entry = store.head("a")
    assert entry is not None
    assert (entry.uri, entry.key, entry.size) == (store.uri("a"), "a", 3)
    assert [(e.key, e.size) for e in store.list()] == [("a", 3), ("b/c", 5)]
    assert [e.key for e in store.list("b")] == ["c"]
    assert store.below("b").get("c") == store.at(store.uri("b/c")).get() == b"three"
    moved: list[int] = []
    store.upload("big", _file(tmp_path / "big", 70 << 20), moved.append)
    assert download_file(store, "big", tmp_path / "copy", moved.append)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()
    assert sum(moved) == 2 * (70 << 20)
    assert not download_file(store, "none", tmp_path / "none")
    store.delete("a")
    assert not store.exists("a")


STORE = "http://s3.example:8333"


@pytest.mark.parametrize(
    ("endpoint", "addressing", "bucket", "url"),
    [
        (None, Addressing.AUTO, "models", "https://models.s3.eu-central-1.amazonaws.com/a"),
        (
            None,
            Addressing.AUTO,
            "my.models",
            "https://s3.eu-central-1.amazonaws.com/my.models/a",
        ),  # no certificate fits
        (None, Addressing.PATH, "models", "https://s3.eu-central-1.amazonaws.com/models/a"),
        (None, Addressing.VIRTUAL_HOST, "models", "https://models.s3.eu-central-1.amazonaws.com/a"),
        (STORE, Addressing.AUTO, "models", "http://s3.example:8333/models/a"),
        (STORE, Addressing.VIRTUAL_HOST, "models", "http://models.s3.example:8333/a"),
    ],
)
def test_where_urls_have_the_bucket(
    endpoint: str | None, addressing: Addressing, bucket: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = Storage(endpoint=endpoint, addressing=addressing, region="eu-central-1")
    asked: list[str] = []

    def answer(request: AWSRequest, **_: object) -> AWSResponse:
        asked.append(request.url)
        return AWSResponse(request.url, 404, {}, HTTPResponse(io.BytesIO(), preload_content=False))

    store = Store.connect(storage, f"s3://{bucket}")
    store._client.meta.events.register("before-send.s3", answer)
    assert not store.exists("a")
    assert asked == [url]


def test_conditional_writes(store: Store) -> None:
    assert store.put_if_absent("key", b"first")
    assert not store.put_if_absent("key", b"second")
    content, etag = store.get_tagged("key") or (b"", "")
    assert content == b"first"
    assert store.replace("key", b"third", etag)
    assert not store.replace("key", b"fourth", etag)
    assert not store.replace("absent", b"x", etag)
    assert store.get("key") == b"third"


@pytest.mark.parametrize(
    ("user", "bucket", "reason", "problem", "retriable"),
    [
        (STRANGER, "data", Reason.S3_ACCESS_DENIED, ["credentials", "(InvalidAccessKeyId)"], False),
        (
            User(ADMIN.key, "wrong", ()),
            "data",
            Reason.S3_ACCESS_DENIED,
            ["credentials", "(SignatureDoesNotMatch)"],
            False,
        ),
        (READER, "data", Reason.S3_ACCESS_DENIED, ["writing s3://data/x/key", "credentials", "(AccessDenied)"], False),
        (ADMIN, "no-such-bucket", Reason.BUCKET_NOT_FOUND, ["bucket 'no-such-bucket'", "does not exist"], False),
    ],
)
def test_a_refusal_says_why(
    s3: SeaweedFS,
    monkeypatch: pytest.MonkeyPatch,
    user: User,
    bucket: str,
    reason: Reason,
    problem: list[str],
    retriable: bool,
) -> None:
    for name, value in user.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StageError) as error:
        Store.connect(s3.storage, f"s3://{bucket}/x").put("key", b"")
    assert (error.value.reason, error.value.retriable) == (reason, retriable)
    assert_says(error.value.message, *problem)
    assert user.secret not in error.value.message


@pytest.mark.parametrize(
    ("status", "retriable"),
    [(400, False), (404, False), (405, False), (412, False)]
    + [(status, True) for status in (408, 409, 429, 500, 502, 503)],
)
def test_a_busy_store_is_asked_again_and_a_wrong_request_is_not(status: int, retriable: bool) -> None:
    """429 is how some stores say what AWS says with 503: slow down."""
    answer = {"Error": {"Code": "Answer"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = store_error(ClientError(answer, "PutObject"), "writing", "s3://data/x/key")
    assert error.reason is (Reason.S3_UNREACHABLE if retriable else Reason.INTERNAL_ERROR)
    assert error.retriable is retriable
    assert_says(error.message, f"the store answered {status}")


def test_a_store_that_cannot_be_reached_is_worth_a_retry(place: str) -> None:
    with closed_port() as port, pytest.raises(StageError) as error:
        Store.connect(Storage(endpoint=f"http://127.0.0.1:{port}"), place).get("key")
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(error.value.message, f"reading {place}/key failed", "endpoint", "name", "connection refused")


def test_what_fails_once_is_asked_for_again(s3: SeaweedFS, place: str, store: Store) -> None:
    """A stage that ran for hours must not end for one answer of a store that is busy."""
    failures = iter([True])
    with forgetful(s3.endpoint, ADMIN, ignores=(), fails=lambda _path: next(failures, False)) as endpoint:
        Store.connect(Storage(endpoint=endpoint), place).put("key", b"content")
    assert next(failures, None) is None
    assert store.get("key") == b"content"


def test_keys_that_are_missing(s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StageError, match="pod has no S3 credentials") as error:
        Store.connect(s3.storage, place).get("key")
    assert error.value.reason is Reason.S3_ACCESS_DENIED


def test_a_secret_made_from_a_file_ends_in_a_line_break(
    s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, f"{value}\n")
    Store.connect(s3.storage, place).put("key", b"content")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"{ADMIN.key[:4]}\n{ADMIN.key[4:]}")
    with pytest.raises(StageError, match=r"S3 access key .* line break") as error:
        Store.connect(s3.storage, place).get("key")
    assert (error.value.reason, error.value.retriable) == (Reason.S3_ACCESS_DENIED, False)
    assert ADMIN.key[4:] not in error.value.message


def test_a_store_that_ignores_conditions_is_refused(s3: SeaweedFS, place: str, store: Store) -> None:
    probe_writes(store, "probe")
    with forgetful(s3.endpoint, ADMIN) as endpoint, pytest.raises(StageError) as error:
        probe_writes(Store.connect(Storage(endpoint=endpoint), place), "probe")
    assert error.value.reason is Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED
    assert f"The store of {place} ignores If-None-Match: * on PUT" in error.value.message
    assert list(store.list()) == []


KMS = Encryption(algorithm=EncryptionAlgorithm.KMS, kms_key_id=KMS_KEY)
AES256 = Encryption(algorithm=EncryptionAlgorithm.AES256)


@pytest.mark.parametrize("encryption", [KMS, AES256, None], ids=["kms", "aes256", "none"])
def test_everything_that_is_written_is_encrypted_as_asked(
    s3: SeaweedFS, place: str, folder: Path, tmp_path: Path, encryption: Encryption | None
) -> None:
    """Small and large objects, whatever the condition, in every place that is reached from the first one."""
    store = Store.connect(s3.storage.model_copy(update={"encryption": encryption}), place)
    probe_writes(store, "probe")
    store.put("put", b"one")
    assert store.put_if_absent("key", b"first")
    assert not store.put_if_absent("key", b"second")
    assert store.replace("key", b"third", (store.get_tagged("key") or (b"", ""))[1])
    assert not store.replace("key", b"fourth", '"another"')
    store.upload("small", folder / "a.txt")
    store.upload("in parts", _file(tmp_path / "big", 70 << 20))
    digest = publish_folder(store.at(place), folder, Stage.PREPARE)
    publish_record(store, Stage.PREPARE, "k" * 64, _record(digest, "first"))
    written = [entry.key for entry in store.list()]
    assert {"put", "key", "small", "in parts", key_object(Stage.PREPARE, "k" * 64)} < set(written)
    assert {store.algorithm(key) for key in written} == {encryption.algorithm.value if encryption else ""}
    plain = Store.connect(s3.storage, place)
    assert plain.get("key") == b"third", "reading needs no setting"
    fetch_folder(plain, output_folder(Stage.PREPARE, digest), tmp_path / "copy")


@pytest.mark.parametrize(
    ("encryption", "asked"),
    [
        (KMS.model_copy(update={"kms_key_id": "unknown"}), "algorithm aws:kms, kmsKeyId 'unknown'"),
        (KMS.model_copy(update={"kms_key_id": None}), "algorithm aws:kms"),  # the server has no default key
    ],
)
def test_a_store_that_cannot_encrypt_as_asked_is_refused(
    s3: SeaweedFS, place: str, encryption: Encryption, asked: str
) -> None:
    store = Store(s3.client(), place, encryption)  # without retries: SeaweedFS calls it an error of its own
    with pytest.raises(StageError) as error:
        probe_writes(store, "probe")
    assert (error.value.reason, error.value.retriable) == (Reason.S3_ENCRYPTION_REFUSED, False)
    assert_says(error.value.message, place, f"storage.encryption ({asked}):", f"{place}/")
    assert list(store.list()) == []


def test_a_store_that_ignores_the_encryption_is_refused(s3: SeaweedFS, place: str) -> None:
    headers = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id")
    with forgetful(s3.endpoint, ADMIN, ignores=headers) as endpoint, pytest.raises(StageError) as error:
        probe_writes(Store.connect(Storage(endpoint=endpoint, encryption=AES256), place), "probe")
    assert error.value.reason is Reason.S3_ENCRYPTION_REFUSED
    assert_says(error.value.message, f"{place} ignores", "storage.encryption (algorithm AES256):", "no encryption")
    assert list(Store.connect(s3.storage, place).list()) == []


def test_what_refuses_any_write_is_not_blamed_on_the_encryption(s3: SeaweedFS, place: str) -> None:
    with pytest.raises(StageError) as error:
        probe_writes(Store(s3.client(READER), place, AES256), "probe")
    assert error.value.reason is Reason.S3_ACCESS_DENIED


def test_a_key_that_was_disabled_later_says_so() -> None:
    """The answer of AWS, which no store here gives: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
    answer = {"Error": {"Code": "KMS.DisabledException"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    error = store_error(ClientError(answer, "PutObject"), "writing", "s3://models/x")
    assert (error.reason, error.retriable) == (Reason.S3_ENCRYPTION_REFUSED, False)
    assert error.message == ("writing s3://models/x failed: the encryption key cannot be used (KMS.DisabledException).")


def _file(path: Path, size: int) -> Path:
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    (path / "sub").mkdir(parents=True)
    (path / "a.txt").write_text("alpha")
    (path / "sub" / "b.bin").write_bytes(bytes(range(256)))
    return path


def test_a_folder_comes_back_as_it_was(store: Store, folder: Path, tmp_path: Path) -> None:
    digest = publish_folder(store, folder, Stage.PREPARE, facts={"rows": "2"})
    place = output_folder(Stage.PREPARE, digest)
    manifest = read_manifest(store, place)
    assert manifest is not None
    assert (manifest.content_digest(), manifest.facts) == (digest, {"rows": "2"})
    target = tmp_path / "copy"
    assert fetch_folder(store, place, target) == manifest
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        "a.txt": b"alpha",
        "sub/b.bin": bytes(range(256)),
        MANIFEST: (target / MANIFEST).read_bytes(),
    }
    assert not list(tmp_path.glob(".*partial"))


def test_what_is_published_is_not_written_again(store: Store, folder: Path) -> None:
    place = output_folder(Stage.PREPARE, publish_folder(store, folder, Stage.PREPARE))
    store.put(f"{place}/a.txt", b"alpha, but marked")
    publish_folder(store, folder, Stage.PREPARE)
    assert store.get(f"{place}/a.txt") == b"alpha, but marked"


def test_a_verified_copy_is_kept_and_a_damaged_one_replaced(store: Store, folder: Path, tmp_path: Path) -> None:
    place = output_folder(Stage.PREPARE, publish_folder(store, folder, Stage.PREPARE))
    target = tmp_path / "copy"
    fetch_folder(store, place, target)
    written = (target / "a.txt").stat().st_mtime_ns
    fetch_folder(store, place, target)
    assert (target / "a.txt").stat().st_mtime_ns == written
    (target / "a.txt").write_text("alphb")
    fetch_folder(store, place, target)
    assert (target / "a.txt").read_text() == "alpha"


def _flip_byte(store: Store, place: str) -> None:
    store.put(f"{place}/a.txt", b"alphb")


def _cut(store: Store, place: str) -> None:
    store.put(f"{place}/a.txt", b"alph")


def _lose(store: Store, place: str) -> None:
    store.delete(f"{place}/a.txt")


def _forge(store: Store, place: str) -> None:
    forged = Manifest(stage=Stage.PREPARE, files=[FileEntry(path="a.txt", size=1, sha256="0" * 64)])
    store.put(f"{place}/{MANIFEST}", forged.model_dump_json(by_alias=True).encode())


def _scribble(store: Store, place: str) -> None:
    store.put(f"{place}/{MANIFEST}", b"{")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (_flip_byte, "a.txt … damaged: … SHA-256"),
        (_cut, "a.txt … damaged: … 4 bytes, … 5 … manifest"),
        (_lose, "a.txt … missing … manifest"),
        (_forge, "manifest.json … folder's address: … changed"),
        (_scribble, "manifest.json … cannot be read"),
    ],
)
def test_damage_is_found_and_never_shown(
    store: Store, folder: Path, tmp_path: Path, damage: Callable[[Store, str], None], parts: str
) -> None:
    place = output_folder(Stage.PREPARE, publish_folder(store, folder, Stage.PREPARE))
    damage(store, place)
    with pytest.raises(StageError) as error:
        fetch_folder(store, place, tmp_path / "copy")
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, *f"{store.uri(place)}/{parts}".split(" … "))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "..\\b", ""])
def test_a_manifest_cannot_lead_outside(store: Store, tmp_path: Path, path: str) -> None:
    manifest = Manifest(stage=Stage.PREPARE, files=[FileEntry(path=path, size=0, sha256="0" * 64)])
    place = output_folder(Stage.PREPARE, manifest.content_digest())
    store.put(f"{place}/{MANIFEST}", manifest.model_dump_json(by_alias=True).encode())
    with pytest.raises(StageError, match="outside the folder") as error:
        fetch_folder(store, place, tmp_path / "copy")
    assert error.value.reason is Reason.ARTIFACT_CORRUPT


def test_a_folder_that_is_not_published(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        fetch_folder(store, "datasets/none", tmp_path / "copy")
    assert error.value.reason is Reason.ARTIFACT_NOT_FOUND


def _record(digest: str, note: str) -> StageRecord:
    result = StageResult(
        stage=Stage.PREPARE, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, output_digest=digest
    )
    return StageRecord(result=result, lineage=Lineage(operator_version=note))


def test_the_first_record_stands_until_its_output_is_deleted(store: Store, folder: Path) -> None:
    digest = publish_folder(store, folder, Stage.PREPARE)
    first, second = _record(digest, "first"), _record(digest, "second")
    assert publish_record(store, Stage.PREPARE, "k" * 64, first) == first
    assert publish_record(store, Stage.PREPARE, "k" * 64, second) == first
    assert read_record(store, Stage.PREPARE, "k" * 64) == first
    store.delete(f"{output_folder(Stage.PREPARE, digest)}/{MANIFEST}")
    assert read_record(store, Stage.PREPARE, "k" * 64) is None
    assert publish_record(store, Stage.PREPARE, "k" * 64, second) == second
    assert b'"second"' in (store.get(key_object(Stage.PREPARE, "k" * 64)) or b"")


def test_what_a_budget_ended_is_found_by_that_budget_and_lower_ones(store: Store, folder: Path) -> None:
    key, digest = "k" * 64, publish_folder(store, folder, Stage.PREPARE)

    def found(max_cost: str) -> str:
        record = read_record(store, Stage.PREPARE, key, max_cost)
        return record.lineage.operator_version if record else ""

    for budget in ("9", "25.0"):
        record = _record(digest, f"cut at {budget}")
        assert publish_record(store, Stage.PREPARE, key, record, ended_by=budget) == record
    assert publish_record(store, Stage.PREPARE, key, _record(digest, "again"), ended_by="9.00") == _record(
        digest, "cut at 9"
    )
    store.put(f"{cut_folder(Stage.PREPARE, key)}/note.txt", b"somebody else's")
    assert [found(budget) for budget in ("", "8.5", "9.00", "10", "25", "25.01", "100")] == [
        *("", "cut at 25.0", "cut at 25.0", "cut at 25.0", "cut at 25.0", "", "")
    ]
    whole = _record(digest, "whole")
    assert publish_record(store, Stage.PREPARE, key, whole) == whole
    assert [found(budget) for budget in ("", "9", "100")] == ["whole"] * 3
    store.delete(key_object(Stage.PREPARE, key))
    store.delete(f"{output_folder(Stage.PREPARE, digest)}/{MANIFEST}")
    assert found("9") == ""
