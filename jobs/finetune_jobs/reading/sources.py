"""Where the examples are: the files that the sources match, their state when a run started, and copies of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from finetune_api.dataset import DataFormat, Dataset, DatasetSource
from finetune_api.hashing import digest
from finetune_api.meta import SOURCES_DIR
from finetune_api.reasons import Reason
from finetune_api.references import ConfigMapKeyRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading.formats import format_of
from finetune_jobs.reading.hub_files import fetch_hub_file, hub_place, list_hub_files
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store, StoredObject
from finetune_jobs.store.transfers import download_file

MAX_FILES: Final = 10_000
"""Most files of one source: past it, the requests take longer than the reading."""
_HIDDEN: Final = ("_", ".")
"""Name prefixes that writers use for files that are not data: _SUCCESS, _temporary, .part-0.crc."""
_NOT_DATA: Final = "manifest.json"


@dataclass(frozen=True)
class SourceFile:
    """One file of examples."""

    origin: DatasetSource
    """The source that matches it, and what the data set reads it for."""
    uri: str
    size: int
    """Bytes, as stored."""
    tag: str
    """Changes with the content: an ETag of S3, a hash of the content elsewhere."""
    format: DataFormat
    one_of_many: bool
    """Found in a folder or by a pattern, where some files may have no rows."""
    copy_to: Callable[[Path], None]
    """Copy the file to a path. Raises StageError: DatasetNotFound if it was deleted since, or as Store."""


@dataclass(frozen=True)
class _Pattern:
    """The last part of a path: nothing (a folder with all below it), a pattern with ``*``, or a name."""

    folder: str
    name: str

    @property
    def is_file(self) -> bool:
        return bool(self.name) and "*" not in self.name

    def takes(self, path: str, size: int) -> bool:
        """Whether a file of the folder is meant; ``path`` is relative to it."""
        if self.is_file:
            return path == self.name
        *_, name = parts = path.split("/")
        hidden = name == _NOT_DATA or any(part.startswith(_HIDDEN) for part in parts)
        below = not self.name or (len(parts) == 1 and fnmatchcase(name, self.name))
        return below and not hidden and size > 0


def find_sources(places: Places, dataset: Dataset, inputs: Path = Path(SOURCES_DIR)) -> list[SourceFile]:
    """The files of every source that a data set reads, in order.

    Raises StageError: DatasetNotFound (names the URI), SpecInvalid (a name without a known extension, too many files),
    BucketNotFound, as Store.
    """
    return [
        file for index, origin in enumerate(dataset.all_sources) for file in _files(places, origin, inputs / str(index))
    ]


def source_digest(files: Iterable[SourceFile]) -> str:
    """Identity of the files: another order, name, size or content gives another one."""
    return digest([[file.uri, file.size, file.tag] for file in files])


def _files(places: Places, origin: DatasetSource, mount: Path) -> list[SourceFile]:
    if origin.source.config_map_key_ref:
        return [_in_config_map(origin, origin.source.config_map_key_ref, mount)]
    uri = origin.source.uri or ""
    if uri.startswith("hf://"):
        found = _on_hub(origin, uri)
    else:
        found = _in_s3(origin, places.open(uri, origin.source.storage), uri)
    files = list(islice(found, MAX_FILES + 1))
    if not files:
        raise _missing(uri)
    if len(files) > MAX_FILES:
        raise StageError(
            Reason.SPEC_INVALID, f"{uri} matches more than {MAX_FILES} files. Merge them into fewer, larger files."
        )
    return sorted(files, key=lambda file: file.uri)


def _missing(uri: str) -> StageError:
    name = uri.rpartition("/")[2]
    if not name or "*" in name:
        problem = "matches no file (empty files, hidden files and manifest.json are ignored)"
    else:
        problem = "does not exist" if "." in name else "does not exist; the URI of a folder ends with /"
    return StageError(Reason.DATASET_NOT_FOUND, f"{uri} {problem}.")


def _in_config_map(origin: DatasetSource, asked: ConfigMapKeyRef, mount: Path) -> SourceFile:
    uri = f"configmap://{asked.name}/{asked.key}"
    try:
        content = (mount / asked.key).read_bytes()
    except OSError:
        raise StageError(Reason.DATASET_NOT_FOUND, f"ConfigMap {asked.name!r} has no key {asked.key!r}.") from None
    tag = hashlib.sha256(content).hexdigest()

    def copy_to(target: Path) -> None:
        target.write_bytes(content)  # a mounted ConfigMap is updated in place: write exactly what was hashed

    return SourceFile(origin, uri, len(content), tag, format_of(uri, origin.source.format), False, copy_to)


def _in_s3(origin: DatasetSource, place: Store, uri: str) -> Iterator[SourceFile]:
    pattern = _pattern(uri.removeprefix(f"s3://{place.bucket}/"))
    entries: Iterable[StoredObject]
    if pattern.is_file:
        entry = place.head()
        entries = [entry] if entry else []
        if entry is None:
            place.require_bucket()
    else:
        folder = place.at(f"s3://{place.bucket}/{pattern.folder}")
        entries = (entry for entry in folder.list() if pattern.takes(entry.key, entry.size))
    for entry in entries:
        yield _s3_file(origin, place, entry, not pattern.is_file)


def _s3_file(origin: DatasetSource, place: Store, entry: StoredObject, one_of_many: bool) -> SourceFile:
    def copy_to(target: Path) -> None:
        if not download_file(place.at(entry.uri), "", target):
            raise StageError(Reason.DATASET_NOT_FOUND, f"{entry.uri} was deleted while it was being copied.")

    kind = format_of(entry.uri, origin.source.format)
    return SourceFile(origin, entry.uri, entry.size, entry.etag, kind, one_of_many, copy_to)


def _on_hub(origin: DatasetSource, uri: str) -> Iterator[SourceFile]:
    place = hub_place(uri, origin.source.secret_key_ref)
    pattern = _pattern(place.path)
    prefix = f"{pattern.folder}/" if pattern.folder else ""
    for file in list_hub_files(place, pattern.folder, recursive=not pattern.name):
        if pattern.takes(file.path.removeprefix(prefix), file.size):
            found = place.uri(file.path)
            kind = format_of(found, origin.source.format)
            copy_to = partial(fetch_hub_file, place, file)
            yield SourceFile(origin, found, file.size, file.hash, kind, not pattern.is_file, copy_to)


def _pattern(path: str) -> _Pattern:
    folder, _, name = path.rpartition("/")
    return _Pattern(folder, name)
