"""Copies of files from a store, several at a time, hashed while they come.

Files are cut into parts, each of which is one request for a range. Eight threads take the parts, those of a few files
in turn: one large file uses every connection, and small files wait for no large one. A part is written where it belongs
as its bytes come. Whoever completes the next part of a file hashes it too, while the others go on: SHA-256 needs the
bytes in order, so each is read once more, out of the page cache, shortly after it was written. Memory holds one chunk
for each thread.

A file gets its name once it is whole and its hash is right; until then it is ``.<name>.part``.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Advance, OtherVersionError, Store

log = logging.getLogger(__name__)

CONNECTIONS: Final = 8
"""Parts that are copied at the same time, and threads that hash."""
PART: Final = 16 << 20
"""Bytes of one request."""
_CHUNK: Final = 1 << 20
"""Bytes that a thread holds in memory."""
_IN_TURN: Final = 4
"""Files whose parts are copied in turn, so that as many threads can hash."""
_ATTEMPTS: Final = 5
"""How often a part may break off before the transfer fails. Each attempt goes on where the one before broke off."""


@dataclass(frozen=True)
class Wanted:
    """A file to copy."""

    path: str
    """In the store."""
    target: Path
    size: int
    """Bytes that it must have."""
    etag: str = ""
    """Version that it must be; empty: whichever there is."""
    sha256: str = ""
    """Hash that it must have; empty: not known."""


class TransferError(Exception):
    """The store has a file otherwise than it was wanted; the text says how, e.g. "it has 3 bytes, not 4"."""

    def __init__(self, wanted: Wanted, fault: str, *, missing: bool = False) -> None:
        super().__init__(fault)
        self.wanted, self.missing = wanted, missing


def download_file(store: Store, path: str, target: Path, advance: Advance | None = None) -> bool:
    """Copy one object; False where there is no such object. Raises StageError as Store."""
    found = store.head(path)
    if found is None:
        return False
    try:
        download_files(store, [Wanted(path, target, found.size, found.etag)], advance)
    except TransferError as fault:
        if not fault.missing:
            raise StageError(
                Reason.S3_UNREACHABLE, f"{store.uri(path)} changed while it was copied: {fault}.", retriable=True
            ) from None
        return False
    return True


def download_files(
    store: Store, files: Sequence[Wanted], advance: Advance | None = None, *, hashing: bool = False
) -> dict[str, str]:
    """Copy files, all or none of the bad ones: a file that has its name is whole, and has the hash that was wanted.

    Returns the SHA-256 of each path whose hash was wanted; with ``hashing`` of every one. ``advance`` is called by one
    thread at a time. Raises TransferError, and StageError as Store; files that were whole by then stay.
    """
    copying = _Copying(store, advance)
    incoming = [_Incoming(file, hashing or bool(file.sha256)) for file in files]
    with ThreadPoolExecutor(CONNECTIONS, "transfer") as threads:
        parts = [threads.submit(copying.copy, part) for part in _in_turn(incoming)]
        try:
            for part in as_completed(parts):
                part.result()
        except BaseException:
            copying.stop()
            threads.shutdown(cancel_futures=True)
            for each in incoming:
                each.discard()
            raise
    return {each.file.path: each.hexdigest for each in incoming if each.hexdigest}


def hash_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, in hexadecimal, several files at a time."""
    with ThreadPoolExecutor(min(CONNECTIONS, os.cpu_count() or 1), "hash") as threads:
        return list(threads.map(sha256, paths))


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Incoming:
    """A file whose parts come in any order and are hashed in theirs."""

    def __init__(self, file: Wanted, hashed: bool) -> None:
        self.file = file
        self.hexdigest = ""
        self._path = file.target.with_name(f".{file.target.name}.part")
        self._digest = hashlib.sha256() if hashed else None
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._written: dict[int, int] = {}
        """End of each part that is written and not hashed, by its beginning."""
        self._hashed = 0
        self._hashing = False

    def parts(self) -> "Iterator[_Part]":
        """At least one, also of an empty file."""
        for begin in range(0, max(1, self.file.size), PART):
            yield _Part(self, begin, min(begin + PART, self.file.size))

    def write(self, position: int, chunk: bytes) -> None:
        """Put bytes where they belong."""
        view, descriptor = memoryview(chunk), self._opened()
        while view:
            written = os.pwrite(descriptor, view, position)
            view, position = view[written:], position + written

    def arrived(self, begin: int, end: int) -> None:
        """A part is written. Hash what follows on what was hashed, unless another thread does; with the last part,
        compare the hash and name the file. Raises TransferError."""
        with self._lock:
            self._written[begin] = end
            if self._hashing:
                return
            self._hashing = True
        while (following := self._following()) is not None:
            self._hash(following)
            if following == self.file.size:
                self._finish()
                return

    def _following(self) -> int | None:
        """End of the part that comes next, if it is written. If not, whoever brings it hashes on."""
        with self._lock:
            end = self._written.pop(self._hashed, None)
            self._hashing = end is not None
            return end

    def _hash(self, end: int) -> None:
        descriptor = self._opened()
        while self._digest and self._hashed < end:
            chunk = os.pread(descriptor, min(_CHUNK, end - self._hashed), self._hashed)
            if not chunk:
                raise OSError(f"{self._path} was cut while it was written")
            self._digest.update(chunk)
            self._hashed += len(chunk)
        self._hashed = end

    def _finish(self) -> None:
        self._close()
        self.hexdigest = self._digest.hexdigest() if self._digest else ""
        if self.file.sha256 and self.hexdigest != self.file.sha256:
            raise TransferError(
                self.file, f"its SHA-256 begins with {self.hexdigest[:12]}, not with {self.file.sha256[:12]}"
            )
        self._path.replace(self.file.target)

    def discard(self) -> None:
        """Remove what is not whole, once no thread writes any more."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _opened(self) -> int:
        """One descriptor for all threads, from the first part to the last: closing makes network file systems wait."""
        with self._lock:
            if self._descriptor is None:
                self.file.target.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class _Part:
    """Bytes ``begin`` to before ``end`` of a file."""

    of: _Incoming
    begin: int
    end: int


def _in_turn(incoming: Sequence[_Incoming]) -> Iterator[_Part]:
    """Every part: the largest files first, in groups of similar size, those of a group in turn."""
    largest_first = sorted(incoming, key=lambda each: each.file.size, reverse=True)
    for first in range(0, len(largest_first), _IN_TURN):
        group = (each.parts() for each in largest_first[first : first + _IN_TURN])
        yield from (part for parts in zip_longest(*group) for part in parts if part)


class _Copying:
    """What the threads of one transfer share."""

    def __init__(self, store: Store, advance: Advance | None) -> None:
        self._store, self._advance = store, advance
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let every thread end before its next chunk."""
        self._stopped.set()

    def copy(self, part: _Part) -> None:
        """Copy a part, however often the connection breaks off. Raises as ``download_files``."""
        position, attempt = part.begin, 1
        while True:
            try:
                for chunk in self._chunks(part, position):
                    part.of.write(position, chunk)
                    position += len(chunk)
                    self._moved(len(chunk))
                break
            except _BrokenOffError as broken:
                if attempt == _ATTEMPTS or position == part.end:  # all there, yet not as the store says
                    raise broken.why from None
                attempt += 1
                log.info("%s Attempt %d resumes at byte %d.", broken.why.message, attempt, position)
        if not self._stopped.is_set():
            part.of.arrived(part.begin, part.end)

    def _chunks(self, part: _Part, position: int) -> Iterator[bytes]:
        file = part.of.file
        whole = (position, part.end) == (0, file.size)
        try:
            content = self._store.stream(file.path, None if whole else (position, part.end), file.etag)
        except OtherVersionError as other:
            raise TransferError(file, str(other)) from None
        if content is None:
            raise TransferError(file, "it is missing", missing=True)
        if content.total != file.size:
            raise TransferError(file, f"it has {content.total} bytes, not {file.size}")
        if content.length != part.end - position:
            raise TransferError(file, f"{content.length} bytes came for a part of {part.end - position}")
        try:
            while (chunk := content.read(_CHUNK)) and not self._stopped.is_set():
                yield chunk
        except StageError as error:
            raise _BrokenOffError(error) from error

    def _moved(self, count: int) -> None:
        if self._advance:
            with self._lock:
                self._advance(count)


class _BrokenOffError(Exception):
    """The connection broke off within an object."""

    def __init__(self, why: StageError) -> None:
        super().__init__(why.message)
        self.why = why
