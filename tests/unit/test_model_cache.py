"""The cache of models: several pods at a time, pods that die, full volumes, damage."""

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import pytest

from finetune_api.layout import FileEntry
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store import cache
from finetune_jobs.store.cache import FolderCache
from finetune_jobs.store.transfers import hash_files
from tests.support.cache_times import aged, released

pytestmark = pytest.mark.unit

DAY = 86400


class Filling:
    """Puts two files into a folder, and counts how often."""

    def __init__(self, text: str = "weights") -> None:
        self.text, self.times = text, 0

    def __call__(self, folder: Path) -> Mapping[str, str]:
        self.times += 1
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(self.text)
        names = ["config.json", "model.safetensors"]
        return dict(zip(names, hash_files([folder / name for name in names]), strict=True))


def names(root: Path) -> set[str]:
    """The folders of a cache, also those that are not whole."""
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_a_folder_is_filled_once_and_read_where_it_lies(tmp_path: Path) -> None:
    fill, root = Filling(), tmp_path / "cache"
    root.mkdir()
    found = [FolderCache(root).folder("key", 9, fill) for _ in range(3)]
    assert (found, fill.times) == ([root / "key"] * 3, 1)
    assert (root / "key" / "model.safetensors").read_text() == "weights"
    other = FolderCache(root).folder("other", 9, Filling("others"))
    assert other is not None
    assert (other / "model.safetensors").read_text() == "others"
    assert names(root) == {"key", "other"}


