"""Content-addressed folders: files first, ``manifest.json`` last, then the record that maps an input to them.

A folder without a manifest does not exist. A reader takes only the files that the manifest lists, verifies size and
SHA-256 of each, and gives the folder its final name only when all match.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from finetune_api.endpoint_stages import CacheUse
from finetune_api.hashing import canonical_json
from finetune_api.layout import (
    MANIFEST,
    FileEntry,
    Lineage,
    Manifest,
    StageRecord,
    cut_folder,
    cut_object,
    key_object,
    output_folder,
    own_record_object,
)
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, Stage
from finetune_jobs.base.documents import M, parse_json, read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Report
from finetune_jobs.base.wording import sized
from finetune_jobs.store.cache import FolderCache
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import TransferError, Wanted, download_files, hash_files

_ADDRESS: Final = re.compile(r"[0-9a-f]{64}")
_AMOUNT: Final = re.compile(r"[0-9]+\.[0-9]{2}", re.ASCII)


def is_address(text: str) -> bool:
    """Whether a text has the form of a folder's content address."""
    return bool(_ADDRESS.fullmatch(text))


def describe_folder(
    folder: Path, stage: Stage, facts: dict[str, str] | None = None, lineage: Lineage | None = None
) -> Manifest:
    """The manifest of a local folder: every file below it, sorted by path, with size and SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = [
        FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=found)
        for path, found in zip(paths, hash_files(paths), strict=True)
    ]
    return Manifest(stage=stage, files=files, facts=facts or {}, lineage=lineage or Lineage())


def publish_folder(
    store: Store,
    folder: Path,
    stage: Stage,
    *,
    facts: dict[str, str] | None = None,
    lineage: Lineage | None = None,
    report: Report | None = None,
) -> str:
    """Upload a stage's output to the address of its content (``store`` is the output URI); returns its digest. Nothing
    is uploaded if that content is already published. Two writers of the same content may race: both write the same
    bytes, and the manifest is written once.
    """
    manifest = describe_folder(folder, stage, facts, lineage)
    digest = manifest.content_digest()
    place = store.below(output_folder(stage, digest))
    if place.exists(MANIFEST):
        return digest
    counter = _Counter(sum(file.size for file in manifest.files), report)
    place.upload_all({file.path: folder / file.path for file in manifest.files}, counter.advance)
    place.put_if_absent(MANIFEST, manifest.model_dump_json(by_alias=True, indent=1).encode())
    return digest


def read_manifest(store: Store, folder: str) -> Manifest | None:
    """The manifest of a folder below ``store``, or None if the folder is not published.

    Raises StageError for one that cannot be read: ArtifactCorrupt, ManifestNewer.
    """
    return _read_model(store, f"{folder}/{MANIFEST}", Manifest)


def require_manifest(store: Store, folder: str) -> Manifest:
    """As ``read_manifest``, but raises StageError if the folder is not published (ArtifactNotFound), and if the
    manifest does not match the folder's address (ArtifactCorrupt)."""
    manifest = read_manifest(store, folder)
    if manifest is None:
        raise StageError(
            Reason.ARTIFACT_NOT_FOUND, f"{store.uri(folder)} contains no {MANIFEST}: nothing is published there."
        )
    address = _ADDRESS.search(folder)
    if address and manifest.content_digest() != address[0]:
        raise StageError(
            Reason.ARTIFACT_CORRUPT,
            f"{store.uri(folder)}/{MANIFEST} does not match the folder's address: it was changed.",
        )
    return manifest


def get_listed(store: Store, folder: str, manifest: Manifest, path: str) -> bytes:
    """One small file of a published folder, as its manifest lists it. Raises StageError (ArtifactCorrupt) for another
    one, or as Store."""
    content = store.get(f"{folder}/{path}")
    listed = {file.path: file.sha256 for file in manifest.files}
    if content is None or hashlib.sha256(content).hexdigest() != listed.get(path):
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{store.uri(folder)}/{path} is not the one that its manifest lists.")
    return content


