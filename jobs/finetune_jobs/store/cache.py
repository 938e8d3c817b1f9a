"""A volume that keeps folders for later pods: downloaded once, read where they lie, and never required.

    <root>/<key>/                    a whole folder, with ``files.json``: size and SHA-256 of each file
    <root>/<key>.lock                who reads the folder holds a shared lock on it; its time is that of the last use
    <root>/.partial-<host>-<random>  a download, or a folder that is being removed

**Several pods at a time.** Each downloads to a folder of its own and renames it, which is atomic. The first wins; the
others throw theirs away and read the winner's. A pod that dies leaves only a ``.partial-…``, which a later one removes
a day after the last change in it.

**What is checked.** Hashes are compared or noted while the files come, and written to the disk before the folder gets
its name. A reader compares every size. It hashes only if nobody has for a day: bytes rot rarely, and hashing would keep
a GPU waiting in every stage. A folder that is found damaged is removed and downloaded again.

**Room.** Where the volume is too full, the folders that were used longest ago are removed, none that was used within
the hour or is being read. ``flock`` says what is being read. It holds between nodes on NFS (Linux sends it to the
server), CephFS and Lustre (mounted with ``flock``); where the mount keeps locks to itself (``nolock``, ``local_lock``),
only the hour protects a reader on another node, which has loaded the model long before.

**Fail-open.** Whatever the volume refuses (full, read-only, no locks) is one line in the log, and the caller downloads
to its scratch space as if there were no cache.
"""

import errno
import fcntl
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from finetune_api.base import WireModel
from finetune_api.layout import FileEntry
from finetune_jobs.store.transfers import hash_files

log = logging.getLogger(__name__)

_FILES: Final = "files.json"
_PARTIAL: Final = ".partial-"
_LOCK: Final = ".lock"
_ABANDONED_SECONDS: Final = 86400.0
"""Age after which a download is that of a dead pod."""
_RECHECK_SECONDS: Final = 86400.0
"""How long a comparison of hashes counts."""
_RECENT_SECONDS: Final = 3600.0
"""How long a folder is kept after a use, whatever the locks say."""
_ROOM: Final = 1.02
"""File systems need a little more than the files."""
_PATIENCE_SECONDS: Final = 5.0
"""Longest wait for another pod that is just removing the folder."""

Fill = Callable[[Path], Mapping[str, str]]
"""Puts the files into an empty folder; returns the SHA-256 of each by its path."""


class _Contents(WireModel):
    """What is in ``files.json``; its time is that of the last comparison of hashes."""

    files: list[FileEntry]


