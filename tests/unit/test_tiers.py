"""How the tests are run: every tier has its turn, fast tests stay fast, and what random draws find can be committed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from hack.cluster import layout
from hack.cluster.layout import REPOSITORY
from hack.tiers import MOST_PARTS, PYTEST, Outcome, Tier, fast, run, summary, tiers
from tests.conftest import pytest_configure
from tests.support.examples import to_commit
from tests.support.fast import MEASURED, MOST_SECONDS, divided, seconds, too_long
from tests.support.order import LONGEST, long_files_first

pytestmark = pytest.mark.unit


def test_the_summary_names_the_tiers_that_failed() -> None:
    outcomes = [Outcome("unit and control plane", 733.4, "`make test-needs` ended with 2"), Outcome("cluster", 59.6)]
    assert summary(outcomes).splitlines() == [
        "make test: failed: unit and control plane",
        "  ✗ unit and control plane: 12 min 13 s, `make test-needs` ended with 2",
        "  ✓ cluster: 1 min 0 s",
    ]
    assert summary(outcomes[1:]).splitlines()[0] == "make test: every tier passed"
    assert summary(outcomes[:1], "test-fast").splitlines()[0] == "make test-fast: failed: unit and control plane"


def test_ci_runs_lint_and_every_tier() -> None:
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert "\ntest: lint " in (REPOSITORY / "Makefile").read_text()
    selected = [command[-1] for tier in tiers("2") for command in tier.tests]
    assert selected == ["tests/unit", "tests/controlplane", "tests/cluster"]


@pytest.mark.parametrize("tier", ["unit", "controlplane", "cluster", "vllm"])
def test_a_tier_is_a_folder(tier: str) -> None:
    """Its tests are chosen by the folder, and by their mark where that is asked for."""
    marked = {
        path.parent.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if re.search(rf"^pytestmark = .*\bmark\.{tier}\b", path.read_text(), re.MULTILINE)
    }
    files = (REPOSITORY / "tests" / tier).glob("test_*.py")
    assert marked == {tier}
    assert [path for path in files if f"mark.{tier}" not in path.read_text()] == []


@pytest.mark.slow
def test_what_a_program_of_the_tests_compiles_is_compiled_once(tmp_path: Path) -> None:
    """Whatever the environment of the tests says: dozens of them import torch."""
    (tmp_path / "module.py").write_text("")
    argv = [sys.executable, "-c", "import module; print(module.__cached__)"]
    ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(ended.stdout.strip()).exists()
    assert not sys.dont_write_bytecode


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (6, 6), (64, 8)])
def test_there_is_a_worker_for_each_core_from_two_to_eight(cores: int, workers: int, tmp_path: Path) -> None:
    program = tmp_path / "getconf"
    program.write_text(f"#!/bin/sh\necho {cores}\n")
    program.chmod(0o755)
    outer = ("WORKERS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")  # of a make that runs this test
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    for target in ("test", "test-fast", "test-unit", "test-controlplane"):
        for asked, found in (((), workers), (("WORKERS=3",), 3)):
            command = ["make", "--dry-run", target, *asked]
            shown = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
            assert re.findall(r"(?:pytest .*-n|hack\.tiers) (\d+)\b", shown.stdout) == [str(found)], command


@pytest.mark.slow
def test_a_tier_ends_with_the_first_command_that_fails() -> None:
    outcome = run(Tier("some", (("true",), ("false",), ("/missing",)), (("/missing",),)))
    assert (outcome.tier, outcome.failed) == ("some", "`false` ended with 1")
    assert run(Tier("some", (("true",),), (("true",), ("true",)))).failed == ""


@pytest.mark.slow
def test_tests_side_by_side_all_run_to_their_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whichever fails; each waits for the other here. What they say is not mixed."""
    first, second = tmp_path / "first", tmp_path / "second"
    meet = "touch $0; until [ -e $1 ]; do sleep 0.01; done; echo $2; exit $3"
    tests = (
        ("sh", "-c", meet, str(first), str(second), "one", "0"),
        ("sh", "-c", meet, str(second), str(first), "two", "3"),
    )
    outcome = run(Tier("some", (), tests))
    assert outcome.failed.endswith("two 3` ended with 3")
    assert outcome.failed.count("ended with") == 1
    assert capfd.readouterr().out.split() == ["one", "two"]


