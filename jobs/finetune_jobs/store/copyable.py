"""Folders in stores that are copied whole into a pod: how much of them, and which keys can be paths of files."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.store.s3 import StoredObject

MAX_FILES: Final = 10_000
"""Most files of a folder: past it, the requests take longer than what is done with it."""
MAX_BYTES: Final = 4 << 30
"""Most bytes of them: they lie beside the models in the pod's volume."""
_LONGEST_NAME: Final = 255
"""Bytes of a file's name on the file systems of nodes."""


def require_copyable(uri: str, entries: Sequence[StoredObject], field: str) -> None:
    """Raises StageError (SpecInvalid) for files that are too many or too large, and for keys that are no paths of
    files: they would be written elsewhere, or in each other's place. ``field``: of the spec, which names the folder."""
    size = sum(entry.size for entry in entries)
    if len(entries) > MAX_FILES:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{field}: {uri} has more than {MAX_FILES:,} files. Merge them into fewer, larger files.",
        )
    if size > MAX_BYTES:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{field}: the files below {uri} have {size / 2**30:.1f} GiB; at most {MAX_BYTES >> 30} GiB are "
            "copied into the pod. Name a smaller folder.",
        )
    keys = {entry.key for entry in entries}
    for key in sorted(keys):
        parents = {str(parent) for parent in PurePosixPath(key).parents}
        if not _is_path(key) or parents & keys:
            raise StageError(
                Reason.SPEC_INVALID, f"{field}: {uri} has {shorten(key)!r}, which cannot be a file's path. Rename it."
            )


def _is_path(key: str) -> bool:
    parts = key.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode()) <= _LONGEST_NAME for part in parts)
    return plain and "\\" not in key and key.isprintable()
