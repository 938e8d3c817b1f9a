"""What all tests share: how Hypothesis draws, a thread for each worker, what ``--fast`` leaves out and forbids."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path

import pytest

# Containers often forbid Python to keep what it has compiled. Tests start many programs, and each would compile torch
# and all that stands on it again; pytest would rewrite Hypothesis, which is imported next.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from hypothesis import HealthCheck, settings  # noqa: E402

from hack.cluster import layout  # noqa: E402
from tests.support import fast, order  # noqa: E402
from tests.support.examples import to_commit  # noqa: E402
from tests.support.forked import GC_THRESHOLD  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and pytest-xdist's workers share the cores

# `make test` draws the same examples each time; what random draws have found is written beside the tests, as @example.
settings.register_profile(
    "test",
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=60),  # an example that hangs: on a slow machine one may take seconds
    suppress_health_check=[HealthCheck.too_slow],
)
# `make fuzz` draws at random, from a seed that it prints.
settings.register_profile("fuzz", parent=settings.get_profile("test"), derandomize=False, print_blob=True)
# `make test-fast` draws a few of the same ones.
settings.register_profile("fast", parent=settings.get_profile("test"), max_examples=10)
settings.load_profile("test")

_took: dict[str, float] = {}
"""CPU seconds of each test, with what was set up and taken down for it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only unit tests without torch, processes and network")
    parser.addoption("--part", default="0/1", help="K/N: with --fast, only part K (from 0) of N parts of the files")
    parser.addoption(
        "--beside", default="0/1", help="K/N: run K (from 0) of N at the same time; each has its own ports"
    )


def pytest_configure(config: pytest.Config) -> None:
    run, runs = map(int, config.getoption("--beside").split("/"))
    layout.FREE_PORTS = layout.FREE_PORTS[run::runs]
    if worker := getattr(config, "workerinput", None):
        layout.FREE_PORTS = layout.FREE_PORTS[int(worker["workerid"][2:]) :: worker["workercount"]]
    if config.getoption("--fast"):
        fast.forbid_torch()
        fast.forbid_grammars()
        settings.load_profile("fast")
    gc.set_threshold(GC_THRESHOLD)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Modules and tests stay to the end: the garbage collector need not look through them again, which each training
    makes it do. Only now is anything forbidden: collecting the pages asks git for their names."""
    gc.collect()
    gc.freeze()
    if session.config.getoption("--fast"):
        fast.forbid_processes_and_connections()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--fast"):
        return None
    part, parts = map(int, config.getoption("--part").split("/"))
    return True if fast.is_left_out(collection_path) or fast.is_of_another(collection_path, part, parts) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = order.long_files_first(items)
    if not config.getoption("--fast"):
        return
    left_out = [item for item in items if not item.get_closest_marker("unit") or item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    begin = time.process_time()
    done = yield
    _took[item.nodeid] = time.process_time() - begin
    return done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names the tests that are not fast. A busy machine makes CPU seconds longer: they do not fail for that."""
    if config.getoption("--fast") and (lines := fast.too_long(_took)):
        terminalreporter.section(f"far more than {fast.MOST_SECONDS} CPU s: to be made faster, or marked slow")
        terminalreporter.write_line("\n".join(lines))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says of an example that Hypothesis found what to commit, and fails a fast test that did what is forbidden."""
    report = yield
    if call.excinfo and (example := to_commit(call.excinfo.value, getattr(item, "funcargs", {}))):
        report.sections.append(("commit this with the test", example))
    if report.when == "call" and (done := fast.forbidden()) and report.passed:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} is not marked slow, but {done}"
    return report