class FolderCache:
    """The folders below ``root``, a volume that other pods use at the same time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, key: str, size: int, fill: Fill) -> Path | None:
        """The whole folder of ``key``, to be read until this process ends; made by ``fill`` if there is none, which
        needs about ``size`` bytes (0: not known). None where the cache is of no use; the log says why.

        Raises what ``fill`` raises, except OSError.
        """
        try:
            return self._folder(key, size, fill)
        except OSError as error:
            log.warning("the cache %s is not used: %s", self._root, error.strerror or error)
            return None

    def _folder(self, key: str, size: int, fill: Fill) -> Path | None:
        self._remove_abandoned()
        lock = self._lock_to_read(key)  # held until the process ends, unless this fails
        try:
            home = self._root / key
            if home.exists() and (fault := _fault(home)):
                log.warning("%s is damaged: %s; it is downloaded again", home, fault)
                if not self._remove(key, lock):
                    raise OSError(errno.EBUSY, f"{home} is damaged, and another pod reads it")
                fcntl.flock(lock, fcntl.LOCK_SH)
            if home.exists():
                log.info("read from the cache: %s", home)
            else:
                self._make_room(size)
                self._fill(home, fill)
            os.utime(lock)
        except BaseException:
            os.close(lock)
            raise
        return home

    def _fill(self, home: Path, fill: Fill) -> None:
        with self._partial() as partial:
            digests = fill(partial)
            files = [
                FileEntry(path=path, size=(partial / path).stat().st_size, sha256=digest)
                for path, digest in sorted(digests.items())
            ]
            (partial / _FILES).write_text(_Contents(files=files).model_dump_json(by_alias=True), encoding="utf-8")
            _write_out(partial)
            try:
                partial.rename(home)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                log.info("another pod was first with %s: its files are used", home)

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """An empty folder of this pod, removed unless it was renamed."""
        path = self._root / f"{_PARTIAL}{platform.node()}-{uuid.uuid4().hex[:8]}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    # Locks

    def _lock_to_read(self, key: str) -> int:
        """A descriptor with a shared lock. Raises OSError: where the volume has no locks, or another holds it alone."""
        descriptor = self._open_lock(key)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise
                time.sleep(0.1)
            else:
                return descriptor

    def _open_lock(self, key: str) -> int:
        return os.open(self._root / f"{key}{_LOCK}", os.O_RDWR | os.O_CREAT, 0o664)

    # Room

    def _make_room(self, size: int) -> None:
        """Raises OSError (ENOSPC) where too little is free and too little can be removed."""
        needed = int(size * _ROOM)
        candidates = iter(self._longest_unused())
        while (free := shutil.disk_usage(self._root).free) < needed:
            key = next(candidates, None)
            if key is None:
                raise OSError(
                    errno.ENOSPC, f"{needed >> 20} MiB are needed, {free >> 20} are free, and the rest is in use"
                )
            lock = self._open_lock(key)
            if self._remove(key, lock):
                log.info("removed from the cache, because it was used longest ago: %s", key)
            os.close(lock)

    def _longest_unused(self) -> list[str]:
        """Keys of the folders that were not used within the hour, the one that was used longest ago first."""
        used = {lock.name.removesuffix(_LOCK): lock.stat().st_mtime for lock in self._root.glob(f"*{_LOCK}")}
        latest = time.time() - _RECENT_SECONDS
        return sorted((key for key in used if used[key] < latest and (self._root / key).is_dir()), key=used.__getitem__)

    def _remove(self, key: str, lock: int) -> bool:
        """Remove a folder that nobody reads; False if somebody does. The lock is held alone, or not at all, after."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        removed = self._root / f"{_PARTIAL}{platform.node()}-{uuid.uuid4().hex[:8]}"
        try:
            (self._root / key).rename(removed)
        except FileNotFoundError:
            return True
        shutil.rmtree(removed, ignore_errors=True)
        return True

    def _remove_abandoned(self) -> None:
        """Downloads of pods that died."""
        for path in self._root.glob(f"{_PARTIAL}*"):
            if time.time() - _last_change(path) > _ABANDONED_SECONDS:
                log.info("removed from the cache, left by a pod that died: %s", path.name)
                shutil.rmtree(path, ignore_errors=True)


def _fault(home: Path) -> str:
    """What is wrong with a folder; empty if nothing. Hashes are compared if nobody has done so for a day."""
    listed = home / _FILES
    try:
        files = _Contents.model_validate_json(listed.read_text(encoding="utf-8")).files
        checked = listed.stat().st_mtime
        for file in files:
            if (size := (home / file.path).stat().st_size) != file.size:
                return f"{file.path} has {size} bytes, not {file.size}"
        if time.time() - checked < _RECHECK_SECONDS:
            return ""
        found = hash_files([home / file.path for file in files])
    except (OSError, ValidationError) as error:
        return f"{type(error).__name__} while it was checked"
    for file, digest in zip(files, found, strict=True):
        if digest != file.sha256:
            return f"the SHA-256 of {file.path} begins with {digest[:12]}, not with {file.sha256[:12]}"
    os.utime(listed)
    return ""


def _last_change(path: Path) -> float:
    """Of a folder or anything in it, in seconds since 1970; of one that has just gone, now."""
    try:
        return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except OSError:
        return time.time()


def _write_out(folder: Path) -> None:
    """Files and folders reach the disk, so that a node that loses power leaves no folder with a name and holes."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
