"""A canary on a real API server: the endpoints that the real controller makes of the shared Service."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_api.reasons import Reason
from finetune_operator.framework.objects import DEPLOYMENTS
from tests.controlplane.conftest import wait
from tests.controlplane.serving import Serving
from tests.support.serving import BETTER, GOOD, pinned

pytestmark = pytest.mark.controlplane


def by_steps(*pauses: str) -> dict[str, Any]:
    """Steps of 50 %, each with its pause."""
    return {"type": "Canary", "canary": {"steps": [{"weight": 50, "pause": pause} for pause in pauses]}}


def test_it_has_a_share_through_a_restart_and_loses_it_with_the_first_crash(serving: Serving) -> None:
    first = serving.start()
    old = serving.serve(GOOD)
    serving.change(**pinned(BETTER, strategy=by_steps("0s", "1h")))
    status = wait(lambda: _in_step(serving, 2), "the second step", describe=lambda: str(serving.status()))
    assert status.candidate is not None
    new = status.candidate.revision
    wait(lambda: serving.reached() == {old, new}, "the endpoints of both")
    assert (serving.traffic(), status.phase) == (old, ServingPhase.PROGRESSING)
    first.stop()
    serving.start()
    serving.crash(new)
    wait(lambda: serving.reached() == {old}, "all traffic to go back")
    status = serving.until(ServingPhase.DEGRADED)
    assert status.candidate is not None
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, Reason.CANDIDATE_FAILED)
    wait(lambda: set(serving.children(DEPLOYMENTS)) == {f"demo-{old}"}, "its pods to go", 60)
    serving.change(rerun="again", strategy=by_steps("0s"))
    wait(lambda: serving.traffic() == new, "the promotion")
    serving.until_only(new)
    wait(lambda: serving.reached() == {new}, "its endpoints alone")
    assert [reason for _, reason in serving.events()].count(Reason.CANARY_STEP) >= 1


def _in_step(serving: Serving, step: int) -> AdapterDeploymentStatus | None:
    """The status once the candidate has its share of a step."""
    status = serving.status()
    canary = status.candidate.canary if status.candidate else None
    return status if canary and canary.step == step and canary.until else None
