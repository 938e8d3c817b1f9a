"""``make test``: the tiers of tests one after the other. A failure in one does not keep the next from its turn.

What a tier needs is made first: programs, environments, models, images; where that fails, the tier has failed. At the
end a line for each tier says how it went and how long it took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY

PYTEST: Final = (sys.executable, "-m", "pytest")
BY_FILE: Final = ("--dist", "loadfile", "--no-loadscope-reorder")
"""Workers take whole files, whose tests share fixtures, in the order of ``tests.support.order``."""
MAKE: Final = ("make", "--no-print-directory")


@dataclass(frozen=True)
class Tier:
    """Commands that run in this order; the first one that fails is the last."""

    name: str
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """How a tier went."""

    tier: str
    seconds: float
    failed: str = ""
    """The command that failed, with its exit code."""


def tiers(workers: str) -> list[Tier]:
    """The first two need no cluster and share their workers; the cluster is one, and its tests take turns."""
    return [
        Tier(
            "unit and control plane",
            (
                (*MAKE, "test-needs"),
                (*PYTEST, "-n", workers, *BY_FILE, "-m", "unit or controlplane"),
            ),
        ),
        Tier("cluster", ((*MAKE, "cluster-up", "images"), (*PYTEST, "-m", "cluster"))),
    ]


def run(tier: Tier) -> Outcome:
    """Run a tier's commands in the checkout, their output on the terminal."""
    begin = time.monotonic()
    failed = ""
    for command in tier.commands:
        code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
        if code:
            failed = f"`{' '.join(command).replace(sys.executable, 'python')}` ended with {code}"
            break
    return Outcome(tier.name, time.monotonic() - begin, failed)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each tier, and one for all."""
    lines = [f"  {'✗' if each.failed else '✓'} {each.tier}: {_minutes(each)}{_why(each)}" for each in outcomes]
    failed = [each.tier for each in outcomes if each.failed]
    verdict = f"failed: {', '.join(failed)}" if failed else "every tier passed"
    return "\n".join([f"make test: {verdict}", *lines])


def _minutes(outcome: Outcome) -> str:
    minutes, seconds = divmod(round(outcome.seconds), 60)
    return f"{minutes} min {seconds} s"


def _why(outcome: Outcome) -> str:
    return f", {outcome.failed}" if outcome.failed else ""


def main(arguments: Sequence[str]) -> int:
    """Run every tier with this many workers; 1 if any failed."""
    [workers] = arguments
    outcomes = [run(tier) for tier in tiers(workers)]
    say(summary(outcomes))
    return int(any(each.failed for each in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
