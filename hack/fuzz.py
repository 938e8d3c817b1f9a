"""``make fuzz``: the tests that draw their input, with new seeds until the time is up.

``python -m hack.fuzz WORKERS MINUTES [FILE …]``: of those files only, or of all.

`make test` draws the same input each time. Here nothing is remembered between rounds: a failure ends the search, and
the report of the test shows the line ``@example(...)`` to commit with it. Once the time is up, no test of the round
begins; one that has begun goes on, so that what it finds is not lost.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

import pytest

from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY

UNTIL: Final = "FUZZ_UNTIL"
"""Variable with the time, in seconds since 1970, from which no test begins."""


def command(seed: int, workers: int, files: Sequence[str] = ()) -> list[str]:
    """One round: every test (of ``files``, if there are any) that draws, from this seed, and no other. Those of the
    cluster's tiers draw nothing."""
    chosen = ["-m", "hypothesis and (unit or controlplane)", "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
    return [
        *(sys.executable, "-m", "pytest", "-q", "-p", "hack.fuzz", "-n", str(workers), "--dist", "worksteal"),
        *(*chosen, *files),
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Of each test of a round, which has this module as a plugin."""
    if time.time() >= float(os.environ[UNTIL]):
        pytest.skip("the time is up")


def ended_with(code: int, seed: int, files: Sequence[str]) -> str:
    """Why a round with this exit code of pytest ended the search, and what to do."""
    if code in (pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.USAGE_ERROR):
        return f"fuzz: nothing was tried: no test of {' '.join(files)} draws its input. Name files that have an @given."
    if code == pytest.ExitCode.TESTS_FAILED:
        return f"fuzz: seed {seed} failed. Mend it, and commit the @example(...) that its report shows."
    return f"fuzz: pytest ended with {code}, and what it printed says why. Nothing is known of seed {seed}."


def main(arguments: Sequence[str]) -> int:
    """Explore for so many minutes; returns the exit code of the round that found something, else 0."""
    workers, minutes, *files = arguments
    end = time.time() + 60 * float(minutes)
    environment = {**os.environ, UNTIL: str(end)}
    rounds = 0
    while time.time() < end:
        seed = secrets.randbelow(1 << 32)
        rounds += 1
        say(f"fuzz: round {rounds}, seed {seed}")
        tried = subprocess.run(command(seed, int(workers), files), cwd=REPOSITORY, env=environment, check=False)
        if code := tried.returncode:
            say(ended_with(code, seed, files))
            return code
    say(f"fuzz: nothing found in {rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
