"""An object of the store as a file: read from any place in it, as clients ask of files that they send, with no disk."""

import io
from typing import TYPE_CHECKING, Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import ObjectStream, OtherVersionError, Store

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER: Final = 1 << 20
"""Bytes that memory holds of a file."""


def open_stored(store: Store, path: str) -> io.BufferedReader:
    """The object as it is now: what is read belongs to one version of it, whatever is written meanwhile.

    Reading raises StageError: ArtifactCorrupt where the object is another one by then, as Store. Raises StageError
    (ArtifactCorrupt) where there is none.
    """
    found = store.head(path)
    if found is None:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{store.uri(path)} is missing.")
    return io.BufferedReader(_StoredFile(store, path, found.size, found.etag), _BUFFER)


class _StoredFile(io.RawIOBase):
    def __init__(self, store: Store, path: str, size: int, etag: str) -> None:
        self._store, self._path, self._size, self._etag = store, path, size, etag
        self._at = 0
        self._stream: ObjectStream | None = None
        """What comes from ``_at`` on."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if place != self._at:
            self._at, self._stream = place, None
        return place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        self._stream = self._stream or self._opened()
        content = self._stream.read(len(view))
        if not content:
            raise self._changed()
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _opened(self) -> ObjectStream:
        try:
            stream = self._store.stream(self._path, (self._at, self._size), self._etag)
        except OtherVersionError:
            stream = None
        if stream is None:
            raise self._changed()
        return stream

    def _changed(self) -> StageError:
        return StageError(Reason.ARTIFACT_CORRUPT, f"{self._store.uri(self._path)} was changed while it was read.")
