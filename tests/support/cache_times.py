"""Time that passes over the folders of a model cache."""

import os
import time
from pathlib import Path


def aged(path: Path, seconds: float) -> None:
    """Let a file look that old."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def released(root: Path, key: str, *, unused: float = 0) -> None:
    """What happens when the process that reads a folder ends: its lock goes. Here: the descriptors of the lock file."""
    lock = root / f"{key}.lock"
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(lock):
                os.close(int(descriptor))
        except OSError:
            continue  # the listing's own descriptor
    aged(lock, unused)
