"""S3 as the stages use it: a place under a bucket, with conditional writes and verified errors.

boto3's "classic" transfer client is chosen on purpose: the CRT one ignores ``endpoint_url`` and always speaks TLS.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import Loader
from botocore.session import Session

from finetune_api.reasons import Reason
from finetune_api.references import SecretRef
from finetune_api.storage import STORE_SECRET_KEYS, STORE_SESSION_KEY, Encryption, InputStorage, Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.authorities import authorities_file
from finetune_jobs.store.errors import PUT_CONDITIONAL, STORE_ERRORS, error_code, store_error

_MIB: Final = 1 << 20
_TRANSFER: Final = TransferConfig(
    preferred_transfer_client="classic",
    multipart_threshold=64 * _MIB,
    multipart_chunksize=64 * _MIB,
    max_concurrency=8,
    io_chunksize=_MIB,
)
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
_LOST: Final = frozenset({"412", "PreconditionFailed"})
_UNDECIDED: Final = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})
"""Answers to a conditional write that meets another one: it was not made, and is to be tried again."""
_PAUSES: Final = (0.2, 0.5, 1.0, 2.0)
"""Seconds between such tries."""
_OTHER_VERSION: Final = {
    "412": "it was replaced",
    "PreconditionFailed": "it was replaced",
    "416": "it has become shorter",
    "InvalidRange": "it has become shorter",
}
"""What the refusal of a read on a condition, or of a part, says of the object."""

_KEYS: Final = (*STORE_SECRET_KEYS, STORE_SESSION_KEY)
"""Keys of a store's Secret, and variables of the machine's own identity; in small letters, parameters of a session."""

_MAKING: Final = Lock()

Advance = Callable[[int], None]
"""Called with the number of bytes just transferred."""


@dataclass(frozen=True)
class StoredObject:
    """One object: its URI, size in bytes and ETag (without quotes)."""

    uri: str
    key: str
    """Path relative to the place that was asked; empty for the place itself."""
    size: int
    etag: str


class ObjectStream:
    """The bytes of an object, or of a part of it, as they come."""

    def __init__(self, found: Mapping[str, Any], errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._body, self._errors = found["Body"], errors
        self.length = int(found["ContentLength"])
        """Bytes that come."""
        self.total = int(str(found.get("ContentRange", "")).rpartition("/")[2] or self.length)
        """Bytes of the whole object."""

    def read(self, count: int) -> bytes:
        """The next bytes, at most so many; none at the end. Raises StageError, also where they end too early."""
        with self._errors():
            content: bytes = self._body.read(count)
            return content


class Store:
    """A place in S3: ``s3://bucket/prefix``. Paths are relative to it; the empty path is the object of that very name.

    Every method raises StageError with the reason that fits (S3AccessDenied, BucketNotFound, S3Unreachable, …); a
    missing object is not an error but None or False.
    """

    def __init__(self, client: Any, uri: str, encryption: Encryption | None = None) -> None:
        self._client = client
        self.bucket, self.prefix = parse_s3_uri(uri)
        self.encryption = encryption
        """How the store encrypts objects written here; None: as configured for the bucket."""

    @classmethod
    def connect(cls, storage: InputStorage, uri: str) -> "Store":
        """A place reached as ``storage`` says: with the keys of its Secret, which are in the environment, and with no
        others; without a Secret, with the machine's or pod's own identity.

        Raises StageError: SecretMissing if a key is empty, SpecInvalid if its certificate authorities are missing,
        S3Unreachable if the pod's identity cannot be read, which is retriable.
        """
        config = Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 5},
            max_pool_connections=16,
            s3={"addressing_style": "path" if storage.in_path else "virtual"},
            user_agent_extra="finetune-operator",
        )
        keys = _keys(storage.secret_ref, os.environ)
        try:
            client = _make_client(
                keys,
                region_name=storage.region,
                endpoint_url=storage.endpoint,
                verify=authorities_file(storage.ca_bundle, "storage.caBundle"),
                config=config,
            )
        except STORE_ERRORS as error:
            raise store_error(error, "connecting to", uri) from error
        return cls(client, uri, storage.encryption if isinstance(storage, Storage) else None)

    def at(self, uri: str) -> "Store":
        """Another place, over the same connection."""
        return Store(self._client, uri, self.encryption)

    def unencrypted(self) -> "Store":
        """The same place, where the bucket's own setting decides how writes are encrypted."""
        return Store(self._client, self.uri())

    def below(self, path: str) -> "Store":
        """A folder of this place."""
        return self.at(self.uri(path))

    def uri(self, path: str = "") -> str:
        """Full URI of a path."""
        return f"s3://{self.bucket}/{self._key(path)}".rstrip("/")

    # Reading

    def head(self, path: str = "") -> StoredObject | None:
        """Size and ETag, or None where there is no such object (or no such bucket: S3 does not distinguish them)."""
        try:
            with self._errors("reading", path):
                found = self._client.head_object(Bucket=self.bucket, Key=self._key(path))
        except _MissingError:
            return None
        return StoredObject(self.uri(path), path, int(found["ContentLength"]), str(found["ETag"]).strip('"'))

    def algorithm(self, path: str) -> str:
        """How the store says that it encrypted an object (S3's names); empty where it says nothing, or has no such."""
        try:
            with self._errors("reading", path):
                found = self._client.head_object(Bucket=self.bucket, Key=self._key(path))
        except _MissingError:
            return ""
        return str(found.get("ServerSideEncryption", ""))

    def exists(self, path: str = "") -> bool:
        """Whether the object is there."""
        return self.head(path) is not None

    def get(self, path: str = "") -> bytes | None:
        """Content of a small object, or None."""
        found = self.get_tagged(path)
        return found[0] if found else None

    def get_tagged(self, path: str = "") -> tuple[bytes, str] | None:
        """Content of a small object and the ETag for ``replace``, or None."""
        try:
            with self._errors("reading", path):
                found = self._client.get_object(Bucket=self.bucket, Key=self._key(path))
                return found["Body"].read(), str(found["ETag"])
        except _MissingError:
            return None

    def list(self, path: str = "") -> Iterator[StoredObject]:
        """Every object below a folder, sorted by key."""
        folder = self._key(path)
        prefix = f"{folder}/" if folder else ""
        with self._errors("listing", path):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for found in page.get("Contents", []):
                    key = str(found["Key"])
                    yield StoredObject(
                        f"s3://{self.bucket}/{key}",
                        key.removeprefix(prefix),
                        int(found["Size"]),
                        str(found["ETag"]).strip('"'),
                    )

    def stream(self, path: str = "", span: tuple[int, int] | None = None, etag: str = "") -> ObjectStream | None:
        """An object to read piece by piece: all of it, or from byte ``span[0]`` to before ``span[1]``; of the version
        ``etag``, if it is given. None where there is no such object. Raises OtherVersionError."""
        part = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        try:
            with self._errors("reading", path):
                found = self._client.get_object(Bucket=self.bucket, Key=self._key(path), **part, **condition)
        except _MissingError:
            return None
        return ObjectStream(found, partial(self._errors, "reading", path))

    def require_bucket(self) -> None:
        """Raises StageError (BucketNotFound) when the bucket does not exist.

        Keys that may not ask for it may still be good for objects, and what they refuse says why: no failure here.
        """
        try:
            with self._errors("opening", ""):
                self._client.head_bucket(Bucket=self.bucket)
        except _MissingError:
            raise StageError(Reason.BUCKET_NOT_FOUND, f"{self.uri()}: bucket {self.bucket!r} does not exist.") from None
        except StageError as error:
            if error.reason is not Reason.S3_ACCESS_DENIED:
                raise

    # Writing

    def put(self, path: str, content: bytes) -> None:
        """Write a small object, whatever was there."""
        with self._errors("writing", path):
            self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=content, **self._described(path))

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write a small object unless there is one (``If-None-Match: *``); False when there was."""
        return self._put_on_condition(path, content, {"IfNoneMatch": "*"})

    def replace(self, path: str, content: bytes, etag: str) -> bool:
        """Write a small object if it is still the one with this ETag (compare and swap); False when it is not."""
        return self._put_on_condition(path, content, {"IfMatch": etag})

    def upload(self, path: str, source: Path, advance: Advance | None = None) -> None:
        """Copy a file into an object, in parts where it is large."""
        self.upload_all({path: source}, advance)

    def upload_all(self, files: Mapping[str, Path], advance: Advance | None = None) -> None:
        """Copy files into objects, by their paths: several files, and parts of large ones, at a time."""
        callbacks = [ProgressCallbackInvoker(advance)] if advance else []
        with create_transfer_manager(self._client, _TRANSFER) as manager:
            sent = {
                path: manager.upload(
                    str(source), self.bucket, self._key(path), dict(self._described(path)), subscribers=callbacks
                )
                for path, source in files.items()
            }
            for path, transfer in sent.items():
                with self._errors("writing", path):
                    transfer.result()

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens where there is none."""
        with self._errors("deleting", path):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(path))

    def _put_on_condition(self, path: str, content: bytes, condition: dict[str, str]) -> bool:
        for pause in (*_PAUSES, None):
            try:
                with self._errors(PUT_CONDITIONAL, path):
                    self._client.put_object(
                        Bucket=self.bucket, Key=self._key(path), Body=content, **condition, **self._encryption
                    )
                return True
            except (_LostError, _MissingError):  # If-Match on an object that is gone answers 404
                return False
            except _UndecidedError as conflict:
                if not self._holds(path, condition):
                    return False
                if pause is None:
                    raise conflict.failure from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _holds(self, path: str, condition: dict[str, str]) -> bool:
        """Whether the condition of a write holds now."""
        standing = self.head(path)
        if "IfMatch" not in condition:
            return standing is None
        return standing is not None and standing.etag == condition["IfMatch"].strip('"')

    def _described(self, path: str) -> Mapping[str, str]:
        """As ``_encryption``; of a page for people also the type, so that a browser shows it."""
        return self._encryption | ({"ContentType": "text/html; charset=utf-8"} if path.endswith(".html") else {})

    @property
    def _encryption(self) -> dict[str, str]:
        """Parameters of boto3 for everything that makes an object."""
        if self.encryption is None:
            return {}
        key = {"SSEKMSKeyId": self.encryption.kms_key_id} if self.encryption.kms_key_id else {}
        return {"ServerSideEncryption": self.encryption.algorithm.value, **key}

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    @contextmanager
    def _errors(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except STORE_ERRORS as error:
            code = error_code(error)
            if isinstance(error, ClientError) and code in _MISSING:
                raise _MissingError from None
            if action == PUT_CONDITIONAL and code in _LOST:
                raise _LostError from None
            if action == PUT_CONDITIONAL and code in _UNDECIDED:
                raise _UndecidedError(store_error(error, action, self.uri(path))) from error
            if isinstance(error, ClientError) and code in _OTHER_VERSION:
                raise OtherVersionError(_OTHER_VERSION[code]) from None
            raise store_error(error, action, self.uri(path)) from error


class OtherVersionError(Exception):
    """An object is not the one that was asked for; the text says how."""


class _MissingError(Exception):
    """There is no such object."""


class _LostError(Exception):
    """The condition of a conditional write does not hold."""


class _UndecidedError(Exception):
    """A conditional write met another one."""

    def __init__(self, failure: StageError) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _make_client(keys: Mapping[str, str], **options: Any) -> Any:
    """A client with these keys. Without any it looks for some by a session of its own, which would keep the first that
    it finds for all others; the session of those with keys makes one at a time."""
    if not keys:
        return _new_session().create_client("s3", **options)
    with _MAKING:
        return _session().create_client("s3", **keys, **options)


def _new_session() -> Session:
    """One that reads no description of S3's API again, which takes most of the time of making a client."""
    session = Session()
    session.register_component("data_loader", _api_models())
    return session


@cache
def _session() -> Session:
    """The one for clients with keys of their own: to make another one takes most of the rest."""
    return _new_session()


@cache
def _api_models() -> Loader:
    """The descriptions of S3's API from which botocore makes clients."""
    return Loader()


def _keys(secret: SecretRef | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Parameters of a session, without the line break in which Secrets made from files end.

    Of a Secret, its keys: boto3 must not look for others where one is missing. Else those of the machine, and nothing
    where they are not whole, which boto3 then says itself.
    """
    variables = {key: secret.at(key).variable if secret else key for key in _KEYS}
    found = {key: environment.get(name, "").strip() for key, name in variables.items()}
    missing = next((key for key in STORE_SECRET_KEYS if not found[key]), None)
    if secret and missing:
        raise StageError(
            Reason.SECRET_MISSING,
            f"{variables[missing]} is empty: Secret {secret.name!r} must contain an access key under {missing!r}.",
        )
    return {} if missing else {key.lower(): value for key, value in found.items() if value}


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key (without slashes at its ends) of ``s3://bucket/key``. Raises StageError (SpecInvalid)."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise StageError(Reason.SPEC_INVALID, f"{uri!r} is not of the form s3://bucket/key.")
    return bucket, key.strip("/")
