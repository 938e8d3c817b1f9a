"""Downloads of several files at a time, from an S3 server on loopback that breaks off as told."""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from finetune_api.reasons import Reason
from finetune_api.storage import Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.store import transfers
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import TransferError, Wanted, download_file, download_files, hash_files
from tests.support.seaweedfs import ADMIN
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PART = 1000


@dataclass
class Objects:
    """What the server has, and how it behaves."""

    endpoint: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    """How many answers of an object break off, each after a third of its bytes."""
    later: dict[str, bytes] = field(default_factory=dict)
    """What is there after the next HEAD."""
    ranges: list[str] = field(default_factory=list)
    """The parts that were asked for."""
    most: int = 0
    """Most requests at a time."""


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    served, lock, now = Objects(), threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            later = dict(served.later)  # once the answer is there, a test may go on and add to it
            self._answer(body=False)
            served.content |= later

        def do_GET(self) -> None:
            nonlocal now
            with lock:
                now += 1
                served.most = max(served.most, now)
            try:
                self._answer(body=True)
            finally:
                with lock:
                    now -= 1

        def _answer(self, *, body: bool) -> None:
            name = unquote(self.path).removeprefix("/data/place/")
            content = served.content.get(name)
            asked = self.headers.get("Range", "")
            if content is None or self.headers.get("If-Match", _etag(content)) != _etag(content):
                self._send(404 if content is None else 412, {"Content-Length": "0"})
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1] if asked else content
            about = {"ETag": _etag(content), "Content-Length": str(len(part))}
            if asked:
                about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206 if asked else 200, about)
            if not body:
                return
            served.ranges.append(f"{name} {asked}".strip())
            if served.breaks.get(name, 0):
                served.breaks[name] -= 1
                self.wfile.write(part[: len(part) // 3])
                self.close_connection = True
            else:
                self.wfile.write(part)

        def _send(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    served.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(transfers, "PART", PART)
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, value)
    yield served
    server.shutdown()
    server.server_close()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


@pytest.fixture
def store(objects: Objects) -> Store:
    return Store.connect(Storage(endpoint=objects.endpoint), "s3://data/place")


def _content(size: int) -> bytes:
    return bytes((number * number >> 3) & 255 for number in range(size))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_files_of_every_size_come_whole_and_hashed(objects: Objects, store: Store, tmp_path: Path) -> None:
    sizes = (0, 1, PART - 1, PART, PART + 1, 2 * PART, 17 * PART + 5)
    objects.content = {f"folder/{size}": _content(size) for size in sizes}
    wanted = [Wanted(name, tmp_path / name, len(content)) for name, content in objects.content.items()]
    moved: list[int] = []
    found = download_files(store, wanted, moved.append, hashing=True)
    assert {name: (tmp_path / name).read_bytes() for name in objects.content} == objects.content
    assert found == {name: _sha256(content) for name, content in objects.content.items()}
    assert sum(moved) == sum(sizes)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == sorted(map(str, sizes))
    assert hash_files([each.target for each in wanted]) == list(found.values())
    assert 1 < objects.most <= transfers.CONNECTIONS


def test_parts_of_a_few_files_are_copied_in_turn(objects: Objects, store: Store, tmp_path: Path) -> None:
    objects.content = {name: _content(3 * PART) for name in "abcde"}
    transfers_one_by_one = [Wanted(name, tmp_path / name, 3 * PART) for name in objects.content]
    with pytest.MonkeyPatch.context() as alone:
        alone.setattr(transfers, "CONNECTIONS", 1)
        download_files(store, transfers_one_by_one)
    assert [asked[0] for asked in objects.ranges] == [*"abcdabcdabcd", *"eee"]


def test_what_breaks_off_goes_on_where_it_broke_off(objects: Objects, store: Store, tmp_path: Path) -> None:
    content = objects.content["a"] = _content(PART)
    objects.breaks["a"] = 2
    moved: list[int] = []
    download_files(store, [Wanted("a", tmp_path / "a", PART, sha256=_sha256(content))], moved.append)
    assert (tmp_path / "a").read_bytes() == content
    assert objects.ranges == ["a", "a bytes=333-999", "a bytes=555-999"]
    assert sum(moved) == PART


def test_what_breaks_off_again_and_again_is_worth_a_later_try(objects: Objects, store: Store, tmp_path: Path) -> None:
    objects.content |= {"a": _content(9 * PART), "b": _content(PART)}
    objects.breaks["a"] = 10_000
    with pytest.raises(StageError) as error:
        download_files(store, [Wanted("a", tmp_path / "a", 9 * PART), Wanted("b", tmp_path / "b", PART)])
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert store.uri("a") in error.value.message
    assert {path.name for path in tmp_path.iterdir()} <= {"b"}


@pytest.mark.parametrize(
    ("wanted", "fault", "missing"),
    [
        ({"path": "none"}, "missing", True),
        ({"size": 4 * PART}, f"it has {3 * PART} bytes, not {4 * PART}", False),
        ({"size": PART}, f"it has {3 * PART} bytes, not {PART}", False),
        ({"etag": "another"}, "it was replaced", False),
        ({"sha256": "0" * 64}, "SHA-256", False),
    ],
)
def test_what_is_otherwise_than_wanted_gets_no_name(
    objects: Objects, store: Store, tmp_path: Path, wanted: dict[str, str], fault: str, missing: bool
) -> None:
    objects.content["a"] = _content(3 * PART)
    with pytest.raises(TransferError, match=fault) as error:
        download_files(store, [Wanted(**{"path": "a", "target": tmp_path / "a", "size": 3 * PART} | wanted)])  # type: ignore[arg-type] # a table
    assert error.value.missing is missing
    assert list(tmp_path.iterdir()) == []


def test_one_file(objects: Objects, store: Store, tmp_path: Path) -> None:
    objects.content["a"] = _content(2 * PART)
    assert download_file(store, "a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == objects.content["a"]
    assert not download_file(store, "b", tmp_path / "none")
    objects.later["a"] = b"another version"
    with pytest.raises(StageError) as error:
        download_file(store, "a", tmp_path / "other")
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(error.value.message, store.uri("a"), "changed", "replaced")
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_a_full_disk_is_told_as_one(
    objects: Objects, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    objects.content["a"] = _content(2 * PART)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        download_files(store, [Wanted("a", tmp_path / "a", 2 * PART)])
    assert list(tmp_path.iterdir()) == []
