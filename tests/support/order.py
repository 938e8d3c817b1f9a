"""The order of test files for several workers, each of which takes the next file when it has done with one: long ones
come first, so that no worker ends long before the others."""

from __future__ import annotations

from itertools import chain, groupby
from pathlib import Path
from typing import Final

import pytest

LONGEST: Final = (
    "test_waiting.py",
    "test_tool_pipeline.py",
    "test_train_kernels.py",
    "test_train_divided.py",
    "test_export.py",
    "test_gpu_check.py",
)
"""Files that take a minute of one core, or of waiting."""


def long_files_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The longest files, those with a slow test, all others; otherwise nothing changes."""
    files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    files.sort(key=_turn)
    return list(chain.from_iterable(files))


def _turn(file: list[pytest.Item]) -> int:
    name = Path(file[0].path).name
    if name in LONGEST:
        return LONGEST.index(name) - len(LONGEST)
    return int(not any(item.get_closest_marker("slow") for item in file))
