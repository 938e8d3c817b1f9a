"""What gates said of an artifact stands beside it, and a policy may ask for it before the artifact is served."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.artifact_source import Channel
from finetune_api.endpoint_stages import VerifyParams
from finetune_api.gates import GateOutcome, GoalStatus
from finetune_api.layout import GatesRecord, gates_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageResult, Upstream
from finetune_api.verification import GatesPolicy
from finetune_jobs.artifacts.gates import _missing, read_gates, require_gates
from finetune_jobs.base.errors import StageError
from finetune_jobs.promote import promote
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.verify import verify
from tests.support.publishing import answer, deployment_input
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context
from tests.unit.test_jobs_artifact import BETTER_BY_A_QUARTER, UNTRAINED, gated

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("own_client")]

MET = GoalStatus(goal="recall of 'a' at least 0.9", value="0.95", low="0.92", high="0.97", outcome=GateOutcome.PASS)
MISSED = GoalStatus(goal="accuracy at least 0.95", value="0.91", low="0.89", high="0.93", outcome=GateOutcome.FAIL)
UNSURE = GoalStatus(goal="leaks at most 0.05", value="0.03", low="0.01", high="0.08", outcome=GateOutcome.INCONCLUSIVE)
UNJUDGED = GoalStatus(goal="leaks at most 0.05", outcome=GateOutcome.PASS)
"""Nothing was measured, as where no canary was planted: nothing is against the artifact, and nothing speaks for it."""
OWN = GoalStatus(goal="politeness.score at least 0.8", value="0.9", low="0.85", high="0.95", outcome=GateOutcome.PASS)


def said(*goals: GoalStatus, channel: Channel = Channel.STABLE, are_set: bool = True) -> GatesRecord:
    """A verdict."""
    return GatesRecord(channel=channel, are_set=are_set, goals=list(goals))


@pytest.mark.parametrize(
    ("known", "policy", "required", "says"),
    [
        ([], "Passed", [], "no record of its gates"),
        ([], "Any", ["recall"], "no record of its gates"),
        ([said(MET)], "Passed", [], ""),
        ([said(MET)], "Passed", ["recall"], ""),
        ([said(MET)], "Any", ["f1"], "no goal about f1 was set"),
        ([said(MET, OWN)], "Any", ["politeness.score"], ""),
        ([said(MET, UNSURE)], "Passed", [], ""),
        ([said(MET, UNSURE)], "Any", ["leaks"], "leaks is required. Too few … 0.03 (95 % interval 0.01 to 0.08)"),
        ([said(MET, UNJUDGED)], "Passed", [], ""),
        ([said(MET, UNJUDGED)], "Any", ["leaks"], "leaks is required."),
        (
            [said(MET, MISSED, channel=Channel.CANDIDATE)],
            "Passed",
            [],
            "as a candidate only … Missed accuracy at least 0.95: 0.91 (95 % interval 0.89 to 0.93)",
        ),
        ([said(MISSED, channel=Channel.CANDIDATE), said(MET)], "Passed", [], ""),
        ([said(MET, MISSED, channel=Channel.CANDIDATE)], "Any", ["recall"], ""),
        (
            [said(MET.model_copy(update={"goal": "accuracy not worse"}), are_set=False)],
            "Any",
            ["accuracy"],
            "no goal about",
        ),
    ],
)
def test_what_is_missing(known: Sequence[GatesRecord], policy: str, required: list[str], says: str) -> None:
    found = " ".join(_missing(known, GatesPolicy(policy), required))
    if says:
        assert_says(found, *says.split(" … "))
    else:
        assert found == ""


@pytest.mark.slow
def test_a_candidate_is_not_served_where_gates_must_have_passed(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    """Pinned by its digest it was served like any other: nothing beside it told that it had missed a goal."""
    asked = gated(s3, store, upstream, UNTRAINED, tmp_path, **BETTER_BY_A_QUARTER, onFail="PublishAsCandidate")
    results = [execute(context(asked, tmp_path), publish, after=sign_move_and_push) for _ in range(2)]
    digest = results[0].output_digest
    [record] = read_gates(store, digest)
    assert (record.channel, record.are_set) == (Channel.CANDIDATE, True)
    assert [(each.about, each.outcome) for each in record.goals] == [("accuracy", GateOutcome.FAIL)]

    def verified(**policy: Any) -> StageResult:
        params = VerifyParams(
            endpoint="http://127.0.0.1:1", samples=1, min_agreement_percent=75, timeout_seconds=0, **policy
        )
        given = deployment_input(s3, results[0].scalars["artifactUri"], Stage.VERIFY, params)
        return execute(context(given, tmp_path), verify)

    for policy in ({"gates": GatesPolicy.PASSED}, {"required_gates": ["accuracy"]}):
        with pytest.raises(StageError) as error:
            verified(**policy)
        assert error.value.reason is Reason.GATES_NOT_PASSED
        assert_says(error.value.message, digest, "Missed accuracy better than", "95 % interval")
    with pytest.raises(StageError) as error:
        verified()
    assert error.value.reason is not Reason.GATES_NOT_PASSED, "without a policy it is the server that is asked"


@pytest.mark.slow
def test_what_was_accepted_passes_and_takes_its_verdict_along(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    good = [answer(f"payment {n}", "ab"[n % 2], base="a", artifact="ab"[n % 2]) for n in range(40)]
    asked = gated(s3, store, upstream, good, tmp_path, **BETTER_BY_A_QUARTER)
    digest = execute(context(asked, tmp_path), publish, after=sign_move_and_push).output_digest
    require_gates(store, digest, GatesPolicy.PASSED, ["accuracy"])
    with pytest.raises(StageError, match="no goal about recall was set"):
        require_gates(store, digest, GatesPolicy.PASSED, ["recall"])
    other = store.at(f"{store.uri()}-production")
    promote(store, other, digest, tmp_path / "promote")
    require_gates(other, digest, GatesPolicy.PASSED, ["accuracy"])
    other.put(f"{gates_folder(digest)}/broken.json", b"{")
    with pytest.raises(StageError) as error:
        require_gates(other, digest, GatesPolicy.PASSED, [])
    assert error.value.reason is Reason.ARTIFACT_CORRUPT


@pytest.mark.parametrize("gate", ["accuracy", "judgeWinRate", "politeness.score"])
def test_a_gate_is_a_metric_or_a_containers_figure(gate: str) -> None:
    policy = {"requiredGates": [gate]}
    source = {"artifact": {"uri": f"s3://models/artifacts/{'a' * 64}"}}
    assert AdapterDeploymentSpec.model_validate({"source": source, "runtime": "tgi", "policy": policy})