def fetch_folder(store: Store, folder: str, target: Path, *, report: Report | None = None) -> Manifest:
    """Download a published folder to ``target``, verified, all or nothing. An existing verified copy is kept.

    Raises StageError: ArtifactNotFound, ArtifactCorrupt (names the object and what is wrong with it), or as Store.
    """
    manifest = require_manifest(store, folder)
    _require_all_inside(store.below(folder), manifest)
    if not _damaged(manifest, target):
        return manifest
    partial = partial_of(target)
    lacking = _damaged(manifest, partial)  # what an attempt that was cut short has completed is kept
    _remove_others(partial, {file.path for file in manifest.files} - {file.path for file in lacking})
    _download(store.below(folder), manifest, lacking, partial, report)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    return manifest


def is_kept(folder: str, target: Path) -> bool:
    """Whether ``target`` is a whole copy that ``fetch_folder`` made of a published folder, of which the store need not
    be asked: its manifest matches the folder's address, and every file the manifest."""
    address = _ADDRESS.search(folder)
    try:
        manifest = read_json(target / MANIFEST, Manifest)
    except StageError:
        return False
    return address is not None and manifest.content_digest() == address[0] and not _damaged(manifest, target)


def partial_of(target: Path) -> Path:
    """Where a folder is until all of it is there."""
    return target.with_name(f".{target.name}.partial")


@dataclass(frozen=True)
class Fetched:
    """A folder that was fetched through a cache."""

    manifest: Manifest
    how: str
    """Where its files came from, for people: "taken from the cache"."""
    use: CacheUse
    """The same for programs."""
    problem: str = ""
    """Why the cache was of no use; empty: it was of use."""


def fetch_folder_through(
    cache: FolderCache, store: Store, folder: str, target: Path, *, room: int = 0, report: Report | None = None
) -> Fetched:
    """As ``fetch_folder``, but ``target`` is a link into a cache. Its key there is its content address, so whoever
    serves the same files shares them; the store is asked for the manifest all the same, and by it every file in the
    cache is hashed now. If the cache is of no use, the files go to ``target``, whose volume has ``room`` for so many
    bytes (0: not known).

    Raises StageError as ``fetch_folder``, and ScratchFull, which is retriable.
    """
    manifest = require_manifest(store, folder)
    place = store.below(folder)
    _require_all_inside(place, manifest)
    size = sum(file.size for file in manifest.files)
    downloads = 0

    def fill(empty: Path) -> dict[str, str]:
        nonlocal downloads
        downloads += 1
        _download(place, manifest, manifest.files, empty, report)
        return {file.path: file.sha256 for file in manifest.files}

    if target.is_symlink():  # of an earlier attempt
        target.unlink()
    found = cache.folder(manifest.content_digest(), size, fill, manifest.files)
    if found is None:
        if 0 < room < size:
            raise StageError(
                Reason.SCRATCH_FULL,
                f"{place.uri()} has {sized(size)}. The cache could not be used ({cache.problem}), and the pod's own "
                f"volume has {sized(room)} (scratchSize).",
                retriable=True,
            )
        fetch_folder(store, folder, target, report=report)
        how = f"downloaded {sized(size)} to the pod's own volume, as the cache could not be used: {cache.problem}"
        return Fetched(manifest, how, CacheUse.UNUSED, cache.problem)
    shutil.rmtree(target, ignore_errors=True)
    target.symlink_to(found, target_is_directory=True)
    if downloads:
        return Fetched(manifest, f"downloaded {sized(size)} into the cache", CacheUse.DOWNLOADED)
    return Fetched(manifest, "taken from the cache", CacheUse.FOUND)


def read_record(store: Store, stage: Stage, input_key: str, max_cost: str = "") -> StageRecord | None:
    """The earlier result of a stage's input: its record, if the output that it names is still published. With
    ``max_cost``, if there is none: a result that a budget of so many US dollars or more ended early; of several, the
    one with the highest budget.
    """
    whole = _standing(store, key_object(stage, input_key))
    if whole or not max_cost:
        return whole
    folder = cut_folder(stage, input_key)
    amounts = [entry.key for entry in store.list(folder) if _AMOUNT.fullmatch(entry.key)]
    enough = sorted((amount for amount in amounts if float(amount) >= float(max_cost)), key=float, reverse=True)
    return next(filter(None, (_standing(store, f"{folder}/{amount}") for amount in enough)), None)


