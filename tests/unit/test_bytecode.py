"""Compiled libraries that a new clone takes over from the last one."""

import os
import time
from pathlib import Path

import pytest

from hack.bytecode import seed, share

pytestmark = pytest.mark.unit


def environment(folder: Path, *libraries: str) -> Path:
    """One with the sources of these."""
    for name in libraries:
        source = libraries_of(folder) / name / "__init__.py"
        source.parent.mkdir(parents=True)
        source.write_text("")
    return folder


def libraries_of(folder: Path) -> Path:
    return folder / "lib" / "python3.11" / "site-packages"


def compiled(folder: Path, name: str) -> Path:
    return libraries_of(folder) / name / "__pycache__" / "__init__.cpython-311.pyc"


def compile_(folder: Path, name: str, content: str) -> None:
    compiled(folder, name).parent.mkdir()
    compiled(folder, name).write_text(content)


def files(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_the_next_clone_has_what_the_last_one_compiled(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "lock"
    first = environment(tmp_path / "first", "torch", "peft")
    seed(first, place)
    compile_(first, "torch", "by the first")
    share(first, place)
    second = environment(tmp_path / "second", "torch", "peft")
    seed(second, place)
    assert compiled(second, "torch").read_text() == "by the first"
    assert not compiled(second, "peft").exists()
    compile_(second, "peft", "by the second")
    share(second, place)
    assert files(place) == [f"{name}/__pycache__/__init__.cpython-311.pyc" for name in ("peft", "torch")]


def test_what_a_clone_has_stays_and_what_it_lacks_gets_nothing(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "lock"
    first = environment(tmp_path / "first", "torch", "peft")
    for name in ("torch", "peft"):
        compile_(first, name, "by the first")
    share(first, place)
    other = environment(tmp_path / "other", "torch")
    compile_(other, "torch", "its own")
    seed(other, place)
    assert compiled(other, "torch").read_text() == "its own"
    assert not (libraries_of(other) / "peft").exists()


def test_only_the_newest_lock_files_have_some(tmp_path: Path) -> None:
    cache, clone = tmp_path / "cache", environment(tmp_path / "clone", "torch")
    compile_(clone, "torch", "bytes")
    for age, name in ((2000, "oldest"), (1000, "last"), (0, "newest")):
        share(clone, cache / name)
        if age:
            os.utime(cache / name, (time.time() - age,) * 2)
    assert sorted(each.name for each in cache.iterdir()) == ["last", "newest"]


def test_it_is_copied_where_it_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(_source: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    clone = environment(tmp_path / "clone", "torch")
    compile_(clone, "torch", "bytes")
    share(clone, tmp_path / "cache" / "lock")
    assert files(tmp_path / "cache") == ["lock/torch/__pycache__/__init__.cpython-311.pyc"]


def test_a_cache_that_cannot_be_written_or_read_stops_nothing(tmp_path: Path) -> None:
    clone = environment(tmp_path / "clone", "torch")
    compile_(clone, "torch", "bytes")
    (tmp_path / "cache").write_text("no folder")
    share(clone, tmp_path / "cache" / "lock")
    broken = tmp_path / "other" / "torch" / "__pycache__" / "new.cpython-311.pyc"
    broken.parent.mkdir(parents=True)
    broken.symlink_to(tmp_path / "removed meanwhile")
    seed(clone, tmp_path / "other")
    assert compiled(clone, "torch").read_text() == "bytes"
