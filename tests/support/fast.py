"""``pytest --fast``: unit tests that are pure logic. Torch, processes and connections are out of their reach.

A test that needs one of them, or takes long, is marked ``slow``, by itself or with its whole module. Of a module that
is marked, not even the imports are made.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any, Final

_MARKED: Final = re.compile(r"^pytestmark = .*\bpytest\.mark\.(slow|controlplane|cluster|vllm)\b", re.MULTILINE)
MOST_SECONDS: Final = 0.1
"""What a test may take of a CPU that does nothing else; of a parametrized one, its cases on average."""
_CLEARLY: Final = 5
"""A test is named that took so many times as long: other programs make CPU seconds two or three times as long."""
_TIERS: Final = {"controlplane", "cluster", "vllm"}
_FORBIDDEN: Final = {
    "subprocess.Popen": "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.exec": "starts a process",
    "socket.bind": "opens a socket",
    "socket.connect": "opens a socket",
    "socket.getaddrinfo": "asks for an address",
}
"""Python's audit events, and what they are."""
MEASURED: Final = {
    "test_input_keys.py": 2.8,
    "test_adapterdeployment_last_good.py": 2.2,
    "test_adapterdeployment_history.py": 1.7,
    "test_adapterdeployment_canary.py": 1.5,
    "test_dataset_near_duplicates.py": 1.4,
    "test_dataset_split.py": 1.4,
    "test_adapterdeployment_gap.py": 1.2,
    "test_adapterdeployment_route_weights.py": 1.2,
    "test_messages_goals.py": 1.0,
    "test_adapterdeployment_failure.py": 1.1,
}
"""CPU seconds of the files that take longest. Only what they take beside each other matters."""
_BYTES_A_SECOND: Final = 50_000
"""So much of other files is read and run in a CPU second."""
_BEYOND: Final = 0.2
"""So much of an even share a part may have beside it: two long files may be neighbours."""
_seen: Final[list[str]] = []


class NotFastError(RuntimeError):
    """A test that is not marked slow has done what takes long."""


def share(examples: int) -> int:
    """How many of the examples of a long test are drawn: all, or a tenth with ``--fast``."""
    return max(1, examples // 10) if sys.modules.get("torch", sys) is None else examples


def is_left_out(path: Path) -> bool:
    """Whether no test of a module, or of a folder with a tier of its own, is fast: not even its fixtures are read."""
    if path.is_dir():
        return path.name in _TIERS
    return path.suffix == ".py" and _MARKED.search(path.read_text(encoding="utf-8")) is not None


def is_of_another(path: Path, part: int, parts: int) -> bool:
    """Whether a file of tests is in another one of so many parts."""
    return parts > 1 and path.name.startswith("test_") and path not in divided(path.parent, parts)[part]


@cache
def divided(folder: Path, parts: int) -> list[list[Path]]:
    """The fast files of a folder in so many parts, each with a file, which take about as long. Those that test the
    operator stand together, and so do neighbours by name, since they import the same things."""
    texts = {path: path.read_text(encoding="utf-8") for path in folder.glob("test_*.py") if not is_left_out(path)}
    files = deque(sorted(texts, key=lambda path: ("finetune_operator" not in texts[path], path.name)))
    left = sum(map(seconds, files))
    found: list[list[Path]] = []
    for others in reversed(range(parts)):
        part: list[Path] = []
        room = left / (others + 1)
        beyond = _BEYOND * room
        while len(files) > others and (not part or seconds(files[0]) / 2 <= room >= seconds(files[0]) - beyond):
            part.append(files.popleft())
            room -= seconds(part[-1])
        left -= sum(map(seconds, part))
        found.append(part)
    return found


def seconds(path: Path) -> float:
    """How long a file takes: as measured, or by its size."""
    return MEASURED.get(path.name, path.stat().st_size / _BYTES_A_SECOND)


def forbid_torch() -> None:
    """From now on it cannot be imported, as in an image without it."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # this is how Python says that a module is not there


def forbid_grammars() -> None:
    """jsonschema, imported, makes a parser of international addresses where it can, which takes two seconds in each
    worker. No schema here has such addresses."""
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]


def forbid_processes_and_connections() -> None:
    """From now on none can be made."""
    sys.addaudithook(_refuse)


def too_long(took: dict[str, float]) -> list[str]:
    """Lines that name the tests which took so many CPU seconds, and clearly are to be marked, the longest first."""
    longest = sorted(took.items(), key=lambda each: each[1], reverse=True)
    return [f"{spent:.1f} s  {test}" for test, spent in longest if spent > _CLEARLY * MOST_SECONDS]


def forbidden() -> str:
    """What was forbidden and tried since the last call, whether or not the error was caught."""
    done = ", ".join(dict.fromkeys(_seen))
    _seen.clear()
    return done


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN:
        _seen.append(_FORBIDDEN[event])
        raise NotFastError(f"a test that is not marked slow {_FORBIDDEN[event]}")