def publish_record(
    store: Store, stage: Stage, input_key: str, record: StageRecord, *, ended_by: str = ""
) -> StageRecord:
    """Write a stage's record once; returns the record in force, which is another writer's if that one came first. A
    record whose output was deleted is replaced, so deleting a damaged folder repairs it. ``ended_by``: the budget in US
    dollars that ended the stage early; only runs with such a budget may reuse the result.
    """
    path = cut_object(stage, input_key, ended_by) if ended_by else key_object(stage, input_key)
    return _write_once(store, path, record)


def _write_once(store: Store, path: str, record: StageRecord) -> StageRecord:
    content = canonical_json(record)
    if store.put_if_absent(path, content):
        return record
    if (standing := _standing(store, path)) is not None:
        return standing
    found = store.get_tagged(path)
    if found is not None and store.replace(path, content, found[1]):
        return record
    raise StageError(Reason.S3_UNREACHABLE, f"{store.uri(path)} is being changed by another writer.", retriable=True)


def read_own_record(store: Store, run: RunRef, stage: Stage, input_key: str) -> StageRecord | None:
    """The result of a stage's input that this very run has made, if its output is still published; None also where the
    run may use those of others, and notes none of its own."""
    return _standing(store, own_record_object(run, stage, input_key))


def publish_own_record(store: Store, run: RunRef, input_key: str, record: StageRecord) -> StageRecord:
    """Note the result of a run that uses no other run's, as ``publish_record`` does: a pod that its node has lost may
    still be at work beside the next one, and both must say the same."""
    return _write_once(store, own_record_object(run, record.result.stage, input_key), record)


def _standing(store: Store, path: str) -> StageRecord | None:
    """The record at ``path``, if its output is still published."""
    record = _read_model(store, path, StageRecord)
    if record is None or not store.exists(
        f"{output_folder(record.result.stage, record.result.output_digest)}/{MANIFEST}"
    ):
        return None
    return record


def _download(
    place: Store, manifest: Manifest, lacking: Sequence[FileEntry], folder: Path, report: Report | None
) -> None:
    """Those of the files that are lacking, each with its hash. Raises StageError as ``fetch_folder``."""
    counter = _Counter(sum(file.size for file in manifest.files), report)
    counter.advance(sum(file.size for file in manifest.files) - sum(file.size for file in lacking))
    wanted = [Wanted(file.path, folder / file.path, file.size, sha256=file.sha256) for file in lacking]
    try:
        download_files(place, wanted, counter.advance)
    except TransferError as fault:
        uri = place.uri(fault.wanted.path)
        if fault.missing:
            raise StageError(Reason.ARTIFACT_CORRUPT, f"{uri} is missing, but its manifest lists it.") from None
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{uri} is damaged: {fault} as its manifest says.") from None


def _damaged(manifest: Manifest, folder: Path) -> list[FileEntry]:
    """The files that are not in a local folder as the manifest says."""
    there = [file for file in manifest.files if _has_size(folder / file.path, file.size)]
    found = hash_files([folder / file.path for file in there])
    whole = {file.path for file, digest in zip(there, found, strict=True) if digest == file.sha256}
    return [file for file in manifest.files if file.path not in whole]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def _require_all_inside(place: Store, manifest: Manifest) -> None:
    for file in manifest.files:
        _require_inside(place, file.path)


def _require_inside(place: Store, path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{place.uri(MANIFEST)} lists {path!r}, which is outside the folder.")


def _read_model(store: Store, path: str, model: type[M]) -> M | None:
    content = store.get(path)
    return None if content is None else parse_json(content, model, store.uri(path))


class _Counter:
    """Adds up the bytes that the transfer threads report."""

    def __init__(self, total: int, report: Report | None) -> None:
        self._total, self._done, self._report = total, 0, report
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._report:
                self._report(self._done, self._total)
