"""How the cost of something grows. Limits in seconds would hold on a fast machine and fail on a slow one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

_TIMES: Final = 4
_MOST: Final = 10
"""Times the cost: linear work takes four, quadratic work sixteen."""
_LEAST_SECONDS: Final = 0.01
"""Less is mostly noise."""
_TRIES: Final = 3


def assert_grows_with_the_size_only(work: Callable[[int], object], size: int) -> None:
    """Four times the size takes about four times as long, not sixteen times. The first call, of that size too, is for
    what is imported or compiled once. Where it looks otherwise, it is measured anew: a machine that became slower in
    between makes linear work look quadratic once, and quadratic work is that each time."""
    work(size)
    said = []
    for _ in range(_TRIES):
        first, second = (_cpu_seconds(work, each) for each in (size, _TIMES * size))
        if second < _MOST * max(first, _LEAST_SECONDS):
            return
        said.append(f"{size}: {first:.3f} s, {_TIMES} times as much: {second:.3f} s")
    raise AssertionError("; ".join(said))


def _cpu_seconds(work: Callable[[int], object], size: int) -> float:
    collects = gc.isenabled()
    gc.disable()  # a collection over every module takes longer than much of this work
    try:
        begin = time.process_time()
        work(size)
        return time.process_time() - begin
    finally:
        if collects:
            gc.enable()
