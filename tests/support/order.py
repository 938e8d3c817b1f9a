"""The order of test files for several workers, each of which takes the next file when it has done with one.

Long ones come first, so that no worker ends long before the others; files that mostly wait for an API server take turns
with those that compute.
"""

from __future__ import annotations

from itertools import chain, groupby, zip_longest

import pytest


def long_files_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files of the control plane and slow ones in turn, then all others; within a file nothing changes."""
    files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    waiting = [file for file in files if _is(file, "controlplane")]
    computing = [file for file in files if _is(file, "slow") and not _is(file, "controlplane")]
    others = [file for file in files if file not in waiting and file not in computing]
    turns = chain.from_iterable(zip_longest(waiting, computing, fillvalue=[]))
    return list(chain.from_iterable([*turns, *others]))


def _is(file: list[pytest.Item], marker: str) -> bool:
    return any(item.get_closest_marker(marker) for item in file)
