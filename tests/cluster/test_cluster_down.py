"""`cluster-down` undoes what a cluster changes on its machine; shown in namespaces, where nobody is disturbed."""

from __future__ import annotations

from typing import Any

import pytest

from hack.cluster.native import NativeCluster
from tests.support.host_changes import Traces, observe

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def observed(native: NativeCluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Traces, Traces, Traces]:
    """The traces before `up`, between `up` and `down`, and after `down`."""
    return observe(tmp_path_factory.mktemp("down"))


def test_there_is_something_to_undo_of_every_kind(observed: tuple[Traces, Traces, Traces]) -> None:
    before, meanwhile, _ = observed
    assert {kind for kind in before if before[kind] == meanwhile[kind]} == set()


def test_down_leaves_the_machine_as_it_was(observed: tuple[Traces, Traces, Traces]) -> None:
    before, _, after = observed
    changed: dict[str, tuple[Any, Any]] = {kind: (before[kind], after[kind]) for kind in before}
    assert {kind: values for kind, values in changed.items() if values[0] != values[1]} == {}
