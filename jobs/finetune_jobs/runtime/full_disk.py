"""Whether a failure comes from a full disk, and what to say of it.

Libraries say so in ways of their own: Python and Arrow with an errno, safetensors in the text of an error of its own,
torch's writer not at all. So the disk itself is asked too, before the scratch folder is removed.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from finetune_api.budget import HardwareFacts

_CODES: Final = (errno.ENOSPC, errno.EDQUOT)
_SAID: Final = tuple(text for code in _CODES for text in (f"(os error {code})", os.strerror(code)))
"""How libraries in Rust and C++ quote the operating system."""
_NOTHING: Final = 1 << 20
"""So few free bytes are none: nothing that a stage writes fits in there."""
_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def full_disk(error: BaseException, scratch: Path, hardware: HardwareFacts | None = None) -> str:
    """What to say of a failure that comes from a full disk; empty for any other. ``scratch``: the stage's folder."""
    try:
        disk, written = shutil.disk_usage(scratch), _written(scratch)
    except OSError:
        return f"The disk that holds {scratch} is full." if is_said(error) else ""
    if not is_said(error) and disk.free >= _NOTHING:
        return ""
    size = hardware.scratch_gib if hardware else 0
    return (
        f"The disk that holds {scratch} is full. It has {_amount(disk.total)}, of which {_amount(disk.free)} are "
        f"free now; the files of this attempt take {_amount(written)}"
        f"{f', and its pod may have {size:g} GiB (scratchSize)' if size else ''}."
    )


def is_said(error: BaseException) -> bool:
    """Whether an exception says that a disk is full; closing the unwritten file may have raised another one."""
    return any(
        (isinstance(each, OSError) and each.errno in _CODES) or any(text in str(each) for text in _SAID)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _written(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _amount(count: int) -> str:
    unit, name = next((each for each in _UNITS if count >= each[0]), (1, "bytes"))
    return f"{count / unit:.1f} {name}" if unit > 1 else f"{count} {name}"
