"""``make test``: the tiers of tests one after the other. A failure in one does not keep the next from its turn.

``python -m hack.tiers WORKERS`` runs them all; ``python -m hack.tiers WORKERS fast`` is ``make test-fast``.

What a tier needs is made first: programs, environments, models, images; where that fails, the tier has failed. At the
end the last lines of each test that failed come once more, for logs that are cut in the middle. Then a line for each
tier says how it went and how long it took.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Final
from xml.etree import ElementTree

from hack import bytecode
from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY

PYTEST: Final = (sys.executable, "-m", "pytest")
BY_FILE: Final = ("--dist", "loadfile", "--no-loadscope-reorder")
"""Workers take whole files, whose tests share fixtures, in the order of ``tests.support.order``."""
SLOWEST: Final = ("--durations=20", "--durations-min=5")
"""A log names the tests that took longest: where to begin when a tier has become slow."""
MAKE: Final = ("make", "--no-print-directory")
LAST_LINES: Final = 30
"""So much of a failed test's traceback comes again at the end: the assertion, its values, and the line."""
MOST_PARTS: Final = 16
"""More processes would import for longer than they test, and one without a test fails."""


@dataclass(frozen=True)
class Tier:
    """What is made first, and tests that go on at the same time."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    """Commands that run in this order; the first one that fails is the last of the tier."""
    tests: tuple[tuple[str, ...], ...]
    """Commands that run side by side; none stops another. The first one's output is seen at once, that of the others
    when all have ended."""


@dataclass(frozen=True)
class Outcome:
    """How a tier went."""

    tier: str
    seconds: float
    failed: str = ""
    """The commands that failed, each with its exit code."""
    failures: tuple[str, ...] = ()
    """The tests that failed, each with the end of its traceback."""


def tiers(workers: str) -> list[Tier]:
    """The first two need no cluster. Tests of the control plane mostly wait for an API server, and unit tests compute
    meanwhile, so both have all workers. The cluster is one, and its tests take turns."""
    by_file = ("-n", workers, *BY_FILE, *SLOWEST)
    return [
        Tier(
            "unit and control plane",
            ((*MAKE, "test-needs"),),
            (
                (*PYTEST, *by_file, "--beside=0/2", "tests/unit"),
                (*PYTEST, *by_file, "--beside=1/2", "tests/controlplane"),
            ),
        ),
        Tier("cluster", ((*MAKE, "cluster-up", "images"),), ((*PYTEST, *SLOWEST, "tests/cluster"),)),
    ]


def fast(workers: int) -> Tier:
    """The tests of pure logic, in so many processes that know nothing of each other: each imports and collects its own
    part of the files only. Workers of pytest-xdist each collect all tests, and tell of each in three messages."""
    command, parts = (*PYTEST, "--fast", "-q", "-p", "no:xdist"), min(workers, MOST_PARTS)
    return Tier("fast", (), tuple((*command, f"--part={part}/{parts}") for part in range(parts)))


def run(tier: Tier) -> Outcome:
    """Run a tier's commands in the checkout, their output on the terminal."""
    begin = time.monotonic()
    failed, failures = "", []
    for command in tier.needs:
        if failed := _failure(command, subprocess.run(command, cwd=REPOSITORY, check=False).returncode):
            break
    else:
        with TemporaryDirectory() as folder:
            reports = [Path(folder) / f"{number}.xml" for number in range(len(tier.tests))]
            failed = ", ".join(filter(None, _side_by_side(tier.tests, reports)))
            failures = [each for report in reports if report.exists() for each in failed_tests(report.read_bytes())]
    return Outcome(tier.name, time.monotonic() - begin, failed, tuple(failures))


def failed_tests(report: bytes) -> list[str]:
    """Name and last lines of each test that failed, from a report of pytest in JUnit's format."""
    return [
        "\n".join([f"{test.get('classname')}::{test.get('name')}", *(fault.text or "").splitlines()[-LAST_LINES:]])
        for test in ElementTree.fromstring(report).iter("testcase")
        for fault in test
        if fault.tag in {"failure", "error"}
    ]


def _side_by_side(commands: Sequence[tuple[str, ...]], reports: Sequence[Path]) -> list[str]:
    """The failure of each; empty where there was none. Those of pytest each write a report."""
    with ExitStack() as stack:
        outputs = [None, *(stack.enter_context(TemporaryFile()) for _ in commands[1:])]
        processes = [
            subprocess.Popen(
                _reporting(command, to), cwd=REPOSITORY, stdout=output, stderr=output and subprocess.STDOUT
            )
            for command, output, to in zip(commands, outputs, reports, strict=True)
        ]
        codes = [process.wait() for process in processes]
        for output in filter(None, outputs):
            output.seek(0)
            say(output.read().decode(errors="replace"))
    return [_failure(command, code) for command, code in zip(commands, codes, strict=True)]


def _reporting(command: tuple[str, ...], report: Path) -> tuple[str, ...]:
    return (*command, f"--junit-xml={report}") if command[: len(PYTEST)] == PYTEST else command


def _failure(command: Sequence[str], code: int) -> str:
    return f"`{' '.join(command).replace(sys.executable, 'python')}` ended with {code}" if code else ""


def summary(outcomes: Sequence[Outcome], target: str = "test") -> str:
    """A line for each tier, and one for all of a target."""
    lines = [f"  {'✗' if each.failed else '✓'} {each.tier}: {_minutes(each)}{_why(each)}" for each in outcomes]
    failed = [each.tier for each in outcomes if each.failed]
    verdict = f"failed: {', '.join(failed)}" if failed else "every tier passed"
    return "\n".join([f"make {target}: {verdict}", *lines])


def _minutes(outcome: Outcome) -> str:
    minutes, seconds = divmod(round(outcome.seconds), 60)
    return f"{minutes} min {seconds} s"


def _why(outcome: Outcome) -> str:
    return f", {outcome.failed}" if outcome.failed else ""


def main(arguments: Sequence[str]) -> int:
    """Run every tier, or the fast one, with this many workers; 1 if any failed."""
    workers, *only = arguments
    # Containers often set it; pytest would compile its plugins anew in each process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    outcomes = [run(tier) for tier in ([fast(int(workers))] if only else tiers(workers))]
    bytecode.share(REPOSITORY / ".venv", bytecode.shared())
    for failure in (failure for outcome in outcomes for failure in outcome.failures):
        say(f"\nfailed: {failure}")
    say(summary(outcomes, "-".join(["test", *only])))
    return int(any(each.failed for each in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
