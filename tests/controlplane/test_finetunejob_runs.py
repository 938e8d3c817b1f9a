"""FineTuneJobs from creation to artifact on a real API server, undisturbed."""

from __future__ import annotations

import pytest

from finetune_api.finetunejob import Phase, StageState
from finetune_api.stages import PIPELINE, Stage
from tests.controlplane.conftest import Team, condition

pytestmark = pytest.mark.controlplane


def test_main_job(team: Team) -> None:
    """Six Jobs in order, each once; the status holds data, scores and artifact; events tell the edges."""
    team.start()
    team.create("main")
    status = team.until("main", Phase.SUCCEEDED)
    assert [stage for stage, _ in team.node.started] == [Stage.RESOLVE, *PIPELINE]
    assert [row.state for row in status.stages] == [StageState.SUCCEEDED] * 6
    assert status.stages_done == "5/5"
    assert status.dataset is not None
    assert status.dataset.rows.train == 472
    assert status.evaluation is not None
    assert status.evaluation.accuracy.artifact == "0.94"
    assert status.artifact is not None
    assert status.artifact.uri == f"s3://artifacts/team/artifacts/{status.artifact.digest}"
    assert {kind: condition(status, kind) for kind in ("Ready", "Complete", "Reconciling", "Stalled", "Failed")} == {
        "Ready": "True",
        "Complete": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Failed": "False",
    }
    events = team.events("main")
    assert events[0] == ("Normal", "RunStarted")
    assert events[-1] == ("Normal", "RunSucceeded")
    assert [reason for _, reason in events].count("StageSucceeded") == 6
