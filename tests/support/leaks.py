"""What a file of tests must leave as it found it, for the files that follow in the same process.

Which files share a process depends on how long others take, so that what one of them leaves behind fails another one
now and then, far from its cause.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import is_
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

_PATCHED: Final = ("finetune_api.", "finetune_jobs.", "finetune_operator.", "hack.", "tgi_cpu.", "transformers.models.")
"""Packages whose functions and classes tests replace, or let the product replace."""
_VARIABLE: Final = "the variable "
_OWN: Final = ("PYTEST_", "KMP_", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that pytest changes itself, and that libraries set for themselves: scikit-learn for OpenMP when it is
imported, torch's compiler once it has chosen a folder."""
_REPLACED: Final = (FunctionType, BuiltinFunctionType, type)


@dataclass(frozen=True)
class Places:
    """What is looked at, by a name for people."""

    process: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Any]]
    """The names in each module, by its name."""


def places() -> Places:
    """All of them as they are now."""
    return Places(
        process={
            "the working directory": Path.cwd(),
            "the default type of tensors": _of_torch("get_default_dtype"),
            "the threads of torch": _of_torch("get_num_threads"),
            "the HTTP client of huggingface_hub": _client_factory(),
            "the level of the root logger": logging.getLogger().level,
            "the handler of SIGTERM": signal.getsignal(signal.SIGTERM),
            "the handler of SIGINT": signal.getsignal(signal.SIGINT),
            **{f"{_VARIABLE}{name}": value for name, value in os.environ.items() if not name.startswith(_OWN)},
        },
        modules={
            name: dict(vars(loaded))
            for name, loaded in list(sys.modules.items())
            if name.startswith(_PATCHED) and isinstance(loaded, ModuleType)
        },
    )


def left_behind(before: Places, after: Places) -> list[str]:
    """What is otherwise than before. A module's functions that are new, or gone, do not count: modules are imported,
    and some give their names to others then. Nor does what a library says that was imported since."""
    known, now = before.process, after.process
    variables = {name for name in {*known, *now} if name.startswith(_VARIABLE)}
    others = {name for name in known.keys() & now.keys() if known[name] is not None}
    changed = [name for name in variables | others if _is_another(known.get(name), now.get(name))]
    modules = before.modules.keys() & after.modules.keys()
    return sorted([*changed, *(name for each in modules for name in _replaced(each, before, after))])


def _replaced(module: str, before: Places, after: Places) -> Iterator[str]:
    """The functions and classes of a module that are others now. In most modules nothing has changed."""
    known, now = before.modules[module], after.modules[module]
    if len(known) == len(now) and all(map(is_, known.values(), now.values())):
        return
    for name in known.keys() & now.keys():
        if isinstance(known[name], _REPLACED) and isinstance(now[name], _REPLACED) and known[name] != now[name]:
            yield f"{module}.{name}"


def _is_another(before: Any, after: Any) -> bool:
    return before is not after and before != after


def _client_factory() -> Any:
    """What makes it, if the library was imported; it has no public name."""
    return getattr(sys.modules.get("huggingface_hub.utils._http"), "_GLOBAL_CLIENT_FACTORY", None)


def _of_torch(name: str) -> Any:
    """What torch says, if it was imported."""
    torch = sys.modules.get("torch")
    return getattr(torch, name)() if torch else None
