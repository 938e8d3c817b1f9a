"""The network opens when the verification has passed, and traffic moves when the verifier has seen it open."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.endpoint_stages import DOOR_SECONDS
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, NETWORK_POLICIES, SERVICES, Object
from tests.support.played_pods import BETTER, job_pod
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

CANARY = {"type": "Canary", "canary": {"steps": [{"weight": 50, "pause": "10m"}]}}


def verifying(**spec: Any) -> tuple[ServingCluster, str, str]:
    """A cluster whose candidate is being verified; what serves, and the candidate."""
    cluster = serving(**spec)
    old = cluster.traffic()
    cluster.spec = pinned(BETTER, **spec)
    for _ in range(3):
        cluster.reconcile()
        cluster.run_deployments()
    candidate = cluster.status.candidate
    assert candidate is not None
    assert candidate.state is RevisionState.VERIFYING
    return cluster, old, candidate.revision


def verification(cluster: ServingCluster, revision: str) -> Object:
    [job] = [
        job for job in cluster.objects[JOBS].values() if job["metadata"]["labels"][meta.LABEL_REVISION] == revision
    ]
    return job


def runs(cluster: ServingCluster, revision: str, *, ready: bool) -> None:
    """The verification has a pod, which says or does not say that all checks have passed."""
    job = verification(cluster, revision)
    job["status"] = {"active": 1}
    pod = job_pod(job, StageResult(stage=Stage.VERIFY, outcome=Outcome.SUCCEEDED, reason=Reason.VERIFIED))
    condition = {"type": "Ready", "status": str(ready)}
    container = {"name": "stage", "ready": ready, "state": {"running": {}}}
    pod["status"] = {"phase": "Running", "conditions": [condition], "containerStatuses": [container]}
    cluster.pods[job["metadata"]["name"]] = [pod]


def ends(cluster: ServingCluster, revision: str, **scalars: str) -> None:
    """It has passed and ended."""
    job = verification(cluster, revision)
    passed = StageResult(stage=Stage.VERIFY, outcome=Outcome.SUCCEEDED, reason=Reason.VERIFIED, scalars=scalars)
    cluster.pods[job["metadata"]["name"]] = [job_pod(job, passed)]


def is_open(cluster: ServingCluster, revision: str) -> bool:
    """Whether clients reach the pods of a revision."""
    policy = cluster.objects[NETWORK_POLICIES][f"demo-{revision}"]
    return {"podSelector": {}} in policy["spec"]["ingress"][0]["from"]


def test_the_verifier_is_told_of_a_port_that_only_the_open_policy_opens_to_it() -> None:
    cluster, old, new = verifying()
    job = verification(cluster, new)
    given = StageInput.model_validate_json(cluster.objects[CONFIG_MAPS][job["metadata"]["name"]]["data"]["input.json"])
    assert given.params.verify is not None
    name, port = f"demo-{new}-candidate", meta.SELF_CHECK_PORT
    assert given.params.verify.door == f"http://{name}.team.svc:{port}"
    ports = [(each["port"], each["targetPort"]) for each in cluster.objects[SERVICES][name]["spec"]["ports"]]
    assert ports == [(80, "http"), (port, port)]
    policies = [cluster.objects[NETWORK_POLICIES][f"demo-{revision}"]["spec"]["ingress"] for revision in (old, new)]
    opened = [{rule["ports"][0]["port"] for rule in rules} for rules in policies]
    assert opened == [{meta.SERVING_PORT, port}, {meta.SERVING_PORT}]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["exec"]["command"] == ["test", "-e", meta.PROVED_FILE]


def test_nobody_reaches_a_candidate_before_its_verification_has_passed() -> None:
    cluster, old, new = verifying()
    for ready, opened in ((False, False), (True, True)):
        runs(cluster, new, ready=ready)
        cluster.reconcile()
        assert is_open(cluster, new) == opened
        assert cluster.traffic() == old, "only its end decides"
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.state is RevisionState.VERIFYING


def test_traffic_moves_as_soon_as_the_verifier_has_seen_the_network_open() -> None:
    cluster, _, new = verifying()
    runs(cluster, new, ready=True)
    cluster.reconcile()
    ends(cluster, new, **{DOOR_SECONDS: "0.80"})
    cluster.reconcile()
    assert cluster.traffic() == new


@pytest.mark.parametrize("told", [True, False])
def test_without_having_seen_it_the_network_gets_its_time(*, told: bool) -> None:
    """The operator may have been down while the verifier waited; or the port was open all along."""
    cluster, old, new = verifying()
    if told:
        runs(cluster, new, ready=True)
        cluster.reconcile()
    ends(cluster, new)
    for _ in range(2):
        assert cluster.reconcile().requeue_after == SETTINGS.policy_seconds
        assert (is_open(cluster, new), cluster.traffic()) == (True, old)
    cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
    cluster.reconcile()
    assert cluster.traffic() == new


def test_what_somebody_has_closed_again_gets_its_time() -> None:
    cluster, old, new = verifying()
    runs(cluster, new, ready=True)
    cluster.reconcile()
    ends(cluster, new, **{DOOR_SECONDS: "0.80"})
    del cluster.objects[NETWORK_POLICIES][f"demo-{new}"]
    cluster.reconcile()
    assert (is_open(cluster, new), cluster.traffic()) == (True, old)
    cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.traffic() == new


def test_the_word_of_a_lost_verifier_moves_no_traffic() -> None:
    """Its pod goes with its node before it has ended; another one begins from the start, and fails."""
    cluster, old, new = verifying()
    runs(cluster, new, ready=True)
    cluster.reconcile()
    runs(cluster, new, ready=False)
    cluster.reconcile()
    assert cluster.traffic() == old
    job = verification(cluster, new)
    wrong = StageResult(stage=Stage.VERIFY, outcome=Outcome.FAILED, reason=Reason.VERIFICATION_FAILED, message="No.")
    cluster.pods[job["metadata"]["name"]] = [job_pod(job, wrong)]
    cluster.settle()
    assert cluster.traffic() == old
    assert cluster.revisions(NETWORK_POLICIES) == {old}


def test_a_canary_gets_its_share_as_soon() -> None:
    cluster, _, new = verifying(strategy=CANARY)
    runs(cluster, new, ready=True)
    cluster.reconcile()
    ends(cluster, new, **{DOOR_SECONDS: "0.80"})
    cluster.reconcile()
    assert cluster.shared()
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.CANARY


def test_a_platform_whose_network_needs_no_time_waits_for_no_door() -> None:
    cluster = ServingCluster(settings=SETTINGS.model_copy(update={"policy_seconds": 0}))
    cluster.reconcile()
    cluster.run_deployments()
    cluster.reconcile()
    [job] = cluster.objects[JOBS].values()
    assert '"door":""' in cluster.objects[CONFIG_MAPS][job["metadata"]["name"]]["data"]["input.json"]
    assert "readinessProbe" not in job["spec"]["template"]["spec"]["containers"][0]
