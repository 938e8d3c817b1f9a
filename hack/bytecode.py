"""What Python has compiled of the libraries, for the next clone.

Its first process that imports a training would otherwise compile for one and a half minutes of CPU, and so would each
that starts beside it.

Files are linked from one environment into the next one with the same lock file. Python takes such a file only for a
source of the very size and time, which uv leaves as they are in its cache, so that nothing here can be out of date.
Standard library only, as ``hack.environments``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from hack.cluster.layout import REPOSITORY, cache_directory

_KEPT: Final = 2
"""Lock files whose compiled libraries stay: the newest, 170 MB each."""


def shared() -> Path:
    """Where those of this checkout's lock file are, of any Python: their names tell them apart."""
    key = hashlib.sha256((REPOSITORY / "uv.lock").read_bytes()).hexdigest()[:16]
    return cache_directory() / "bytecode" / key


def seed(environment: Path, place: Path) -> None:
    """Give an environment what others have compiled and it has not. What fails, on a full disk or as another clone
    removes it, costs only time."""
    with suppress(OSError):
        for libraries in _libraries(environment):
            for compiled in place.rglob("*.pyc"):
                target = libraries / compiled.relative_to(place)
                if target.parent.parent.is_dir():
                    _link(compiled, target)


def share(environment: Path, place: Path) -> None:
    """Put what an environment has compiled where the next one finds it, and remove what no clone has used lately. What
    fails costs only the next clone's time."""
    with suppress(OSError):
        for libraries in _libraries(environment):
            for compiled in libraries.rglob("*.pyc"):
                _link(compiled, place / compiled.relative_to(libraries))
        os.utime(place)
        for old in sorted(place.parent.iterdir(), key=lambda each: each.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _libraries(environment: Path) -> list[Path]:
    return list(environment.glob("lib/python3.*/site-packages"))


def _link(source: Path, target: Path) -> None:
    """Unless something is there. Whole at once, since a process may be about to read it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        os.link(source, new)
    except OSError:  # another file system
        shutil.copy2(source, new)
    new.replace(target)
    new.unlink(missing_ok=True)  # it stays if the target has become the same file meanwhile
