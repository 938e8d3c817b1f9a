"""What a file of tests must leave as it found it, for the files that follow in the same process.

Which files share a process depends on how long others take, so that what one of them leaves behind fails another one
now and then, far from its cause.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

_PATCHED: Final = ("finetune_api.", "finetune_jobs.", "finetune_operator.", "hack.", "tgi_cpu.", "transformers.models.")
"""Packages whose functions and classes tests replace, or let the product replace."""
_VARIABLE: Final = "the variable "
_OWN: Final = ("PYTEST_", "KMP_")
"""Variables that pytest changes itself, and that scikit-learn sets for OpenMP when it is imported."""

Places = Mapping[str, Any]


def places() -> Places:
    """What is looked at, by a name for people."""
    return {
        "the working directory": Path.cwd(),
        "the default type of tensors": _of_torch("get_default_dtype"),
        "the threads of torch": _of_torch("get_num_threads"),
        "the level of the root logger": logging.getLogger().level,
        "the handler of SIGTERM": signal.getsignal(signal.SIGTERM),
        "the handler of SIGINT": signal.getsignal(signal.SIGINT),
        **{f"{_VARIABLE}{name}": value for name, value in os.environ.items() if not name.startswith(_OWN)},
        **{
            f"{module}.{name}": value
            for module, loaded in list(sys.modules.items())
            if module.startswith(_PATCHED) and isinstance(loaded, ModuleType)
            for name, value in vars(loaded).items()
            if isinstance(value, FunctionType | BuiltinFunctionType | type)
        },
    }


def left_behind(before: Places, after: Places) -> list[str]:
    """What is otherwise than before. A module's functions that are new, or gone, do not count: modules are imported,
    and some give their names to others then."""
    variables = {name for name in {*before, *after} if name.startswith(_VARIABLE)}
    return sorted(
        name
        for name in variables | (before.keys() & after.keys())
        if before.get(name) is not after.get(name) and before.get(name) != after.get(name)
    )


def _of_torch(name: str) -> Any:
    """What torch says, if it was imported."""
    torch = sys.modules.get("torch")
    return getattr(torch, name)() if torch else None
