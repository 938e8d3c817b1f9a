"""``make mutants``: whether tests notice when a line of the product is wrong.

``python -m hack.mutants WORKERS [NAME …]``: every mutant of ``tests/mutants``, or those that are named.

A mutant is one wrong line, chosen by the harm that it would do, with the few test files that must fail for it. Each is
applied to a copy of the tree, never to the checkout. Before the first one, the same tests have to pass there without
any: what fails anyway proves nothing.

Each run of tests is a process of its own, forked from one that has imported the libraries, which takes longer than most
of these tests. It has none of the product and none of the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import cache_from_source
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Annotated, Final

import pytest
from pydantic import BaseModel, ConfigDict, Field

from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY

LISTS: Final = Path("tests/mutants")
"""A TOML file for each package."""
MOST_SECONDS: Final = 300.0
"""For the tests of one mutant: a line that is wrong may make a loop endless."""
_END_SECONDS: Final = 30.0
"""For tests that are interrupted to end their servers."""
_UNKNOWN_CODE: Final = 255
"""What multiprocessing says of a process whose forking one has ended, as by Ctrl-C. It may still run."""
LIBRARIES: Final = (
    *("aiohttp", "boto3", "huggingface_hub", "hypothesis", "jsonschema", "kubernetes", "numpy", "pyarrow.parquet"),
    *("pydantic", "pytest", "pytest_asyncio", "torch", "transformers"),
)
"""What the process that forks has imported."""
_FAILED: Final = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)
_ERROR: Final = re.compile(r"^ERROR (.+)$", re.MULTILINE)
"""Of a fixture, before a test or after it: no test has judged anything."""
_PASSED, _TESTS_FAILED = 0, 1


class Mutant(BaseModel):
    """A wrong line, and the tests that must fail for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    file: str
    text: Annotated[str, Field(min_length=1)]
    """What is replaced: it stands in the file exactly once."""
    becomes: str
    harm: str
    """What users would suffer if nobody noticed."""
    tests: Annotated[list[str], Field(min_length=1)]
    """Files, or single tests as pytest names them."""

    def places(self, tree: Path) -> int:
        """How often its text stands in its file."""
        file = tree / self.file
        return file.read_text(encoding="utf-8").count(self.text) if file.is_file() else 0


