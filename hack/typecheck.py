"""``python -m hack.typecheck``: mypy, for which a new clone begins with what the last one has found.

mypy checks a file anew if its text, or that of what it imports, is another one, wherever the clone lies. Without a
cache it takes a minute of CPU. Each clone has a cache of its own, since mypy's would not be safe for two at a time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from hack.cluster.layout import REPOSITORY, cache_directory

OWN: Final = ".mypy_cache"
_DONE: Final = (0, 1)
"""mypy's exit codes after a whole run, without and with errors in the code."""


def seed(own: Path, shared: Path) -> None:
    """Give a clone that has no cache a copy of the shared one, if there is any: all of it, since mypy ends with an
    internal error by a part of one."""
    if own.exists() or not shared.exists():
        return
    with tempfile.TemporaryDirectory(dir=own.parent, prefix=".mypy-") as folder, suppress(OSError):
        shutil.copytree(shared, Path(folder, "new")).rename(own)  # fails if another clone replaces it meanwhile


def share(own: Path, shared: Path) -> None:
    """Put a copy of a clone's cache in the place of the shared one. Of two at the same moment, one does. What fails
    costs only the next clone's time."""
    with suppress(OSError):
        shared.parent.mkdir(parents=True, exist_ok=True)
        _replace(shared, own)


def _replace(shared: Path, own: Path) -> None:
    with tempfile.TemporaryDirectory(dir=shared.parent, prefix="mypy-") as folder:
        new = Path(shutil.copytree(own, Path(folder, "new")))
        if shared.exists():
            shared.rename(Path(folder, "old"))
        new.rename(shared)


def main() -> int:
    """mypy's exit code."""
    own, shared = REPOSITORY / OWN, cache_directory() / "mypy"
    seed(own, shared)
    command = [sys.executable, "-m", "mypy", f"--cache-dir={own}"]
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code in _DONE and own.exists():
        share(own, shared)
    return code


if __name__ == "__main__":
    sys.exit(main())
