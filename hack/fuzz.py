"""``make fuzz``: the tests that draw their input, with new seeds until the time is up.

``python -m hack.fuzz MINUTES [FILE …]``: of those files only, or of all.

`make test` draws the same input each time. Here nothing is remembered between rounds: a failure ends the search, and
the report of the test shows the line ``@example(...)`` to commit with it.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Sequence

from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY


def command(seed: int, files: Sequence[str] = ()) -> list[str]:
    """One round: every test (of ``files``, if there are any) that draws, from this seed, and no other."""
    chosen = ["-m", "unit and hypothesis", "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", *files]
    return [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *chosen]


def main(arguments: Sequence[str]) -> int:
    """Explore for so many minutes; returns the exit code of the round that found something, else 0."""
    minutes, *files = arguments
    end = time.monotonic() + 60 * float(minutes)
    rounds = 0
    while time.monotonic() < end:
        seed = secrets.randbelow(1 << 32)
        rounds += 1
        say(f"fuzz: round {rounds}, seed {seed}")
        if code := subprocess.run(command(seed, files), cwd=REPOSITORY, check=False).returncode:
            say(f"fuzz: seed {seed} failed. Mend it, and commit the @example(...) that its report shows.")
            return code
    say(f"fuzz: nothing found in {rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
