"""What a file of tests leaves behind is found, and what it may leave is not."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from finetune_api import hashing
from tests.support.leaks import left_behind, places


@pytest.mark.unit
def test_what_is_not_put_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = places()
    monkeypatch.setattr(hashing, "digest", len)
    monkeypatch.setenv("NEW_HERE", "1")
    monkeypatch.delenv("PATH")
    changed = left_behind(before, places())
    monkeypatch.undo()
    assert changed == ["finetune_api.hashing.digest", "the variable NEW_HERE", "the variable PATH"]
    assert os.environ["PATH"]
    assert left_behind(before, places()) == []


@pytest.mark.unit
def test_modules_may_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = places()
    new = ModuleType("finetune_api.new_here")
    vars(new)["function"] = len
    monkeypatch.setitem(sys.modules, "finetune_api.new_here", new)
    assert left_behind(before, places()) == []


@pytest.mark.unit
def test_a_library_that_is_imported_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says was not known before."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    before = places()
    new = ModuleType("torch")
    vars(new).update(get_default_dtype=lambda: "float32", get_num_threads=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", new)
    now = places()
    assert left_behind(before, now) == []
    vars(new)["get_num_threads"] = lambda: 1
    assert left_behind(now, places()) == ["the threads of torch"]