@pytest.mark.slow
def test_the_next_tier_has_its_turn_after_a_failure(tmp_path: Path) -> None:
    """The commands are stand-ins; what is real is the order, the summary and the exit code."""
    script = (
        "from hack import tiers\n"
        "first = tiers.Tier('first', (), (('false',),))\n"
        "tiers.tiers = lambda workers: [first, tiers.Tier('second', (), (('echo', 'ran'),))]\n"
        "raise SystemExit(tiers.main(['2']))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert [line.split(":")[0] for line in ended.stdout.splitlines()] == ["ran", "make test", "  ✗ first", "  ✓ second"]


@pytest.mark.slow
def test_a_failed_test_is_told_with_the_end_of_its_traceback(tmp_path: Path) -> None:
    """A log that is cut in the middle still has it. One that failed while it was set up counts too."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no disk')\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert {'a': 1} == {'a': 2}\n"
        "def test_errs(broken): pass\n"
    )
    tests = ((*PYTEST, "-q", "-n", "2", "-c", os.devnull, str(tmp_path)), ("sh", "-c", "exit 1"))
    fails, errs = sorted(run(Tier("some", (), tests)).failures, reverse=True)
    assert fails.startswith("test_it::test_fails\n")
    assert "assert {'a': 1} == {'a': 2}" in fails
    assert fails.endswith("test_it.py:5: AssertionError")
    assert errs.startswith("test_it::test_errs\n")
    assert errs.endswith("test_it.py:3: OSError")


def test_workers_of_runs_at_the_same_time_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    for beside, worker in (("0/2", 0), ("0/2", 1), ("1/2", 0), ("1/2", 1)):
        monkeypatch.setattr(layout, "FREE_PORTS", range(20000, 20100))
        config: Any = SimpleNamespace(
            getoption={"--beside": beside, "--fast": False}.__getitem__,
            workerinput={"workerid": f"gw{worker}", "workercount": 2},
        )
        pytest_configure(config)
        found += layout.FREE_PORTS
    assert sorted(found) == [*range(20000, 20100)]


def test_long_files_come_first() -> None:
    marks = {"a": "unit", "b": "slow", LONGEST[1]: "slow", "c": "unit", "d": "slow", LONGEST[0]: "slow"}

    def item(file: str, number: int) -> Any:
        return SimpleNamespace(path=file, name=f"{file}{number}", get_closest_marker=lambda m: m == marks[file] or None)

    ordered = long_files_first([item(file, number) for file in marks for number in range(2)])
    files = [LONGEST[0], LONGEST[1], "b", "d", "a", "c"]
    assert [each.name for each in ordered] == [f"{file}{number}" for file in files for number in range(2)]


def test_the_longest_files_are_there() -> None:
    assert {path.name for path in (REPOSITORY / "tests").glob("*/test_*.py")} >= {*LONGEST}


# Examples


@dataclass
class Point:
    x: int


@pytest.mark.slow
def test_an_example_that_was_found_is_shown_as_it_is_committed() -> None:
    @settings(database=None)
    @given(st.integers(3, 5), st.lists(st.sampled_from("ab"), min_size=1), st.builds(Point, st.just(1)))
    def fails(fixture: str, number: int, letters: list[str], point: Point) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as error:
        fails("a fixture")
    assert to_commit(error.value, {"fixture"}) == "@example(number=3, letters=['a'], point=Point(1))"
    assert to_commit(ValueError("another error"), {}) == ""


def test_a_value_that_cannot_be_written_is_shown_as_it_is() -> None:
    error = AssertionError()
    error.add_note("Failing test case: fails(\n    place=<object at 0x1>,\n)")
    assert to_commit(error, {}).startswith("@example(...)  # with the values of fails(")


def test_the_same_examples_are_drawn_each_time() -> None:
    def drawn() -> list[int]:
        numbers: list[int] = []

        @given(st.integers())
        def record(number: int) -> None:
            numbers.append(number)

        record()
        return numbers

    assert settings.get_profile("test").derandomize is True
    with_profile = settings.get_profile("test")
    assert find(st.integers(), lambda number: number > 7, settings=with_profile) == 8
    assert drawn() == drawn()


# Fast tests

FORBIDDEN = {
    "import torch": "import of torch halted",
    "subprocess.run(['true'])": "is not marked slow, but starts a process",
    "socket.create_connection(('127.0.0.1', 1))": "is not marked slow, but ",
    "socket.socket().bind(('127.0.0.1', 0))": "is not marked slow, but opens a socket",
    "os.fork()": "is not marked slow, but starts a process",
}


LONG = "def test_pure():\n    end = time.process_time() + 0.6\n    while time.process_time() < end: ...\n"


@pytest.mark.slow
def test_a_fast_test_that_needs_what_takes_long_fails_even_where_it_catches_the_error(tmp_path: Path) -> None:
    tests = [
        f"def test_{number}():\n    try:\n        {line}\n    except RuntimeError:\n        pass\n"
        for number, line in enumerate(FORBIDDEN)
    ]
    imports = "import os, socket, subprocess, time, pytest\npytestmark = pytest.mark.unit\n"
    (tmp_path / "test_some.py").write_text(
        imports + "\n".join([*tests, LONG, "@pytest.mark.slow\ndef test_slow(): os.fork()"])
    )
    (tmp_path / "test_not_even_imported.py").write_text("import torch\npytestmark = pytest.mark.slow\n")
    argv = [sys.executable, "-m", "pytest", "--fast", "-p", "tests.conftest", "-c", str(REPOSITORY / "pyproject.toml")]
    argv += ["-q", f"--rootdir={REPOSITORY}", "-p", "no:cacheprovider", str(tmp_path)]
    ended = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert f"{len(FORBIDDEN)} failed, 1 passed, 1 deselected" in ended.stdout, ended.stdout
    for what in FORBIDDEN.values():
        assert what in ended.stdout
    assert re.search(r"^(0\.[6-9]|[1-9]\d*\.\d) s  .*::test_pure$", ended.stdout, re.MULTILINE), ended.stdout


def test_tests_that_take_long_are_named() -> None:
    assert too_long({"a": 0.1, "b": 0.6, "c": 2.25, "d": 5 * MOST_SECONDS}) == ["2.2 s  c", "0.6 s  b"]


@pytest.mark.parametrize("parts", [1, 2, 3, 8, MOST_PARTS])
def test_the_parts_of_the_fast_tests_are_all_of_them_and_take_about_as_long(parts: int) -> None:
    folder = REPOSITORY / "tests" / "unit"
    found = divided(folder, parts)
    assert sorted(path for part in found for path in part) == sorted(path for path in divided(folder, 1)[0])
    took = [sum(map(seconds, part)) for part in found]
    assert max(took) <= 1.25 * sum(took) / parts


def test_however_many_workers_there_are_no_part_is_empty() -> None:
    """Such a process of pytest fails."""
    assert [len(fast(workers).tests) for workers in (1, 2, MOST_PARTS, 64)] == [1, 2, MOST_PARTS, MOST_PARTS]
    assert fast(64).tests[-1][-1] == f"--part={MOST_PARTS - 1}/{MOST_PARTS}"
    assert [part for part in divided(REPOSITORY / "tests" / "unit", MOST_PARTS) if not part] == []


def test_a_long_file_shares_its_part_with_few(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"test_{number}.py").write_text("#" * (400 if number == 2 else 100))
    names = [[path.stem for path in part] for part in divided(tmp_path, 3)]
    assert names == [["test_0", "test_1"], ["test_2"], ["test_3", "test_4"]]


def test_the_files_that_were_measured_are_there_and_fast() -> None:
    folder = REPOSITORY / "tests" / "unit"
    assert MEASURED.keys() <= {path.name for path in divided(folder, 1)[0]}


@pytest.mark.slow
def test_each_process_of_the_fast_tests_reads_its_own_part_only(tmp_path: Path) -> None:
    """Reading one that is not its own fails here, since each leaves a mark."""
    for name in ("one", "two"):
        text = f"import pathlib, pytest\npathlib.Path({str(tmp_path / name)!r}).touch(exist_ok=False)\n"
        text += "pytestmark = pytest.mark.unit\ndef test_it(): ..."
        (tmp_path / f"test_{name}.py").write_text(text)
    for command in fast(2).tests:
        argv = [*command, "-p", "tests.conftest", "-c", str(REPOSITORY / "pyproject.toml"), f"--rootdir={REPOSITORY}"]
        argv += ["-p", "no:cacheprovider", str(tmp_path)]
        ended = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert "1 passed" in ended.stdout, ended.stdout
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()
