"""The stand-in for vLLM as processes that are forked from one that has imported it: its imports take ten times as long
as what a tiny model is asked.

``python -m tests.support.vllm_forked SOCKET`` waits for whoever is started in the place of vLLM's Python (``PROGRAM``),
and forks for each: the fork has its arguments, environment, folder, input and outputs, and each ends with the other.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.support import forked

STAND_IN: Final = Path(__file__).parent / "vllm_stand_in"
"""The folder that holds the package ``vllm``."""
PROGRAM: Final = """#!/bin/sh
exec {python} -I -S -c '
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asked.connect("{door}")
message = dict(arguments=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd())
socket.send_fds(asked, [json.dumps(message).encode()], [0, 1, 2])
os.close(0)
os.close(1)
os._exit((asked.recv(1) or bytes([1]))[0])
' "$@"
"""
_LONGEST: Final = 1 << 20
"""Bytes of a message."""
_POLL_SECONDS: Final = 5.0


@contextmanager
def waiting(folder: Path) -> Iterator[Path]:
    """A program that stands for vLLM's Python, below ``folder``, while there is a process to fork from."""
    door, program = folder / "door", folder / "python"
    program.write_text(PROGRAM.format(python=sys.executable, door=door))
    program.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    process = forked.start([__name__, str(door)], environment, folder / "log")
    try:
        while not door.exists():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        yield program
    finally:
        process.kill()
        process.wait(30)


def main(door: str) -> None:
    """Import the stand-in, then fork for each that asks; ends with whoever started it, if it is not killed."""
    parent = os.getppid()
    sys.path.insert(0, str(STAND_IN))
    for name in ("peft", "vllm.lora.request"):
        __import__(name)
    gc.freeze()  # as in the nursery
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{door}.new")
        listening.listen()
        Path(f"{door}.new").rename(door)
        while os.getppid() == parent:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # nobody else asks how they have ended
                    pass
            if not select.select([listening], [], [], _POLL_SECONDS)[0]:
                continue
            asked, _ = listening.accept()
            if os.fork() == 0:
                try:
                    _serve(asked)
                finally:
                    os._exit(0)
            asked.close()


def _serve(asked: socket.socket) -> None:
    """Fork, and end when the fork or who asked for it does."""
    message, files, _, _ = socket.recv_fds(asked, _LONGEST, 3)
    given = json.loads(message)
    pid = os.fork()
    if pid == 0:
        os.chdir(given["folder"])
        forked.become([each for each in given["arguments"] if each != "-P"], given["environment"], files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, asked.fileno()], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BrokenPipeError):
        asked.send(bytes([code % 256]))


if __name__ == "__main__":
    main(sys.argv[1])
