"""mypy's cache: a new clone begins with that of the last one, and no clone works on another's."""

import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from hack.typecheck import seed, share

pytestmark = pytest.mark.unit


def cache(folder: Path, text: str) -> Path:
    (folder / "3.11").mkdir(parents=True)
    (folder / "3.11" / "cache.0.db").write_text(text)
    return folder


def text_of(folder: Path) -> str:
    return (folder / "3.11" / "cache.0.db").read_text()


def test_the_next_clone_begins_with_what_the_last_one_found(tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "mypy"
    seed(tmp_path / "first", shared)
    assert not (tmp_path / "first").exists(), "nobody has shared any"
    for number in (1, 2):
        share(cache(tmp_path / f"clone-{number}", f"found by {number}"), shared)
    seed(tmp_path / "next", shared)
    assert text_of(tmp_path / "next") == "found by 2"
    assert [each.name for each in shared.parent.iterdir()] == ["mypy"], "nothing is left beside it"
    (tmp_path / "next" / "3.11" / "cache.0.db").write_text("its own")
    assert text_of(shared) == "found by 2"


def test_a_clone_keeps_a_cache_that_it_has(tmp_path: Path) -> None:
    share(cache(tmp_path / "other", "another clone's"), tmp_path / "shared")
    seed(cache(tmp_path / "own", "its own"), tmp_path / "shared")
    assert text_of(tmp_path / "own") == "its own"


def test_a_cache_that_vanishes_is_not_shared_in_parts(tmp_path: Path) -> None:
    shared = cache(tmp_path / "shared", "whole")
    share(tmp_path / "vanished", shared)
    assert text_of(shared) == "whole"
    (shared / "3.11" / "dangling").symlink_to(tmp_path / "nowhere")
    seed(tmp_path / "own", shared)
    assert not (tmp_path / "own").exists()


def test_who_interrupts_the_copying_has_no_part_of_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mypy would end with an internal error from then on."""
    shared = cache(tmp_path / "shared", "whole")

    def interrupted(_: Path, to: Path) -> NoReturn:
        cache(to, "who")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copytree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seed(tmp_path / "own", shared)
    assert [each.name for each in tmp_path.iterdir()] == ["shared"]


def test_a_cache_that_cannot_be_written_fails_no_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    share(cache(tmp_path / "own", "found"), tmp_path / "file" / "mypy")
    assert (tmp_path / "file").read_text() == "no folder"
