"""Programs of the jobs as real processes without their imports: ``python -m NAME``, or ``python FILE``, forked from one
that has made them.

The imports of a training take seconds of CPU, more than a training of the tiny model. A process of its own (the
nursery) makes them once for each worker of the tests, has no threads, and forks for every start; what it forks has the
environment, arguments, outputs, signals and exit code of a program that was started. A training that starts processes
itself forks these likewise. Tests of the start itself go without: ``start_process(..., fresh=True)``.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

IMPORTED: Final = (
    "finetune_jobs.evaluation",
    "finetune_jobs.training.learning_curve",
    "finetune_jobs.training.trainer",
    "tgi_cpu.checkpoint",
    "tgi_cpu.server",
    "uvicorn",
)
"""What the nursery imports; the programs themselves are not among it, since each runs as ``__main__``."""
OF_EXPORT: Final = ("finetune_jobs.exporting.merge", "finetune_jobs.exporting.quantize")
"""What that of another Python imports: the one of the stage export, whose pins exclude those of the tests."""
OF_WITHIN: Final = ("finetune_jobs.runtime.runner", "safetensors.torch")
"""What that of another place imports, which few programs need."""
NEW_MOUNTS: Final = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")))
"""A view of the mounts of its own, so that nothing is left behind."""
HASH_SEED: Final = "1"
"""``PYTHONHASHSEED`` of all that is forked: Python has read it by then."""
GC_THRESHOLD: Final = 50_000
"""How many more objects than before make Python look for cycles, of which tests and tiny models leave few: its own
threshold, 700, makes that a fifth of a training."""
_POLL_SECONDS: Final = 0.02


class Forked:
    """A process that the nursery forked, with what tests use of ``subprocess.Popen``."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._folder = folder

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        ended = self._folder / "code"
        if self.returncode is None and ended.exists():
            self.returncode = int(ended.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(_POLL_SECONDS)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Its output and its errors, once it has ended."""
        self.wait(timeout)
        return (self._folder / "out").read_bytes(), (self._folder / "err").read_bytes()

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # the nursery has reaped it and is about to say so
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` with its outputs captured as text, of what ``start`` starts."""
    process = start(command, environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess([*command], process.wait(), out.decode(), err.decode())


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Path | None = None,
    python: str = sys.executable,
    within: tuple[str, ...] = (),
) -> Forked:
    """As ``subprocess.Popen([*within, python, "-m", *command], env=environment)``, or without ``-m`` where the first
    word is a file's path; its outputs are kept for ``communicate``, or go to one file. What is ``within`` the same
    command shares what that has made, e.g. a view of the mounts, and finds fewer imports made."""
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    outputs = [str(output or folder / "out"), str(output or folder / "err")]
    asked = {"command": [*command], "environment": {**environment}, "folder": str(folder), "outputs": outputs}
    nursery = _nursery(python, within)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(json.dumps(asked).encode() + b"\n")
    nursery.stdin.flush()
    return Forked(int(nursery.stdout.readline()), folder)


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="finetune-nursery-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _nursery(python: str, within: tuple[str, ...]) -> subprocess.Popen[bytes]:
    home = {"HOME": str(_folder()), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": HASH_SEED}
    imported = OF_WITHIN if within else IMPORTED if python == sys.executable else OF_EXPORT
    command = [*within, python, "-m", __name__, *imported]
    nursery = subprocess.Popen(command, env=os.environ | home, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(nursery.kill)
    return nursery


# In the nursery -------------------------------------------------------------------------------------------------------


def main(imported: Sequence[str]) -> None:
    """Import these, then fork for each line of the input; ends with it."""
    with redirect_stdout(sys.stderr):  # what llm-compressor says would be taken for an answer
        for name in imported:
            __import__(name)
    gc.freeze()  # what is imported stays: no garbage collector of a program need look through it
    gc.set_threshold(GC_THRESHOLD)
    running: dict[int, Path] = {}
    asked_for = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - what is in a buffer would hide from select
    while True:
        _reap(running)
        if not select.select([asked_for], [], [], _POLL_SECONDS if running else None)[0]:
            continue
        line = asked_for.readline()
        if not line:
            return
        asked = json.loads(line)
        folder = Path(asked["folder"])
        pid = os.fork()
        if pid == 0:
            outputs = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in asked["outputs"]]
            become(asked["command"], asked["environment"], [os.open(os.devnull, os.O_RDONLY), *outputs])
        running[pid] = folder
        print(pid, flush=True)


def _reap(running: dict[int, Path]) -> None:
    """Tell of the processes that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        folder = running.pop(pid)
        (folder / "code.new").write_text(str(os.waitstatus_to_exitcode(status)))
        (folder / "code.new").rename(folder / "code")


def become(command: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> NoReturn:
    """Be the program: its environment and arguments, and these files as its input and outputs, as far as they go;
    nothing of the nursery's is left but its imports."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    # A program that forks may have put its own in their place.
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    tempfile.tempdir = None
    vars(subprocess)["Popen"] = _start_in_the_program
    sys.argv = [command[0], *command[1:]]
    code: object = 0
    try:
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


class _Child:
    """What a program started, as its parent sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_Popen: Final = subprocess.Popen


def _start_in_the_program(command: Sequence[str], env: Mapping[str, str] | None = None, **options: object) -> object:
    """A Python program is forked, and has its parent's outputs; any other one is started."""
    if options or env is None or list(command[:2]) != [sys.executable, "-m"]:
        return _Popen(command, env=env, **options)  # type: ignore[call-overload]
    pid = os.fork()
    if pid == 0:
        become(command[2:], env, [os.open(os.devnull, os.O_RDONLY)])
    return _Child(pid)


if __name__ == "__main__":
    main(sys.argv[1:])
