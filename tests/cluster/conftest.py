"""The platform on the local cluster, for the tests that need real pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.cluster.native import NativeCluster
from hack.cluster.provider import provider
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


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """The local cluster with operator and object store, and the tiny inputs in the store."""
    kubectl = local.kubectl()
    local.install_platform(kubectl)
    upload_tiny_inputs(kubectl)
    return kubectl


@pytest.fixture
def team(cluster: Kubectl) -> Iterator[Kubectl]:
    """A namespace of this test's own."""
    with team_namespace(cluster) as kubectl:
        yield kubectl
