"""Output to the terminal, and the one way to run another program."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class ClusterError(Exception):
    """Something that the local cluster needs is missing or failed; the message says what, where, and what to do."""


def say(message: str) -> None:
    print(message, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step that takes a while; at its end, print how long it took."""
    say(f"  … {title}")
    begin = time.monotonic()
    yield
    say(f"  ✓ {title} ({time.monotonic() - begin:.1f} s)")


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    Raises:
        ClusterError: the program is missing, failed or exceeded ``timeout`` seconds; includes the end of its output.
    """
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command, input=stdin, env=env, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        remedy = "run `make cluster-tools`" if command[0].startswith("/") else "install it"
        raise ClusterError(f"{command[0]}: not found; {remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(command[:3])}: timed out after {timeout:.0f} s") from error
    if done.returncode != 0:
        output = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ClusterError(f"{' '.join(command[:4])}: exit code {done.returncode}\n{output}")
    return done.stdout


def succeeds(argv: Sequence[str | Path], timeout: float = 10) -> bool:
    """Whether a program runs and exits with 0: for readiness probes."""
    try:
        run(argv, timeout=timeout)
    except ClusterError:
        return False
    return True
