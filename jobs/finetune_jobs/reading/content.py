"""The bytes of a source file as a stream, decompressed on the way, with a bound on what a file may become."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_jobs.base.wording import sized
from finetune_jobs.reading.formats import Compression, compression_of
from finetune_jobs.reading.rows import invalid

MAX_RATIO: Final = 1000
"""Text shrinks to a tenth, repetitive logs to a hundredth. DEFLATE cannot go beyond 1032, zstd can."""
FREE_SIZE: Final = 1 << 30
"""No ratio is enforced below this decompressed size: the ratio of a small file is meaningless."""
MAX_SIZE: Final = 64 << 30
"""Most decompressed bytes of one file."""
_BUFFER: Final = 1 << 18


@dataclass(frozen=True)
class Content:
    """A file that is being read."""

    uri: str
    stream: io.BufferedReader
    """What the file holds, decompressed."""
    size: int
    """Bytes of the file as it is stored."""
    compressed: bool
    _file: io.FileIO

    def position(self) -> int:
        """Bytes of the stored file that are read."""
        return self._file.tell()


@contextmanager
def open_content(path: Path, uri: str) -> Iterator[Content]:
    """Open the file ``path``, which is a copy of ``uri``.

    Reading the stream raises StageError (DatasetInvalid) where compressed bytes are cut off or damaged, and for a
    decompression bomb: a file that becomes larger than ``size_limit``.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        compression = compression_of(uri, file.read(4))
        file.seek(0)
        raw = _Decompressed(file, compression, uri, size) if compression else file
        yield Content(uri, io.BufferedReader(raw, _BUFFER), size, compression is not None, file)


def size_limit(stored: int) -> int:
    """Most bytes that ``stored`` compressed bytes may become."""
    return min(MAX_SIZE, max(FREE_SIZE, MAX_RATIO * stored))


def bomb(stored: int) -> str:
    """What to say of ``stored`` bytes that become more than they may."""
    return (
        f"{sized(stored)} decompresses to more than {sized(size_limit(stored))}, rejected as a decompression bomb. If "
        "the data is genuine, split it into smaller files or compress it less."
    )


class _Decompressed(io.RawIOBase):
    """Decompressed bytes of a file; memory: the codec's window (zstd: 128 MiB at most)."""

    def __init__(self, file: io.FileIO, compression: Compression, uri: str, size: int) -> None:
        import pyarrow

        self._file, self._compression, self._uri, self._size = file, compression, uri, size
        self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), str(compression))
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._stream.readinto(buffer))
        except OSError as error:
            raise invalid(self._uri, self._problem(str(error))) from None
        self._given += count
        if self._given > size_limit(self._size):
            raise invalid(self._uri, bomb(self._size))
        return count

    def _problem(self, error: str) -> str:
        """What an error of Arrow means: its texts for these three have been the same since Arrow 1.0."""
        if "Truncated" in error:
            return f"the {self._compression} data is truncated at byte {self._size}. Upload it again."
        if "too much memory" in error:
            return "zstd windows larger than 128 MiB are not supported. Compress it without --long and --ultra."
        cause = error.rpartition(": ")[2]
        return f"the {self._compression} data is corrupt before byte {self._file.tell()} ({cause}). Upload it again."
