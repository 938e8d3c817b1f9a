"""The platform on the local cluster, for the tests that need real pods.

The demo takes longer than all other tests, which mostly wait. It begins with the first of them that needs the platform,
runs beside them, and is looked at last.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hack.cluster.layout import REPOSITORY
from hack.cluster.native import NativeCluster
from hack.cluster.provider import provider
from hack.demo.__main__ import clear
from hack.platform import local
from hack.platform.kubectl import Kubectl
from hack.platform.tiny import upload_tiny_inputs
from tests.support.teams import team_namespace


@pytest.fixture(scope="session")
def native() -> NativeCluster:
    """The native cluster, for tests of what kind does in its own way."""
    found = provider()
    if not isinstance(found, NativeCluster):
        pytest.skip("the cluster is kind's, which looks after its own processes and leaves the machine alone")
    return found


@dataclass(frozen=True)
class Demo:
    """`make demo` as a process of its own, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        """Until it has ended well. Raises AssertionError with what it said if it has not."""
        assert self.process.wait() == 0, self.log.read_text(errors="replace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=asks_for_the_demo)


def asks_for_the_demo(item: pytest.Item) -> bool:
    return item.get_closest_marker("cluster") is not None and "report" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def platform() -> Kubectl:
    """The local cluster with operator and object store, and the tiny inputs in the store."""
    kubectl = local.kubectl()
    local.install_platform(kubectl)
    upload_tiny_inputs(kubectl)
    return kubectl


@pytest.fixture(scope="session")
def demo_run(
    platform: Kubectl, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo | None]:
    """The demo from an empty namespace and an empty store; None where no test asks for it."""
    if not any(map(asks_for_the_demo, request.session.items)):
        yield None
        return
    clear(platform)  # before another test has anything in the store
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "hack.demo"]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
    yield Demo(process, log)
    process.terminate()  # where a test run was stopped early
    process.wait()


@pytest.fixture(scope="session")
def cluster(platform: Kubectl, demo_run: Demo | None) -> Kubectl:
    """The platform, on which the demo has begun if any test asks for it."""
    return platform


@pytest.fixture
def team(cluster: Kubectl) -> Iterator[Kubectl]:
    """A namespace of this test's own."""
    with team_namespace(cluster) as kubectl:
        yield kubectl
