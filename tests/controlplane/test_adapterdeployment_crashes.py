"""An operator that dies after any of its writes, and one that is older than what it reads."""

from __future__ import annotations

import time

import pytest

from finetune_api.serving_status import ServingPhase
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
)
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.controlplane.conftest import ADDED_LATER, newer_crds, wait
from tests.controlplane.serving import CHILDREN, NAME, Serving
from tests.support.operator_process import CRASH_EXIT
from tests.support.played_pods import BETTER, GOOD

pytestmark = pytest.mark.controlplane


@pytest.mark.parametrize("crash", range(1, 16))
def test_a_crash_after_any_write_of_an_update_changes_nothing_in_the_end(endpoint: Serving, crash: int) -> None:
    """The operator dies after its nth write; the next one ends where an undisturbed one does."""
    old = endpoint.until(ServingPhase.READY).last_good_revision
    wait(lambda: set(endpoint.children(SERVICES)) == {NAME}, "the candidate's Service to go")
    endpoint.team.stop()
    endpoint.update(f"{crash:064x}")
    dying = endpoint.start(crash_after_writes=crash)
    wait(lambda: dying.process.exitcode is not None or endpoint.is_updated(old), "its death, or all its work done")
    dying.process.join(3)
    exit_code = dying.process.exitcode
    endpoint.team.stop()
    endpoint.start()
    wait(lambda: endpoint.traffic() not in ("", old), "the promotion")
    new = endpoint.traffic()
    endpoint.until_only(new)
    status = endpoint.until(ServingPhase.READY)
    assert status.stable is not None
    assert (status.stable.revision, status.stable.accuracy) == (new, "0.9400")
    assert exit_code == CRASH_EXIT or crash > 12, "the operator was to die in the middle"
    assert {kind: len(endpoint.children(kind)) for kind in CHILDREN} == {
        DEPLOYMENTS: 1,
        SERVICES: 1,
        NETWORK_POLICIES: 1,
        JOBS: 1,
        CONFIG_MAPS: 3,
    }


def test_an_operator_that_is_older_than_the_crds(serving: Serving) -> None:
    """As after its rollback: what serves is left as it is, and another artifact is rolled out as before."""
    newer = serving.start()
    revision = serving.serve(GOOD)
    serving.until_only(revision)
    newer.stop()
    with newer_crds(serving.team.plane):
        wait(lambda: ADDED_LATER in (serving.get(ADAPTERDEPLOYMENTS, NAME) or {})["spec"]["source"], "the CRDs")
        before = serving.team.writes()
        serving.start().wait_ready()
        time.sleep(4)  # more than the operator needs for a pass
        assert serving.team.writes() == before
        serving.update(BETTER)
        assert serving.until(ServingPhase.READY).last_good_revision != revision
