"""A canary on a real API server: the endpoints that the real controller makes of the shared Service."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import meta
from finetune_api.endpoint_stages import AnalyseParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import (
    AdapterDeploymentStatus,
    AnalysisOutcome,
    CheckOutcome,
    RevisionState,
    ServingPhase,
    VerificationCheck,
)
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS
from tests.controlplane.conftest import wait
from tests.controlplane.serving import Serving
from tests.support.fake_node import Ending
from tests.support.played_pods import BETTER, GOOD
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane


def by_steps(*pauses: str, **canary: Any) -> dict[str, Any]:
    """Steps of 50 %, each with its pause."""
    return {"type": "Canary", "canary": {"steps": [{"weight": 50, "pause": pause} for pause in pauses], **canary}}


def test_it_has_a_share_through_a_restart_and_loses_it_with_the_first_crash(serving: Serving) -> None:
    first = serving.start()
    old = serving.serve(GOOD)
    serving.change(**pinned(BETTER, strategy=by_steps("0s", "1h")))
    status = wait(lambda: in_step(serving, 2), "the second step", describe=lambda: str(serving.status()))
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
    wait(lambda: set(serving.children(DEPLOYMENTS)) == {f"demo-{old}"}, "its pods to go")
    serving.change(rerun="again", strategy=by_steps("0s"))
    wait(lambda: serving.traffic() == new, "the promotion")
    serving.until_only(new)
    wait(lambda: serving.reached() == {new}, "its endpoints alone")
    assert [reason for _, reason in serving.events()].count(Reason.CANARY_STEP) >= 1


def test_its_metrics_hold_it_end_it_and_let_it_pass(serving: Serving) -> None:
    serving.start()
    old = serving.serve(GOOD)
    verdicts = iter([AnalysisOutcome.INCONCLUSIVE, AnalysisOutcome.FAILED, AnalysisOutcome.PASSED])
    asked: list[AnalyseParams] = []

    def analyse(given: StageInput) -> Ending:
        assert given.params.analyse is not None
        asked.append(given.params.analyse)
        return _analysed(next(verdicts))

    serving.team.node.scripts[Stage.ANALYSE] = analyse
    serving.change(**pinned(BETTER, strategy=by_steps("0s", analysis={"minRequests": 40})))
    status = serving.until(ServingPhase.DEGRADED)
    assert status.candidate is not None
    new = status.candidate.revision
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, Reason.ANALYSIS_FAILED)
    assert "31 of 120 requests failed" in status.candidate.message
    assert status.candidate.verification[-1].name == "failedRequests"
    wait(lambda: serving.reached() == {old}, "all traffic to go back")
    reasons = [reason for _, reason in serving.events()]
    assert Reason.ANALYSIS_INCONCLUSIVE in reasons, "the step was held before"
    assert len(asked) == 2
    assert asked[1].until > asked[0].until
    assert all(url.startswith("http://10.9.") for each in asked for url in [*each.canary, *each.stable])
    assert not set(asked[0].canary) & set(asked[0].stable)
    serving.change(rerun="again", strategy=by_steps("3s", analysis={}))
    wait(lambda: serving.traffic() == new, "the promotion")
    serving.until_only(new)
    assert not [name for name in serving.children(JOBS) if "-analyse-" in name]
    assert Reason.ANALYSIS_PASSED in [reason for _, reason in serving.events()]


def _analysed(outcome: AnalysisOutcome) -> Ending:
    """How the pod of an analysis ends."""
    failed = outcome is AnalysisOutcome.FAILED
    seen = {"name": "failedRequests", "expected": "4 of 362", "seen": "31 of 120"}
    result = StageResult(
        stage=Stage.ANALYSE,
        outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
        reason=Reason.ANALYSIS_FAILED if failed else Reason.STAGE_SUCCEEDED,
        message="31 of 120 requests failed.",
        scalars={} if failed else {"analysis": outcome.value},
        checks=[VerificationCheck(**seen, outcome=CheckOutcome.FAILED if failed else CheckOutcome.PASSED)],
    )
    code, reason = (meta.ExitCode.FATAL, "Error") if failed else (meta.ExitCode.OK, "Completed")
    return Ending(result, exit_code=code, reason=reason)


def in_step(serving: Serving, step: int) -> AdapterDeploymentStatus | None:
    """The status once the candidate has its share of a step."""
    status = serving.status()
    canary = status.candidate.canary if status.candidate else None
    return status if canary and canary.step == step and canary.until else None
