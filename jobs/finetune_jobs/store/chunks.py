"""Lines that outlive the pod: what took time or money is saved in the store while a stage runs.

``000000.jsonl``, ``000001.jsonl`` … each hold the lines of some seconds. S3 cannot append. So chunks are written once,
as a whole, and never changed: a process that is killed at any moment leaves whole chunks only, and a pod that is being
replaced and its successor cannot harm each other.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from finetune_jobs.store.s3 import Store

_CHUNK: Final = re.compile(r"(\d{6,})\.jsonl")


@dataclass(frozen=True)
class Chunk:
    """Lines as they were read."""

    uri: str
    lines: list[bytes]
    """With their line ends, which the last one lacks if it is damaged."""


class Chunks:
    """The chunks of a folder. ``add`` and ``flush`` may be called from different threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: list[bytes] = []
        self._chunk = b""
        """What is being written."""
        self._next = 0

    def read(self) -> Iterator[Chunk]:
        """Every chunk in the store, in the order in which they were written. Raises StageError as Store."""
        for stored in self._store.list():
            if name := _CHUNK.fullmatch(stored.key):
                self._next = max(self._next, int(name[1]) + 1)
                yield Chunk(stored.uri, (self._store.get(stored.key) or b"").splitlines(keepends=True))

    def add(self, line: bytes) -> None:
        """Note a line, which ends with its line end. It is safe after the next ``flush``."""
        with self._lock:
            self._pending.append(line)

    def flush(self) -> None:
        """Write what is new to the store. Raises StageError as Store; what was not written stays for the next time."""
        with self._flushing:
            if self._chunk:
                self._write()
            with self._lock:
                self._chunk, self._pending = b"".join(self._pending), []
            if self._chunk:
                self._write()

    def _write(self) -> None:
        """Under the first number that is free. A write that failed may have arrived all the same: it is repeated as it
        was, and found again, so that nothing is counted twice."""
        while not self._store.put_if_absent(name := f"{self._next:06}.jsonl", self._chunk):
            if self._store.get(name) == self._chunk:
                break
            self._next += 1
        self._next += 1
        self._chunk = b""
