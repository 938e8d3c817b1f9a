"""AdapterDeployment with problems: a source that is gone, revisions that fail, children that somebody touches."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.dataset import TaskType
from finetune_api.endpoint_stages import ANSWER_SECONDS, LatencyObjectives
from finetune_api.job_status import ArtifactTokens
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_api.storage import Storage
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.verification.observation import Promise
from finetune_jobs.verify import Limit
from finetune_operator.adapterdeployment.observe import Source
from finetune_operator.adapterdeployment.target import Target, find_target
from finetune_operator.adapterdeployment.verification import find_verification, verify_request
from finetune_operator.framework.actions import Apply
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Object,
    Resource,
)
from tests.support.played_pods import BETTER, CORRUPT, CRASHING, FATES, GOOD, INACTIVE, checks
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving, shown
from tests.support.serving_specs import SETTINGS, following, pinned, published, uri

pytestmark = pytest.mark.unit


class TestSourceGone:
    """The FineTuneJob was deleted: its artifact is published all the same, and what serves it is kept whole."""

    @staticmethod
    def orphan() -> ServingCluster:
        cluster = ServingCluster(spec=following(), source=published(GOOD))
        cluster.settle()
        cluster.source = None
        cluster.settle()
        return cluster

    def test_it_goes_on_serving_and_says_what_to_do(self) -> None:
        cluster = self.orphan()
        status = cluster.status
        assert status.stable is not None
        assert cluster.revisions(DEPLOYMENTS) == {cluster.traffic()} == {status.stable.revision}
        assert status.phase is ServingPhase.DEGRADED
        assert shown(status) == {"Ready": "True", "Reconciling": "False", "Stalled": "True"}
        [stalled] = [each for each in status.conditions if each.type == "Stalled"]
        assert stalled.reason == Reason.SOURCE_NOT_FOUND
        assert_says(
            stalled.message,
            "FineTuneJob 'intents'",
            f"revision {status.stable.revision}",
            uri(GOOD),
            "spec.source.artifact.uri",
        )
        assert cluster.plan().actions == ()

    @pytest.mark.parametrize("kind", [DEPLOYMENTS, SERVICES, NETWORK_POLICIES, CONFIG_MAPS])
    def test_what_is_deleted_comes_back(self, kind: Resource) -> None:
        cluster = self.orphan()
        before = {name: child for name, child in cluster.objects[kind].items() if "-verify-" not in name}
        cluster.objects[kind].clear()
        cluster.settle()
        assert {name: _wanted(child) for name, child in cluster.objects[kind].items()} == {
            name: _wanted(child) for name, child in before.items()
        }
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)

    def test_it_still_follows_the_rest_of_the_spec(self) -> None:
        cluster = self.orphan()
        old = cluster.traffic()
        cluster.spec |= {"replicas": 2, "runtime": "tgi"}
        cluster.settle()
        assert cluster.traffic() != old
        assert cluster.status.stable is not None
        assert (cluster.status.stable.artifact_digest, cluster.status.stable.runtime) == (GOOD, "tgi")
        assert cluster.status.ready_replicas == 2

    @pytest.mark.parametrize("served", [True, False])
    def test_a_candidate_under_way_is_finished(self, served: bool) -> None:
        cluster = ServingCluster(spec=following(), source=published(GOOD) if served else published(BETTER))
        if served:
            cluster.settle()
            cluster.source = published(BETTER)
        cluster.reconcile()
        cluster.source = None
        cluster.reconcile()
        assert cluster.status.phase is ServingPhase.PROGRESSING
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == BETTER
        assert condition(cluster.status, "Stalled") == ("True", Reason.SOURCE_NOT_FOUND)

    def test_a_candidate_that_fails_is_told_and_let_go(self) -> None:
        cluster = ServingCluster(spec=following(), source=published(GOOD))
        cluster.settle()
        old, cluster.source = cluster.traffic(), published(INACTIVE)
        cluster.reconcile()
        cluster.source = None
        cluster.settle()
        assert cluster.traffic() == old
        assert cluster.status.candidate is None
        assert Reason.ADAPTER_INACTIVE in [event.reason for event in cluster.events]
        assert condition(cluster.status, "Stalled") == ("True", Reason.SOURCE_NOT_FOUND)

    def test_a_candidate_of_another_source_goes(self) -> None:
        cluster = serving()
        old, cluster.spec = cluster.traffic(), pinned(BETTER)
        cluster.reconcile()
        cluster.spec = following()
        cluster.settle()
        assert cluster.traffic() == old
        assert cluster.status.candidate is None

    @pytest.mark.parametrize(
        ("source", "phase", "reconciling"),
        [
            (published(GOOD), ServingPhase.READY, "False"),
            (Source("Running", None, Storage()), ServingPhase.PROGRESSING, "True"),
            (Source("Failed", None, Storage()), ServingPhase.DEGRADED, "False"),
        ],
    )
    def test_the_job_comes_back(self, source: Source, phase: ServingPhase, reconciling: str) -> None:
        cluster = self.orphan()
        served, cluster.source = cluster.traffic(), source
        cluster.objects[DEPLOYMENTS].clear()
        cluster.settle()
        assert cluster.revisions(DEPLOYMENTS) == {cluster.traffic()} == {served}
        assert cluster.status.phase is phase
        assert condition(cluster.status, "Reconciling")[0] == reconciling

    def test_a_resource_without_status_says_so_too(self) -> None:
        cluster = self.orphan()
        served, cluster.status = cluster.traffic(), AdapterDeploymentStatus()
        cluster.settle()
        assert cluster.traffic() == served
        assert condition(cluster.status, "Stalled") == ("True", Reason.SOURCE_NOT_FOUND)
        cluster.source = published(GOOD)
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.storage == published(GOOD).storage


class TestFailure:
    @pytest.mark.parametrize("digest", [INACTIVE, CORRUPT, CRASHING])
    def test_the_old_revision_goes_on_serving(self, digest: str) -> None:
        cluster = serving()
        old, cluster.spec = cluster.traffic(), pinned(digest)
        before = cluster.objects[DEPLOYMENTS][f"demo-{old}"]["spec"]
        cluster.settle()
        assert cluster.traffic() == old
        assert cluster.objects[DEPLOYMENTS][f"demo-{old}"]["spec"] == before
        assert cluster.revisions(DEPLOYMENTS) == {old}
        assert cluster.status.phase is ServingPhase.DEGRADED
        assert shown(cluster.status) == {"Ready": "True", "Reconciling": "False", "Stalled": "True"}
        assert condition(cluster.status, "Stalled")[1] == FATES[digest]
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.state is RevisionState.FAILED
        assert cluster.events[-1].type == "Warning"
        assert cluster.events[-1].reason == FATES[digest]

    @pytest.mark.parametrize("digest", [INACTIVE, CORRUPT, CRASHING])
    def test_without_an_old_one_nothing_serves(self, digest: str) -> None:
        cluster = ServingCluster(spec=pinned(digest))
        cluster.settle()
        assert cluster.traffic() == ""
        assert cluster.status.phase is ServingPhase.FAILED
        assert shown(cluster.status) == {"Ready": "False", "Reconciling": "False", "Stalled": "True"}
        assert cluster.objects[DEPLOYMENTS] == {}

    def test_the_status_shows_what_was_compared(self) -> None:
        """Also while it is tried again: not what an earlier try compared."""
        cluster = serving()
        cluster.spec = pinned(INACTIVE)
        cluster.settle()
        failed, served = cluster.status.candidate, cluster.status.stable
        assert failed is not None
        assert served is not None
        assert failed.verification == checks(Reason.ADAPTER_INACTIVE)
        assert served.verification == checks(None)
        cluster.spec = pinned(INACTIVE, rerun="again")
        cluster.generation += 1
        cluster.reconcile()
        again = cluster.status.candidate
        assert again is not None
        assert (again.state, again.verification) == (RevisionState.STARTING, [])

    def test_the_log_of_a_failed_verification_stays(self) -> None:
        cluster = ServingCluster(spec=pinned(INACTIVE))
        cluster.settle()
        assert len(cluster.objects[JOBS]) == 1
        assert len(cluster.objects[CONFIG_MAPS]) == 1

    def test_the_cause_is_told_once(self) -> None:
        cluster = ServingCluster(spec=pinned(CORRUPT))
        cluster.settle()
        cluster.settle()
        assert [event.reason for event in cluster.events] == [Reason.CANDIDATE_STARTING, Reason.ARTIFACT_CORRUPT]

    @pytest.mark.parametrize(
        ("spec", "again"),
        [
            ({"replicas": 3}, False),
            ({"rerun": "credentials-are-right-now"}, True),
            ({"verification": {"minAgreementPercent": 10}}, True),
        ],
    )
    def test_it_is_tried_again_only_when_asked_for(self, spec: dict[str, Any], again: bool) -> None:
        cluster = serving()
        cluster.spec = pinned(INACTIVE)
        cluster.settle()
        failed = set(cluster.objects[JOBS])
        cluster.spec |= spec
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert (cluster.status.candidate.state is RevisionState.STARTING) is again
        cluster.settle()
        assert cluster.status.candidate.state is RevisionState.FAILED
        assert (set(cluster.objects[JOBS]) == failed) is not again

    def test_long_words_of_others_fit_into_the_status(self) -> None:
        cluster = ServingCluster()
        cluster.reconcile()
        [deployment] = cluster.objects[DEPLOYMENTS].values()
        refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: " + "x" * 5000}
        deployment["status"] = {"conditions": [refused]}
        status = cluster.plan().status
        assert AdapterDeploymentStatus.model_validate(status.model_dump()) == status
        assert status.candidate is not None
        assert status.candidate.reason == Reason.QUOTA_EXCEEDED

    def test_other_artifact_other_try(self) -> None:
        cluster = serving()
        cluster.spec = pinned(CORRUPT)
        cluster.settle()
        cluster.spec = pinned(BETTER)
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == BETTER


class TestRepair:
    @pytest.mark.parametrize("kind", [DEPLOYMENTS, SERVICES, NETWORK_POLICIES, CONFIG_MAPS])
    def test_a_child_that_was_deleted_comes_back(self, kind: Resource) -> None:
        cluster = serving()
        before = set(cluster.objects[kind])
        cluster.objects[kind].clear()
        cluster.settle()
        lasting = {name for name in before if "-verify-" not in name}
        assert set(cluster.objects[kind]) == lasting
        assert cluster.status.phase is ServingPhase.READY

    @pytest.mark.parametrize("kind", [DEPLOYMENTS, SERVICES, NETWORK_POLICIES, CONFIG_MAPS])
    @pytest.mark.parametrize("spec", [pinned(INACTIVE), pinned(GOOD, runtime="unknown")])
    def test_it_comes_back_also_while_another_revision_cannot_serve(self, kind: Resource, spec: dict[str, Any]) -> None:
        cluster = serving()
        served, cluster.spec = cluster.traffic(), spec
        cluster.settle()
        before = {name for name, child in cluster.objects[kind].items() if _revision(child) == served}
        lasting = {name for name in before if "-verify-" not in name}
        cluster.objects[kind].clear()
        cluster.settle()
        assert lasting <= set(cluster.objects[kind])
        assert cluster.traffic() == served
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)

    @pytest.mark.parametrize(
        ("kind", "path", "value"),
        [
            (SERVICES, ("spec", "selector", meta.LABEL_REVISION), "00000000"),
            (SERVICES, ("spec", "selector", "added"), "by somebody"),
            (DEPLOYMENTS, ("spec", "replicas"), 7),
            (DEPLOYMENTS, ("spec", "template", "spec", "containers"), []),
            (NETWORK_POLICIES, ("spec", "ingress"), []),
        ],
    )
    def test_what_somebody_changed_is_put_right(self, kind: Resource, path: tuple[str, ...], value: Any) -> None:
        cluster = serving()
        [found] = cluster.objects[kind].values()
        for step in path[:-1]:
            found = found[step]
        before, found[path[-1]] = found.get(path[-1]), value
        [action] = cluster.plan().actions
        assert isinstance(action, Apply)
        wanted = action.object
        for step in path[:-1]:
            wanted = wanted[step]
        assert wanted.get(path[-1]) == before

    def test_what_others_added_stays(self) -> None:
        cluster = serving()
        [deployment] = cluster.objects[DEPLOYMENTS].values()
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
        deployment["spec"]["template"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/restartedAt": "now"}
        deployment["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
        assert cluster.plan().actions == ()

    def test_a_resource_without_status_finds_what_it_serves(self) -> None:
        cluster = serving()
        served, cluster.status = cluster.traffic(), AdapterDeploymentStatus()
        made = cluster.plan()
        assert made.actions == ()
        assert made.status.stable is not None
        assert made.status.stable.revision == served
        assert made.status.stable.artifact_uri == uri(GOOD)

    def test_a_resource_without_status_and_with_another_spec_goes_on_serving(self) -> None:
        cluster = serving()
        served, cluster.status, cluster.spec = cluster.traffic(), AdapterDeploymentStatus(), pinned(CORRUPT)
        cluster.settle()
        assert cluster.traffic() == served
        assert cluster.revisions(DEPLOYMENTS) == {served}


def _wanted(child: Object) -> Any:
    return {key: value for key, value in child.items() if key in ("spec", "data")}


def _revision(child: Object) -> str:
    return str(child["metadata"]["labels"][meta.LABEL_REVISION])


class TestWithdrawn:
    """The artifact that serves was withdrawn: its pods learn of it when they fetch."""

    SAID = "withdrawn by dpo on 2026-03-01: erasure request 4711"

    def told(self, **spec: Any) -> ServingCluster:
        cluster = ServingCluster(spec=pinned(GOOD, **spec))
        cluster.settle()
        result = StageResult(
            stage=Stage.FETCH,
            outcome=Outcome.SUCCEEDED,
            reason=Reason.STAGE_SUCCEEDED,
            scalars={"sizeBytes": "1", "withdrawn": self.SAID},
        )
        for pods in cluster.pods.values():
            for pod in pods:
                for container in pod["status"].get("initContainerStatuses", []):
                    container["state"]["terminated"]["message"] = result.model_dump_json(by_alias=True)
        cluster.settle()
        return cluster

    def test_it_keeps_serving_and_says_so(self) -> None:
        cluster = self.told()
        status = cluster.status
        assert (status.phase, shown(status)["Ready"]) == (ServingPhase.READY, "True")
        assert condition(status, "Discouraged") == ("True", Reason.ARTIFACT_WITHDRAWN)
        message = next(each.message for each in status.conditions if each.type == "Discouraged")
        assert_says(message, "serves an artifact that was", self.SAID, "Serve another artifact")
        assert [event.reason for event in cluster.events if event.reason is Reason.ARTIFACT_WITHDRAWN] != []

    def test_a_new_revision_is_asked_by_the_policy(self) -> None:
        for policy in WithdrawnPolicy:
            cluster = ServingCluster(spec=pinned(GOOD, policy={"withdrawn": policy.value}))
            observed = cluster.observe()
            target = find_target(observed)
            assert isinstance(target, Target)
            asked = verify_request(observed, target).input.params
            assert asked.verify is not None
            assert asked.verify.withdrawn is policy

    def test_a_new_revision_is_asked_for_the_distance_of_the_spec(self) -> None:
        for given, expected in ((None, None), ("0.75", 0.75)):
            cluster = ServingCluster(spec=pinned(GOOD, verification={"maxDistance": given}))
            observed = cluster.observe()
            target = find_target(observed)
            assert isinstance(target, Target)
            asked = verify_request(observed, target).input.params
            assert asked.verify is not None
            assert asked.verify.max_distance == expected


def test_objectives_reach_the_stage_in_seconds() -> None:
    asked = {"timeToFirstToken": "2s", "timePerOutputToken": "50ms"}
    for objectives, expected in ((asked, (2.0, 0.05)), ({}, (None, None))):
        cluster = ServingCluster(spec=pinned(GOOD, verification={"objectives": objectives}))
        observed = cluster.observe()
        target = find_target(observed)
        assert isinstance(target, Target)
        given = verify_request(observed, target).input.params.verify
        assert given is not None
        assert (given.objectives.first_token, given.objectives.output_token) == expected


@pytest.mark.parametrize(
    ("verification", "samples", "drop"),
    [
        ({}, 50, None),
        ({"samples": 7}, 7, None),
        ({"samples": 7, "detectDrop": "0.1"}, 606, 0.1),
        ({"samples": 0, "detectDrop": "0.5"}, 30, 0.5),
        ({"detectDrop": "0.01"}, 1000, 0.01),
    ],
)
def test_a_drop_to_detect_takes_the_place_of_a_number_of_samples(
    verification: dict[str, Any], samples: int, drop: float | None
) -> None:
    """The stage knows the accuracy and asks as many as it needs; its time limit is that of the most it can need."""
    cluster = ServingCluster(spec=pinned(GOOD, verification=verification))
    observed = cluster.observe()
    target = find_target(observed)
    assert isinstance(target, Target)
    asked = verify_request(observed, target).input.params.verify
    assert asked is not None
    assert (asked.samples, asked.detect_drop) == (samples, drop)
    assert asked.timeout_seconds == 600 + ANSWER_SECONDS * samples


@pytest.mark.parametrize("tokens", [0, 20, 100, 2048])
@pytest.mark.parametrize("verification", [{}, {"samples": 0}, {"detectDrop": "0.1", "samples": 1}])
@pytest.mark.parametrize("objectives", [LatencyObjectives(), LatencyObjectives(first_token=1.0)])
def test_the_pods_deadline_lies_behind_the_time_that_the_stage_gives_the_server(
    tokens: int, verification: dict[str, Any], objectives: LatencyObjectives
) -> None:
    """Whatever the answers are like, with the most golden prompts; 0: the operator does not know how long they are."""
    source = published(GOOD)
    assert source.artifact is not None
    counted = source.artifact.model_copy(update={"tokens": ArtifactTokens(answer=tokens) if tokens else None})
    cluster = ServingCluster(
        spec=following() | {"verification": verification}, source=replace(source, artifact=counted)
    )
    observed = cluster.observe()
    target = find_target(observed)
    assert isinstance(target, Target)
    request = verify_request(observed, target)
    params = request.input.params.verify
    assert params is not None
    answer = Answer(messages=[], label="a", base="b", tuned="a", artifact="a")
    answer = answer.model_copy(update={"max_tokens": tokens or target.serving.runtime.max_total_tokens})
    promise = Promise([answer] * 32, [answer] * params.samples, [], TaskType.TEXT, "INT8", objectives=objectives)
    assert request.deadline_seconds > Limit(params.timeout_seconds, 0.0).for_answers([promise]).seconds


def test_a_verification_that_does_not_run_waits_no_longer_for_long_answers() -> None:
    """They say for how long it may run."""
    asked = []
    for limit in (64, 4096):
        settings = SETTINGS.model_copy(
            update={
                "runtimes": {
                    name: each.model_copy(update={"max_total_tokens": limit, "max_input_tokens": limit // 2})
                    for name, each in SETTINGS.runtimes.items()
                }
            }
        )
        cluster = ServingCluster(settings=settings)
        for _ in range(3):
            cluster.reconcile()
            cluster.run_deployments()
        observed = cluster.observe()
        target = find_target(observed)
        assert isinstance(target, Target)
        request = verify_request(observed, target)
        found = find_verification(observed, request, cluster.now)
        assert found is not None
        asked.append((request.deadline_seconds, found.limit))
    (short, first), (long, second) = asked
    assert long > short
    assert first == second