class _List(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mutant: list[Mutant]


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    STALE = "no longer applies"
    UNKNOWN = "no verdict"
    """Its tests did not run to an end, or a fixture of theirs failed."""


@dataclass(frozen=True)
class Outcome:
    """A mutant's verdict."""

    mutant: Mutant
    verdict: Verdict
    seconds: float = 0.0
    said: str = ""
    """The test that killed it, or what to do."""


def mutants(root: Path = REPOSITORY) -> list[Mutant]:
    """All mutants of a tree's lists. Raises ValueError for a list that is none."""
    found = [_List.model_validate(tomllib.loads(path.read_text())).mutant for path in sorted((root / LISTS).glob("*"))]
    return [mutant for each in found for mutant in each]


def judge(mutant: Mutant, tree: Path) -> Outcome:
    """Apply a mutant to a tree, run its tests there, and take it back."""
    if (places := mutant.places(tree)) != 1:
        return Outcome(
            mutant,
            Verdict.STALE,
            said=f"its text stands {places} times in {mutant.file}: quote the line as it is now; if what it got wrong "
            "is gone, replace the mutant",
        )
    file, begin = tree / mutant.file, time.monotonic()
    right = file.read_text(encoding="utf-8")
    _write(file, right.replace(mutant.text, mutant.becomes))
    try:
        code, output = run_tests(tree, mutant.tests, MOST_SECONDS, "-x")
    finally:
        _write(file, right)
    return _outcome(mutant, code, output, time.monotonic() - begin)


def _outcome(mutant: Mutant, code: int | None, output: str, seconds: float) -> Outcome:
    if code == _PASSED:
        advice = "write the test that fails for it, or remove the line if nothing depends on it"
        return Outcome(mutant, Verdict.SURVIVED, seconds, f"{mutant.harm} Nobody noticed: {advice}")
    if code == _TESTS_FAILED and (found := _FAILED.search(output)):
        return Outcome(mutant, Verdict.KILLED, seconds, found[1])
    if code == _TESTS_FAILED and (found := _ERROR.search(output)):
        return Outcome(mutant, Verdict.UNKNOWN, seconds, f"a fixture failed, so no test judged it: {found[1]}")
    ended = f"ended with {code}" if code is not None else f"took more than {MOST_SECONDS:.0f} s"
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return Outcome(mutant, Verdict.UNKNOWN, seconds, f"pytest {ended}, so no test judged it: {last}")


def _write(file: Path, text: str) -> None:
    """Python takes what it has compiled for current by the file's size and second, which may be the same."""
    file.write_text(text, encoding="utf-8")
    Path(cache_from_source(str(file))).unlink(missing_ok=True)


def run_tests(tree: Path, tests: Sequence[str], seconds: float, *options: str) -> tuple[int | None, str]:
    """Exit code and output; None: it took longer than that. However this ends, nothing that was started stays."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    with NamedTemporaryFile("r", errors="replace") as output:
        argv = ["-q", "-p", "no:cacheprovider", *options, *tests]
        process = context.Process(target=_pytest, args=(tree, argv, output.name))
        process.start()
        try:
            process.join(seconds)
            code = process.exitcode
        finally:
            _end(process)
        return code, output.read()


def _end(process: BaseProcess) -> None:
    """It, and what it has left behind. Interrupted, pytest ends the servers of its fixtures, which have sessions of
    their own."""
    assert process.pid is not None
    if process.exitcode in (None, _UNKNOWN_CODE):
        deadline = time.monotonic() + _END_SECONDS
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
            while time.monotonic() < deadline:
                os.kill(process.pid, 0)
                time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _pytest(tree: Path, argv: list[str], output: str) -> None:
    """Run pytest as if it was started in a tree, and exit as it does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it runs in the background
    with open(output, "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    for name in [each for each in sys.modules if each.partition(".")[0] == "hack"]:
        del sys.modules[name]  # of the checkout; tests import those of the tree
    os.chdir(tree)
    packages = list(map(str, _packages(tree)))
    sys.path[:0] = packages
    os.environ["PYTHONPATH"] = os.pathsep.join(packages)  # of programs that tests start
    sys.exit(pytest.main(argv))


def _packages(tree: Path) -> Iterator[Path]:
    """Folders of the product's packages in a tree. The environment has those of the checkout, which come later."""
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    return (tree / folder for folder in project["tool"]["hatch"]["build"]["dev-mode-dirs"])


def copy_tree(source: Path, target: Path) -> None:
    """What git knows of a checkout, as it is now, and new files that it does not ignore."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=source, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def run(chosen: Sequence[Mutant], root: Path, workers: int) -> int:
    """Judge mutants in copies of a checkout, so many at a time, and say what became of each. Returns 0 if all were
    killed, 1 if one survived, 2 if one could not be judged."""
    with TemporaryDirectory(prefix="finetune-mutants-") as scratch:
        first = Path(scratch) / "0"
        copy_tree(root, first)
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        say(f"mutants: {len(chosen)}, by {len(tests)} test files, which have to pass without any first")
        options = ("-n", str(workers), "--dist", "loadfile") if workers > 1 else ()
        code, output = run_tests(first, tests, MOST_SECONDS * len(tests), *options)
        if code != _PASSED:
            say(f"{output}\nmutants: these tests do not pass as the tree is; mend them first")
            return 2
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(workers):
            tree = Path(scratch) / str(number)
            if tree != first:
                shutil.copytree(first, tree, symlinks=True)  # with what is compiled
            trees.put(tree)
        with ThreadPoolExecutor(workers) as threads:
            outcomes = []
            for outcome in threads.map(lambda mutant: _in_turn(mutant, trees), chosen):
                outcomes.append(outcome)
                say(line(outcome))
    say(summary(outcomes))
    return exit_code(outcomes)


def _in_turn(mutant: Mutant, trees: queue.Queue[Path]) -> Outcome:
    tree = trees.get()
    try:
        return judge(mutant, tree)
    finally:
        trees.put(tree)


def line(outcome: Outcome) -> str:
    """A row of the table."""
    mark = "✓" if outcome.verdict is Verdict.KILLED else "✗"
    said = f"by {outcome.said}" if outcome.verdict is Verdict.KILLED else outcome.said
    return f"  {mark} {outcome.mutant.name}: {outcome.verdict} in {outcome.seconds:.1f} s; {said}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many there were of each verdict, in one line."""
    counts = {verdict: sum(each.verdict is verdict for each in outcomes) for verdict in Verdict}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count or verdict is Verdict.KILLED)
    return f"mutants: {said} of {len(outcomes)}"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """As ``run``."""
    found = {each.verdict for each in outcomes}
    if found & {Verdict.STALE, Verdict.UNKNOWN}:
        return 2
    return int(Verdict.SURVIVED in found)


def main(arguments: Sequence[str]) -> int:
    """Exit code as ``run``."""
    workers, *names = arguments
    known = mutants()
    if unknown := set(names) - {mutant.name for mutant in known}:
        say(f"mutants: no mutant of {LISTS} is called {', '.join(sorted(unknown))}")
        return 2
    return run([mutant for mutant in known if not names or mutant.name in names], REPOSITORY, int(workers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
