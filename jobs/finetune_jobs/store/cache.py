"""A volume that keeps folders for later pods: downloaded once, read where they lie, and never required.

    <root>/<key>/                          a whole folder, with ``files.json``: size and SHA-256 of each file
    <root>/<key>.lock                      who reads it holds a shared lock on this; its time is that of the last use
    <root>/<key>.turn                      who downloads it holds this lock alone
    <root>/.partial-<key>-<host>-<random>  a download, or a folder that is being removed

**Several pods at a time.** One downloads, to a folder of its own, and renames it, which is atomic; the others wait, and
read what it has made. They wait as long as its download gets on: if nothing of it changes for two minutes, or the
volume has no locks between nodes, each downloads, the first rename wins, and the others throw theirs away. A pod that
dies leaves only a ``.partial-…``, and the lock goes with its process. The next one with the same key removes what it
left; whatever else was left is removed a day after the last change in it.

**What is checked.** Hashes are compared or noted while the files come, and written to the disk before the folder gets
its name. A reader compares every size. Whoever knows which files there must be, as of an artifact, gives the list: then
the folder has to hold these and no others, and every hash is compared at every use. Where only the folder's own list is
known, as of a base model, it hashes only if nobody has for a day: bytes rot rarely, and hashing would keep a GPU
waiting in every stage. A folder that is found damaged is removed and downloaded again.

**Room.** Where the volume is too full, or its folders exceed the limit, those that were used longest ago are removed,
none that was used within the hour or is being read. ``flock`` says what is being read. It holds between nodes on NFS
(Linux sends it to the server), CephFS and Lustre (mounted with ``flock``); where the mount keeps locks to itself
(``nolock``, ``local_lock``), only the hour protects a reader on another node. A stage has loaded its model long before;
a serving pod, whose server may start again at any time, renews its use (``Hold``).

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from finetune_api.base import WireModel
from finetune_api.layout import FileEntry
from finetune_jobs.base.wording import sized
from finetune_jobs.store.transfers import hash_files

log = logging.getLogger(__name__)

_FILES: Final = "files.json"
_PARTIAL: Final = ".partial-"
_LOCK: Final = ".lock"
_TURN: Final = ".turn"
_ABANDONED_SECONDS: Final = 86400.0
"""Age after which a download is that of a dead pod."""
_RECHECK_SECONDS: Final = 86400.0
"""How long a comparison of hashes counts."""
_RECENT_SECONDS: Final = 3600.0
"""How long a folder is kept after a use, whatever the locks say."""
_ROOM: Final = 1.02
"""File systems need a little more than the files."""
_PATIENCE_SECONDS: Final = 5.0
"""Longest wait for another pod that is just removing the folder, or comparing its hashes."""
_STALLED_SECONDS: Final = 120.0
"""A download in which nothing changes for so long is waited for no longer. Network file systems tell of a change within
a minute."""
_POLL_SECONDS: Final = 0.2
_ATTEMPTS: Final = 5
"""How often a folder is looked at that others replace, or whose identity the volume does not keep."""
HOLD_SECONDS: Final = 600.0
"""How often a reader that stays is to renew its use: several times within the hour."""

Fill = Callable[[Path], Mapping[str, str]]
"""Puts the files into an empty folder; returns the SHA-256 of each by its path."""


class _Contents(WireModel):
    """What is in ``files.json``; its time is that of the last comparison of hashes."""

    files: list[FileEntry]


class FolderCache:
    """The folders below ``root``, a volume that other pods use at the same time. ``limit``: bytes that they may have
    together; 0: as many as the volume has."""

    def __init__(self, root: Path, limit: int = 0) -> None:
        self._root, self._limit = root, limit
        self.problem = ""
        """Why the last folder that was asked for could not be had; empty: it could."""

    def folder(self, key: str, size: int, fill: Fill, listed: Sequence[FileEntry] | None = None) -> Path | None:
        """The whole folder of ``key``, to be read until this process ends; made by ``fill`` if there is none, which
        needs about ``size`` bytes (0: not known). None where the cache is of no use; ``problem`` and the log say why.

        ``listed``: the files that it must hold, and no others, whose hashes are compared now; None: those that were
        noted when it was filled.

        Raises what ``fill`` raises, except OSError.
        """
        try:
            found = self._folder(key, size, fill, listed)
        except OSError as error:
            self.problem = error.strerror or str(error)
            log.warning("the cache %s is not used: %s", self._root, self.problem)
            return None
        self.problem = ""
        return found

    def hold(self, key: str) -> "Hold":
        """What keeps the folder of ``key`` from being removed, for a process that outlives the one that got it."""
        return Hold(self._root / f"{key}{_LOCK}")

    def _folder(self, key: str, size: int, fill: Fill, listed: Sequence[FileEntry] | None) -> Path:
        self._remove_abandoned()
        home = self._root / key
        lock = self._open_lock(key)  # held until the process ends, unless this fails
        try:
            for _ in range(_ATTEMPTS):
                _lock(lock, fcntl.LOCK_SH)
                seen = _identity(home)
                fault = _fault(home, listed) if seen else ""
                if seen and not fault:
                    log.info("read from the cache: %s", home)
                    break
                fcntl.flock(lock, fcntl.LOCK_UN)
                with self._turn(key):
                    if _identity(home) == seen:  # and no other pod's, which is looked at first
                        if fault:
                            self._discard(key, lock, fault)
                        _lock(lock, fcntl.LOCK_SH)
                        self._make_room(size)
                        if self._fill(home, fill):
                            break
            else:
                raise OSError(errno.EAGAIN, f"{home} is another folder whenever it is looked at")
            os.utime(lock)
        except BaseException:
            os.close(lock)
            raise
        return home

    def _discard(self, key: str, lock: int, fault: str) -> None:
        """Remove a damaged folder. Raises OSError (EBUSY) if another pod reads it."""
        home = self._root / key
        log.warning("%s is damaged: %s; it is downloaded again", home, fault)
        try:
            _lock(lock, fcntl.LOCK_EX)
        except BlockingIOError:
            raise OSError(errno.EBUSY, f"{home} is damaged, and another pod reads it") from None
        self._remove(key)

    def _fill(self, home: Path, fill: Fill) -> bool:
        """Whether the folder is this pod's; if not, another one's took its name first, which is looked at."""
        with self._partial(home.name) as partial:
            digests = fill(partial)
            if _FILES in digests:
                raise OSError(errno.EEXIST, f"{home.name} has a file {_FILES} of its own, where the list has to be")
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
                return False
        return True

    @contextmanager
    def _partial(self, key: str) -> Iterator[Path]:
        """An empty folder of this pod, removed unless it was renamed."""
        path = self._new_partial(key)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _new_partial(self, key: str) -> Path:
        return self._root / f"{_PARTIAL}{key}-{platform.node()}-{uuid.uuid4().hex[:8]}"

    # Locks

    @contextmanager
    def _turn(self, key: str) -> Iterator[None]:
        """One pod at a time downloads a folder. Ends without the lock if the download of the one that has it does not
        get on."""
        descriptor = os.open(self._root / f"{key}{_TURN}", os.O_RDWR | os.O_CREAT, 0o664)
        try:
            if self._wait_for(key, descriptor):
                os.utime(descriptor)
                now = os.fstat(descriptor).st_mtime  # by the volume's clock, as the times that it is compared with
                self._remove_partials(f"{_PARTIAL}{key}-*", unchanged_since=now - _STALLED_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _wait_for(self, key: str, turn: int) -> bool:
        """Whether the lock was had. Changes are counted by this pod's clock: nodes differ in the time of day."""
        seen, since = 0.0, time.monotonic()
        waits = False
        while True:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return True
            if not waits:
                log.info("another pod downloads %s into the cache: this one waits", key)
                waits = True
            changed = max(map(_last_change, self._root.glob(f"{_PARTIAL}{key}-*")), default=0.0)
            if changed != seen:
                seen, since = changed, time.monotonic()
            elif time.monotonic() - since > _STALLED_SECONDS:
                log.warning("another pod's download of %s does not get on: it is downloaded here too", key)
                return False
            time.sleep(_POLL_SECONDS)

    def _open_lock(self, key: str) -> int:
        return os.open(self._root / f"{key}{_LOCK}", os.O_RDWR | os.O_CREAT, 0o664)

    # Room

    def _make_room(self, size: int) -> None:
        """Raises OSError (ENOSPC) where too little is free and too little can be removed; then nothing is."""
        lacking = self._lacking(size)
        with ExitStack() as locks:
            chosen: list[str] = []
            for key in self._longest_unused():
                if lacking <= 0:
                    break
                if self._locked_alone(key, locks):
                    chosen.append(key)
                    lacking -= _bytes_below(self._root / key)
            if lacking > 0:
                said = f"{sized(size)} are needed, which is {sized(lacking)} more than is free or not in use"
                raise OSError(errno.ENOSPC, said)
            for key in chosen:
                self._remove(key)
                log.info("removed from the cache, because it was used longest ago: %s", key)

    def _lacking(self, size: int) -> int:
        """Bytes that would have to be removed before so many more fit the volume, and the limit."""
        lacking = int(size * _ROOM) - shutil.disk_usage(self._root).free
        return max(lacking, size + _bytes_below(self._root) - self._limit) if self._limit else lacking

    def _locked_alone(self, key: str, locks: ExitStack) -> bool:
        """Whether nobody reads a folder, or will until ``locks`` ends."""
        lock = self._open_lock(key)
        locks.callback(os.close, lock)
        try:
            _lock(lock, fcntl.LOCK_EX, patience=0)
        except BlockingIOError:
            return False
        return True

    def _longest_unused(self) -> list[str]:
        """Keys of the folders that were not used within the hour, the one that was used longest ago first."""
        used = {lock.name.removesuffix(_LOCK): lock.stat().st_mtime for lock in self._root.glob(f"*{_LOCK}")}
        latest = time.time() - _RECENT_SECONDS
        return sorted((key for key in used if used[key] < latest and (self._root / key).is_dir()), key=used.__getitem__)

    def _remove(self, key: str) -> None:
        """Remove a folder, whose lock is held alone. It has no name any more before the first of its files is gone."""
        removed = self._new_partial(key)
        try:
            (self._root / key).rename(removed)
        except FileNotFoundError:
            return
        shutil.rmtree(removed, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Downloads of pods that died."""
        self._remove_partials(f"{_PARTIAL}*", unchanged_since=time.time() - _ABANDONED_SECONDS)

    def _remove_partials(self, pattern: str, *, unchanged_since: float) -> None:
        for path in self._root.glob(pattern):
            if _last_change(path) < unchanged_since:
                log.info("removed from the cache, left by a pod that died: %s", path.name)
                shutil.rmtree(path, ignore_errors=True)


class Hold:
    """Keeps a folder of the cache for a process that reads it for long, from the first call until the process ends.
    Each call renews the use, which protects the folder where locks do not reach other nodes: every ``HOLD_SECONDS``."""

    def __init__(self, lock: Path) -> None:
        self._path = lock
        self._descriptor: int | None = None

    def __call__(self) -> None:
        """Raises OSError: the volume is not there, has no locks, or the folder is just being removed."""
        if self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o664)
            try:
                _lock(descriptor, fcntl.LOCK_SH)
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        os.utime(self._descriptor)


def _lock(descriptor: int, operation: int, patience: float = _PATIENCE_SECONDS) -> None:
    """Raises OSError: where the volume has no locks; BlockingIOError, if others hold it for longer than ``patience``
    seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _identity(home: Path) -> tuple[int, int] | None:
    """Of a folder, to tell it from one that takes its place; None: there is none."""
    try:
        found = home.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _fault(home: Path, listed: Sequence[FileEntry] | None) -> str:
    """What is wrong with a folder; empty if nothing. Hashes are compared with what is listed, or if nobody has done so
    for a day."""
    noted = home / _FILES
    try:
        files = listed
        if files is None:
            files = _Contents.model_validate_json(noted.read_text(encoding="utf-8")).files
        elif others := _paths(home) - {file.path for file in files} - {_FILES}:
            return f"{min(others)} does not belong there"
        checked = noted.stat().st_mtime
        for file in files:
            if (size := (home / file.path).stat().st_size) != file.size:
                return f"{file.path} has {size} bytes, not {file.size}"
        if listed is None and time.time() - checked < _RECHECK_SECONDS:
            return ""
        found = hash_files([home / file.path for file in files])
        for file, digest in zip(files, found, strict=True):
            if digest != file.sha256:
                return f"the SHA-256 of {file.path} begins with {digest[:12]}, not with {file.sha256[:12]}"
        os.utime(noted)
    except (OSError, ValidationError) as error:
        return f"{type(error).__name__} while it was checked"
    return ""


def _paths(folder: Path) -> set[str]:
    """Of all that is no folder, below it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _bytes_below(folder: Path) -> int:
    """Of all files, those of downloads included; others may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


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