def _cut(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weight")


def _change(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weighty")


def _lose(folder: Path) -> None:
    (folder / "config.json").unlink()


def _scribble(folder: Path) -> None:
    (folder / "files.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "since_checked", "found"),
    [
        (_cut, 0, True),
        (_lose, 0, True),
        (_scribble, 0, True),
        (_change, 2 * DAY, True),
        (_change, 0, False),
    ],
)
def test_damage_is_found_by_size_at_once_and_by_hash_after_a_day(
    tmp_path: Path, damage: Callable[[Path], None], since_checked: float, found: bool
) -> None:
    fill = Filling()
    FolderCache(tmp_path).folder("key", 9, fill)
    released(tmp_path, "key")
    damage(tmp_path / "key")
    aged(tmp_path / "key" / "files.json", since_checked)
    assert FolderCache(tmp_path).folder("key", 9, fill) == tmp_path / "key"
    assert fill.times == (2 if found else 1)
    assert ((tmp_path / "key" / "model.safetensors").read_text() == "weights") is found
    assert names(tmp_path) == {"key"}


def test_hashes_that_are_right_count_for_another_day(tmp_path: Path) -> None:
    FolderCache(tmp_path).folder("key", 9, Filling())
    listed = tmp_path / "key" / "files.json"
    aged(listed, 2 * DAY)
    assert FolderCache(tmp_path).folder("key", 9, Filling()) == tmp_path / "key"
    assert time.time() - listed.stat().st_mtime < 60


def test_damage_that_another_pod_reads_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_lock", partial(cache._lock, patience=0.0))
    FolderCache(tmp_path).folder("key", 9, Filling())
    _cut(tmp_path / "key")
    assert FolderCache(tmp_path).folder("key", 9, Filling()) is None
    assert "another pod reads it" in caplog.text
    assert names(tmp_path) == {"key"}


def test_a_volume_on_which_a_damaged_folder_is_always_another_one_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few network file systems make inode numbers up: nobody would ever know that it is still the same folder."""
    FolderCache(tmp_path).folder("key", 9, Filling())
    _cut(tmp_path / "key")
    numbers = itertools.count()
    monkeypatch.setattr(cache, "_identity", lambda home: (next(numbers), 0))
    assert FolderCache(tmp_path).folder("key", 9, Filling()) is None
    assert "another folder" in caplog.text


class Done(NamedTuple):
    """What a process reports."""

    folder: str
    text: str
    times: int


def _read(root: Path, results: "multiprocessing.Queue[Done]") -> None:
    fill = Filling()

    def slowly(folder: Path) -> Mapping[str, str]:
        for _ in range(12):  # it gets on, for longer than the others would wait for one that does not
            time.sleep(0.3)
            (folder / "model.safetensors").write_text("half")
        return fill(folder)

    found = FolderCache(root).folder("key", 9, slowly)
    assert found is not None
    results.put(Done(found.name, (found / "model.safetensors").read_text(), fill.times))


@pytest.mark.slow
def test_of_pods_that_start_at_the_same_time_one_downloads_and_all_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_STALLED_SECONDS", 3.0)
    processes = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[Done] = processes.Queue()
    started = [processes.Process(target=_read, args=(tmp_path, results)) for _ in range(3)]
    for process in started:
        process.start()
    done = sorted(results.get(timeout=60) for _ in started)
    assert done == [Done("key", "weights", 0), Done("key", "weights", 0), Done("key", "weights", 1)]
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert names(tmp_path) == {"key"}


def test_a_download_that_does_not_get_on_is_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor where locks do not reach other nodes: both download, the first wins, and the other reads its files."""
    monkeypatch.setattr(cache, "_STALLED_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    quick, slow = Filling(), Filling()

    def overtaken(folder: Path) -> Mapping[str, str]:
        assert FolderCache(tmp_path).folder("key", 9, quick) == tmp_path / "key"
        return slow(folder)

    assert FolderCache(tmp_path).folder("key", 9, overtaken) == tmp_path / "key"
    assert (quick.times, slow.times, names(tmp_path)) == (1, 1, {"key"})
    assert "does not get on" in caplog.text
    assert "was first" in caplog.text


def _die(root: Path, half: Event) -> None:
    def fill(folder: Path) -> Mapping[str, str]:
        (folder / "model.safetensors").write_text("half")
        half.set()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    FolderCache(root).folder("key", 9, fill)


@pytest.mark.slow
def test_a_pod_that_is_killed_leaves_nothing_half_and_the_one_that_waits_goes_on(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    half, fill = processes.Event(), Filling()
    process = processes.Process(target=_die, args=(tmp_path, half))
    process.start()
    assert half.wait(60)
    assert FolderCache(tmp_path).folder("key", 9, fill) == tmp_path / "key"
    process.join(60)
    assert (process.exitcode, fill.times) == (-signal.SIGKILL, 1)
    assert (tmp_path / "key" / "model.safetensors").read_text() == "weights"
    (left,) = names(tmp_path) - {"key"}
    assert left.startswith(".partial-key-")


@pytest.mark.parametrize(("key", "minutes", "stays"), [("key", 5, False), ("key", 0, True), ("other", 5, True)])
def test_who_downloads_the_same_removes_what_a_dead_pod_left(
    tmp_path: Path, key: str, minutes: float, stays: bool
) -> None:
    """One that has just changed may be that of a pod whose lock was not seen here."""
    left = tmp_path / ".partial-key-node-0123abcd"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    for path in (left / "model.safetensors", left):
        aged(path, minutes * 60)
    FolderCache(tmp_path).folder(key, 9, Filling())
    assert left.exists() is stays


def test_whatever_a_dead_pod_left_is_removed_after_a_day(tmp_path: Path) -> None:
    left = tmp_path / ".partial-other-node-0123abcd"
    left.mkdir()
    aged(left, 2 * DAY)
    FolderCache(tmp_path).folder("key", 9, Filling())
    assert names(tmp_path) == {"key"}


LISTED = [
    FileEntry(path=name, size=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())
    for name, text in (("config.json", "{}"), ("model.safetensors", "weights"))
]


def _plant(folder: Path) -> None:
    (folder / "planted.safetensors").write_text("weights")


def _forge(folder: Path) -> None:
    """A file with its own list, as who may write to the volume can make them."""
    _change(folder)
    listed = json.loads((folder / "files.json").read_text())
    listed["files"][1] |= {"size": 8, "sha256": hashlib.sha256(b"weighty").hexdigest()}
    (folder / "files.json").write_text(json.dumps(listed))


@pytest.mark.parametrize("damage", [_cut, _lose, _change, _plant, _forge])
def test_of_what_is_listed_every_hash_is_compared_at_every_use(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    fill = Filling()
    for _ in range(2):
        assert FolderCache(tmp_path).folder("key", 9, fill, LISTED) == tmp_path / "key"
    assert fill.times == 1
    released(tmp_path, "key")
    damage(tmp_path / "key")
    assert FolderCache(tmp_path).folder("key", 9, fill, LISTED) == tmp_path / "key"
    assert fill.times == 2
    assert {path.name for path in (tmp_path / "key").iterdir()} == {"config.json", "model.safetensors", "files.json"}
    assert (tmp_path / "key" / "model.safetensors").read_text() == "weights"
    assert "damaged" in caplog.text


def test_a_model_with_a_file_where_the_list_has_to_be_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The list would take its place, and a server would read that."""

    def fill(folder: Path) -> Mapping[str, str]:
        (folder / "files.json").write_text("{}")
        return {"files.json": hashlib.sha256(b"{}").hexdigest()}

    assert FolderCache(tmp_path).folder("key", 9, fill) is None
    assert names(tmp_path) == set()
    assert "files.json of its own" in caplog.text


@contextmanager
def _held(root: Path, key: str) -> Iterator[None]:
    """Another pod reads a folder."""
    descriptor = os.open(root / f"{key}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    yield
    os.close(descriptor)


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` answers."""

    total: int
    used: int
    free: int


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume for two folders of 100 bytes."""

    def usage(root: Path) -> Usage:
        used = 100 * sum(not name.startswith(".") for name in names(root))
        return Usage(204, used, 204 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return tmp_path


def test_the_folder_that_was_used_longest_ago_makes_room(small: Path) -> None:
    for key, hours in (("old", 5), ("older", 9)):
        FolderCache(small).folder(key, 100, Filling())
        released(small, key, unused=hours * 3600)
    assert FolderCache(small).folder("new", 100, Filling()) == small / "new"
    assert names(small) == {"old", "new"}


def test_what_is_read_or_was_used_within_the_hour_stays(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    for key, minutes in (("read", 600), ("recent", 30)):
        FolderCache(small).folder(key, 100, Filling())
        released(small, key, unused=minutes * 60)
    fill = Filling()
    with _held(small, "read"):
        assert FolderCache(small).folder("new", 100, fill) is None
    assert (names(small), fill.times) == ({"read", "recent"}, 0)
    assert "in use" in caplog.text
    released(small, "read", unused=3 * 3600)
    assert FolderCache(small).folder("new", 100, fill) == small / "new"
    assert names(small) == {"recent", "new"}


def test_a_limit_makes_room_as_a_full_volume_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limited = FolderCache(tmp_path, limit=1000)
    for key in ("old", "read"):
        assert limited.folder(key, 9, Filling("w" * 250)) == tmp_path / key
        released(tmp_path, key, unused=9 * 3600)
    with _held(tmp_path, "read"):
        assert limited.folder("new", 400, Filling("w" * 250)) == tmp_path / "new"
        assert names(tmp_path) == {"read", "new"}
        assert limited.folder("newer", 400, Filling()) is None
    assert "in use" in caplog.text
    assert FolderCache(tmp_path).folder("newer", 400, Filling()) == tmp_path / "newer"


@pytest.mark.parametrize("size", [1001, 900])
def test_what_cannot_get_room_removes_nothing(tmp_path: Path, size: int) -> None:
    """A model larger than the limit, or than what is left beside those that are read, costs the others nothing."""
    limited = FolderCache(tmp_path, limit=1000)
    for key in ("old", "read"):
        assert limited.folder(key, 9, Filling()) == tmp_path / key
        released(tmp_path, key, unused=9 * 3600)
    with _held(tmp_path, "read"):
        assert limited.folder("large", size, Filling()) is None
    assert names(tmp_path) == {"old", "read"}


def test_a_model_may_be_as_large_as_the_limit(tmp_path: Path) -> None:
    """The operator starts such pods; what a file system needs besides is no part of the limit."""
    limited = FolderCache(tmp_path, limit=1000)
    assert limited.folder("old", 9, Filling()) == tmp_path / "old"
    released(tmp_path, "old", unused=9 * 3600)
    assert limited.folder("large", 1000, Filling()) == tmp_path / "large"
    assert names(tmp_path) == {"large"}


def test_what_a_running_pod_holds_stays_whenever_it_was_fetched(small: Path) -> None:
    """By its lock; and, where locks do not reach, because it renews its use."""
    for key in ("held", "renewed"):
        FolderCache(small).folder(key, 100, Filling())
        released(small, key, unused=9 * 3600)
    held, renewed = FolderCache(small).hold("held"), FolderCache(small).hold("renewed")
    held()
    aged(small / "held.lock", 9 * 3600)
    renewed()
    released(small, "renewed", unused=9 * 3600)
    (small / "renewed.lock").touch()
    assert FolderCache(small).folder("new", 100, Filling()) is None
    assert names(small) == {"held", "renewed"}
    held()
    assert time.time() - (small / "held.lock").stat().st_mtime < 60
    released(small, "held", unused=9 * 3600)
    assert FolderCache(small).folder("new", 100, Filling()) == small / "new"
    assert names(small) == {"renewed", "new"}


def test_a_volume_that_is_full_after_all_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill(folder: Path) -> Mapping[str, str]:
        (folder / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    caplog.set_level(logging.WARNING)
    assert FolderCache(tmp_path).folder("key", 0, fill) is None
    assert "No space left on device" in caplog.text
    assert names(tmp_path) == set()
    assert FolderCache(tmp_path).folder("key", 0, Filling()) == tmp_path / "key"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_volume_without_locks_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    fill = Filling()
    assert FolderCache(tmp_path).folder("key", 9, fill) is None
    assert fill.times == 0
    assert os.strerror(code) in caplog.text


def test_a_volume_that_is_not_there_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert FolderCache(tmp_path / "none").folder("key", 9, Filling()) is None
    assert "No such file" in caplog.text


def test_what_the_store_refuses_is_told_as_without_a_cache(tmp_path: Path) -> None:
    def fill(folder: Path) -> Mapping[str, str]:
        (folder / "model.safetensors").write_text("half")
        raise StageError(Reason.S3_ACCESS_DENIED, "no")

    with pytest.raises(StageError):
        FolderCache(tmp_path).folder("key", 9, fill)
    assert names(tmp_path) == set()
