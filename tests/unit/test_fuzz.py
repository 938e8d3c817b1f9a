"""``make fuzz``: which tests a round has, on how many workers, and when it ends."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence

import pytest

from hack import fuzz
from hack.cluster.layout import REPOSITORY

pytestmark = [pytest.mark.unit, pytest.mark.slow]

DRAWS = re.compile(r"^@given\(", re.MULTILINE)


def pytest_says(command: Sequence[str], until: float) -> str:
    """What a round prints."""
    environment = {**os.environ, fuzz.UNTIL: str(until)}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_round_has_the_tests_of_every_tier_that_draw() -> None:
    others = [path for path in (REPOSITORY / "tests").glob("*/test_*.py") if path.parent.name != "unit"]
    files = [str(path.relative_to(REPOSITORY)) for path in others if DRAWS.search(path.read_text(encoding="utf-8"))]
    assert "tests/controlplane/test_tenancy_policy.py" in files
    found = pytest_says([*fuzz.command(1, 0, files), "--collect-only"], time.time() + 3600)
    assert {name for name in files if name in found} == set(files)


def test_no_test_begins_after_the_time_and_the_workers_are_those_that_were_asked_for() -> None:
    command = fuzz.command(1, 3, ["tests/unit/test_jobs_logs.py"])
    assert command[command.index("-n") + 1] == "3"
    said = pytest_says([*command, "-rs"], time.time() - 1)
    assert "the time is up" in said
    assert "passed" not in said


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["tests/unit/no_such_file.py"], "no test of tests/unit/no_such_file.py draws its input"),
        (["tests/unit/test_tiers.py"], "no test of tests/unit/test_tiers.py draws its input"),
    ],
)
def test_files_without_a_drawing_test_are_no_finding(files: list[str], said: str) -> None:
    environment = {**os.environ, fuzz.UNTIL: str(time.time() + 3600)}
    ended = subprocess.run(fuzz.command(1, 0, files), cwd=REPOSITORY, env=environment, capture_output=True, check=False)
    assert said in fuzz.ended_with(ended.returncode, 1, files)


def test_a_finding_names_its_seed_and_a_broken_run_is_none() -> None:
    assert "seed 7 failed" in fuzz.ended_with(pytest.ExitCode.TESTS_FAILED, 7, [])
    assert "failed" not in fuzz.ended_with(pytest.ExitCode.INTERNAL_ERROR, 7, [])
