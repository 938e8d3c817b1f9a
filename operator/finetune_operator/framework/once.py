"""What follows from one observation is worked out once, however many parts of a plan ask for it."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

O = TypeVar("O")  # noqa: E741 - what was observed
R = TypeVar("R")


def once(function: Callable[[O], R]) -> Callable[[O], R]:
    """A pure function of an observation, which keeps its result with that: ``functools.cached_property`` for functions
    in modules above. Another observation, as ``dataclasses.replace`` makes it, knows nothing of it."""
    name = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def kept(observed: O) -> R:
        known = vars(observed)
        if name not in known:
            known[name] = function(observed)
        result: R = known[name]
        return result

    return kept
