"""AdapterDeployment, one rule after the other: what was observed, and what the plan makes of it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_api.reasons import Reason
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_operator.actions import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Action,
    Apply,
    Create,
    Event,
    Object,
    Patch,
    Resource,
)
from finetune_operator.adapterdeployment.observe import Invalid, Source
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.settings import Settings
from finetune_operator.tenancy import Tenancy, TenancyRule
from tests.support.serving import (
    BETTER,
    CORRUPT,
    CRASHING,
    FATES,
    GOOD,
    INACTIVE,
    SETTINGS,
    START,
    ServingCluster,
    following,
    pinned,
    published,
    uri,
)

pytestmark = pytest.mark.unit

POLICY_SECONDS = SETTINGS.policy_seconds


def serving(digest: str = GOOD, **spec: Any) -> ServingCluster:
    """A cluster whose resource serves an artifact, at rest."""
    cluster = ServingCluster(spec=pinned(digest, **spec))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    return cluster


def limited(**limits: Any) -> Settings:
    """Settings whose only rule of tenancy is for the namespace of the tests."""
    rules = [TenancyRule(namespaces=["team"], **limits)]
    return SETTINGS.model_copy(update={"tenancy": Tenancy(rules=rules)})


def wrote(action: Action) -> tuple[str, Resource, str]:
    name = action.object["metadata"]["name"] if isinstance(action, Create | Apply) else action.name
    return type(action).__name__, action.resource, name


def condition(status: AdapterDeploymentStatus, kind: str) -> tuple[str, str]:
    found = next(each for each in status.conditions if each.type == kind)
    return found.status, found.reason


def shown(status: AdapterDeploymentStatus) -> dict[str, str]:
    """Conditions as they stand in a row: True, False."""
    return {each.type: each.status for each in status.conditions}


class TestBlocked:
    """Without a target nothing is started, and the status says what is missing and whether it comes by itself."""

    @pytest.mark.parametrize(
        ("cluster", "reason", "says", "waiting"),
        [
            (
                ServingCluster(spec=pinned(GOOD, runtime="vllm")),
                Reason.RUNTIME_UNKNOWN,
                "spec.runtime is 'vllm'; the platform offers: tgi, tgi-cpu.",
                False,
            ),
            (
                ServingCluster(settings=SETTINGS.model_copy(update={"runtimes": {}})),
                Reason.RUNTIME_UNKNOWN,
                "the platform offers: none.",
                False,
            ),
            (
                ServingCluster(settings=limited(runtimes=["vllm"])),
                Reason.NOT_ALLOWED,
                "spec.runtime is 'tgi-cpu'; namespace 'team' may have vllm.",
                False,
            ),
            (
                ServingCluster(spec=following(), settings=limited(runtimes=["vllm"])),
                Reason.NOT_ALLOWED,
                "spec.runtime is 'tgi-cpu'",  # also before the source has published
                False,
            ),
            (
                ServingCluster(settings=limited(inputs=["s3://models/other"])),
                Reason.NOT_ALLOWED,
                f"spec.source.artifact.uri is '{uri(GOOD)}'; namespace 'team' may have what is below s3://models/other.",
                False,
            ),
            (
                ServingCluster(spec=following(), source=published(GOOD), settings=limited(inputs=[])),
                Reason.NOT_ALLOWED,
                f"The artifact of FineTuneJob 'intents' is '{uri(GOOD)}'",
                False,
            ),
            (
                ServingCluster(spec=following(), source=published(GOOD), settings=limited(endpoints=[""])),
                Reason.NOT_ALLOWED,
                "The endpoint in spec.storage of FineTuneJob 'intents' is 'http://s3.storage.svc:8333'; "
                "namespace 'team' may have none (AWS).",
                False,
            ),
            (
                ServingCluster(service_account=False),
                Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
                "ServiceAccount 'finetune-runner' of runtime 'tgi-cpu' does not exist in namespace 'team'.",
                False,
            ),
            (ServingCluster(spec=following()), Reason.SOURCE_NOT_READY, "FineTuneJob 'intents' does not exist", True),
            (
                ServingCluster(spec=following(), source=Source("Running", None, Storage())),
                Reason.SOURCE_NOT_READY,
                "has not published an artifact; its phase is Running.",
                True,
            ),
            (
                ServingCluster(spec=following(), source=Source("", None, Storage())),
                Reason.SOURCE_NOT_READY,
                "it has not begun.",
                True,
            ),
        ],
    )
    def test_before_anything_serves(self, cluster: ServingCluster, reason: Reason, says: str, waiting: bool) -> None:
        made = cluster.plan()
        assert made.actions == ()
        assert made.status.phase is (ServingPhase.PENDING if waiting else ServingPhase.FAILED)
        assert shown(made.status) == {"Ready": "False", "Reconciling": str(waiting), "Stalled": str(not waiting)}
        ready = made.status.conditions[0]
        assert ready.reason == reason
        assert says in ready.message

    def test_new_rules_end_a_candidate_and_leave_alone_what_serves(self) -> None:
        cluster = serving()
        before = cluster.status.stable
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        cluster.settings = limited(runtimes=["tgi"])
        cluster.settle()
        assert condition(cluster.status, "Stalled") == ("True", Reason.NOT_ALLOWED)
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
        assert (cluster.status.stable, cluster.status.candidate) == (before, None)
        assert before is not None
        assert set(cluster.objects[DEPLOYMENTS]) == {before.deployment}
        cluster.settings = limited(runtimes=["tgi*"])
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == BETTER

    def test_a_foreign_service_of_the_name_is_left_alone(self) -> None:
        cluster = ServingCluster()
        made = plan(replace(cluster.observe(), strangers=("Service demo",)), START)
        assert made.actions == ()
        assert condition(made.status, "Stalled") == ("True", Reason.NAME_TAKEN)
        assert made.requeue_after is not None  # nobody tells when the stranger goes

    def test_what_the_api_server_refuses_is_told_in_its_words(self) -> None:
        cluster = ServingCluster()
        said = 'deployments.apps "demo" is forbidden: exceeded quota: few, requested: count/deployments.apps=1'
        made = plan(replace(cluster.observe(), refusal=said), START)
        assert condition(made.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
        assert any("exceeded quota: few" in each.message for each in made.status.conditions)
        assert made.requeue_after is not None  # nobody tells when the quota grows

    @pytest.mark.parametrize(
        ("breaks", "phase"),
        [
            (lambda cluster: cluster.spec.update(runtime="vllm"), ServingPhase.DEGRADED),
            (lambda cluster: setattr(cluster, "service_account", False), ServingPhase.DEGRADED),
            (lambda cluster: setattr(cluster, "spec", following()), ServingPhase.DEGRADED),
        ],
    )
    def test_what_serves_goes_on_serving(self, breaks: Callable[[ServingCluster], None], phase: ServingPhase) -> None:
        cluster = serving()
        before = cluster.traffic()
        breaks(cluster)
        cluster.reconcile()
        assert cluster.traffic() == before
        assert cluster.revisions(DEPLOYMENTS) == {before}
        assert cluster.status.phase is phase
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)

    def test_a_candidate_of_an_earlier_target_goes(self) -> None:
        cluster = ServingCluster()
        cluster.reconcile()
        cluster.spec["runtime"] = "vllm"
        cluster.reconcile()
        assert not any(cluster.objects.values())
        assert cluster.status.candidate is None

    def test_a_spec_that_cannot_be_read_changes_only_the_status(self) -> None:
        cluster = serving()
        observed = cluster.observe()
        made = plan(Invalid(observed.resource.metadata, cluster.status, "spec.runtime: too long"), START)
        assert made.actions == ()
        assert condition(made.status, "Stalled") == ("True", Reason.SPEC_INVALID)
        assert made.status.stable == cluster.status.stable
        assert condition(made.status, "Ready")[0] == "True"


class TestRollout:
    def test_the_first_one_step_by_step(self) -> None:
        cluster = ServingCluster()
        steps = []
        for _ in range(5):
            made = cluster.reconcile()
            steps.append([wrote(action)[:2] for action in made.actions])
            cluster.run_controllers()
            cluster.now += timedelta(seconds=POLICY_SECONDS)
        assert steps == [
            [("Create", kind) for kind in (NETWORK_POLICIES, SERVICES, CONFIG_MAPS, DEPLOYMENTS)],
            [("Create", CONFIG_MAPS), ("Create", JOBS)],
            [("Apply", NETWORK_POLICIES)],
            [("Create", SERVICES), ("Delete", SERVICES)],
            [],
        ]
        assert [event.reason for event in cluster.events] == [Reason.CANDIDATE_STARTING, Reason.PROMOTED]

    def test_the_status_of_a_served_revision(self) -> None:
        status = serving(replicas=2).status
        assert status.stable is not None
        assert status.stable.artifact_digest == GOOD
        assert status.stable.artifact_uri == uri(GOOD)
        assert (status.stable.accuracy, status.stable.expected_accuracy) == ("0.9000", "0.9100")
        assert status.stable.state is RevisionState.SERVING
        assert status.last_good_revision == status.stable.revision
        assert (status.replicas, status.ready_replicas) == (2, 2)
        assert status.endpoint == "http://demo.team.svc:80"
        assert f"{meta.LABEL_REVISION}={status.stable.revision}" in status.selector.split(",")
        assert shown(status) == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
        assert status.candidate is None

    def test_at_rest_nothing_is_written(self) -> None:
        made = serving().plan()
        assert (made.actions, made.events, made.requeue_after) == ((), (), None)

    def test_only_the_verifier_reaches_a_candidate_and_everybody_what_serves(self) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        policies = {name: policy["spec"]["ingress"] for name, policy in cluster.objects[NETWORK_POLICIES].items()}
        port = [{"protocol": "TCP", "port": meta.SERVING_PORT}]
        candidate = cluster.status.candidate
        assert candidate is not None
        assert policies.pop(f"demo-{old}") == [{"ports": port}]
        [rule] = policies.pop(candidate.deployment)
        [peer] = rule["from"]
        assert peer["podSelector"]["matchLabels"][meta.LABEL_STAGE] == "verify"
        assert peer["podSelector"]["matchLabels"][meta.LABEL_OWNER_NAME] == "demo"
        cluster.settle()
        assert [policy["spec"]["ingress"] for policy in cluster.objects[NETWORK_POLICIES].values()] == [
            [{"ports": port}]
        ]

    def test_the_old_revision_serves_until_the_new_one_is_proved_and_drains_before_it_goes(self) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER)
        for _ in range(2):
            cluster.reconcile()
            cluster.run_controllers()
            assert cluster.traffic() == old
            assert cluster.status.phase is ServingPhase.PROGRESSING
            assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
        assert cluster.reconcile().requeue_after == POLICY_SECONDS  # proved: its network opens
        assert cluster.reconcile().requeue_after == POLICY_SECONDS
        assert cluster.traffic() == old
        cluster.now += timedelta(seconds=POLICY_SECONDS)
        made = cluster.reconcile()
        new = cluster.traffic()
        assert new != old
        assert cluster.revisions(DEPLOYMENTS) == {old, new}
        assert made.requeue_after == 5  # the drain of tgi-cpu
        cluster.run_controllers()
        cluster.now += timedelta(seconds=4)
        assert cluster.reconcile().requeue_after == 1
        assert cluster.revisions(DEPLOYMENTS) == {old, new}
        cluster.now += timedelta(seconds=1)
        cluster.reconcile()
        for kind in (DEPLOYMENTS, NETWORK_POLICIES, CONFIG_MAPS, JOBS, SERVICES):
            assert cluster.revisions(kind) == {new}

    @pytest.mark.parametrize(
        "change",
        [
            lambda cluster: cluster.spec.update(runtime="tgi"),
            lambda cluster: cluster.spec["source"]["artifact"].update(uri=uri(BETTER)),
            lambda cluster: cluster.spec["source"]["artifact"].update(storage={"endpoint": "http://other.svc:1"}),
            lambda cluster: setattr(cluster, "settings", _with_runtime(image="images/tgi-cpu:2")),
            lambda cluster: setattr(cluster, "settings", _with_runtime(env={"CUDA_GRAPHS": "0"})),
            lambda cluster: setattr(cluster, "settings", _with_runtime(max_input_tokens=99)),
        ],
    )
    def test_what_makes_another_revision(self, change: Callable[[ServingCluster], None]) -> None:
        cluster = serving()
        old = cluster.traffic()
        change(cluster)
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.revision != old
        assert cluster.traffic() == old

    @pytest.mark.parametrize("spec", [{"replicas": 4}, {"verification": {"samples": 7}}, {"rerun": "again"}])
    def test_what_does_not(self, spec: dict[str, Any]) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.spec |= spec
        cluster.settle()
        assert cluster.revisions(DEPLOYMENTS) == {old}
        assert cluster.status.phase is ServingPhase.READY

    def test_a_newer_target_replaces_an_unfinished_candidate(self) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        cluster.run_controllers()
        cluster.reconcile()
        cluster.now += timedelta(minutes=1)
        skipped = cluster.revisions(JOBS) - {old}
        cluster.spec = pinned(INACTIVE)
        cluster.reconcile()
        for kind in (DEPLOYMENTS, SERVICES, JOBS, NETWORK_POLICIES, CONFIG_MAPS):
            assert not cluster.revisions(kind) & skipped

    def test_another_proof_replaces_the_one_that_was_asked_for(self) -> None:
        cluster = serving()
        cluster.spec = pinned(BETTER)
        for _ in range(2):
            cluster.reconcile()
            cluster.run_deployments()
        [first] = set(cluster.objects[JOBS]) - {
            name for name, job in cluster.objects[JOBS].items() if job.get("status")
        }
        cluster.spec["verification"] = {"samples": 7}
        cluster.reconcile()
        assert first not in cluster.objects[JOBS]
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.state is RevisionState.VERIFYING
        assert cluster.traffic() != cluster.status.candidate.revision
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY

    def test_the_operator_dies_between_the_first_switch_and_the_status(self) -> None:
        cluster = ServingCluster()
        for _ in range(3):
            cluster.reconcile()
            cluster.run_controllers()
        cluster.now += timedelta(seconds=POLICY_SECONDS)
        made = cluster.reconcile(crash_after=1)
        assert wrote(made.actions[0])[1] is SERVICES
        assert cluster.traffic() != ""
        assert cluster.status.endpoint == ""
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.accuracy == "0.9000"
        assert [event.reason for event in cluster.events] == [Reason.CANDIDATE_STARTING, Reason.PROMOTED]

    def test_going_back_drops_the_candidate(self) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        cluster.now += timedelta(minutes=1)
        cluster.spec = pinned(GOOD)
        cluster.reconcile()
        assert cluster.status.candidate is None
        assert cluster.revisions(DEPLOYMENTS) == {old}
        assert cluster.plan().actions == ()

    def test_going_back_after_a_promotion_serves_the_old_revision_again(self) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER)
        cluster.settle()
        cluster.spec = pinned(GOOD)
        cluster.settle()
        assert cluster.traffic() == old
        assert cluster.revisions(DEPLOYMENTS) == {old}

    def test_a_new_artifact_of_the_job_is_followed(self) -> None:
        cluster = ServingCluster(spec=following(), source=published(GOOD))
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == GOOD
        cluster.source = published(BETTER)
        cluster.settle()
        assert cluster.status.stable.artifact_digest == BETTER


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
        assert stalled.message == (
            f"FineTuneJob 'intents' does not exist in this namespace; revision {status.stable.revision} goes on "
            f"serving {uri(GOOD)}. Apply the FineTuneJob again, or pin what serves: set spec.source.artifact.uri to "
            "that URI."
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


class TestEvents:
    """What somebody can act on is told when it appears, once."""

    @pytest.mark.parametrize(
        ("cluster", "reason"),
        [
            (ServingCluster(spec=pinned(GOOD, runtime="vllm")), Reason.RUNTIME_UNKNOWN),
            (ServingCluster(service_account=False), Reason.RUNNER_SERVICE_ACCOUNT_MISSING),
            (ServingCluster(spec=following(), source=Source("Failed", None, Storage())), Reason.SOURCE_NOT_READY),
        ],
    )
    def test_what_blocks_is_told_once_with_the_words_of_the_condition(
        self, cluster: ServingCluster, reason: Reason
    ) -> None:
        cluster.settle()
        [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
        assert cluster.events == [Event("Warning", reason, stalled.message)]
        cluster.spec["replicas"] = 3
        cluster.settle()
        assert len(cluster.events) == 1

    def test_what_a_candidate_waits_for_is_told_before_it_fails_of_it(self) -> None:
        cluster = serving()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        assert cluster.status.candidate is not None
        unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
        labels = cluster.objects[DEPLOYMENTS][cluster.status.candidate.deployment]["spec"]["template"]["metadata"]
        pod = {"metadata": {"name": "p", **labels}, "status": {"conditions": [unschedulable]}}
        cluster.pods[cluster.status.candidate.deployment] = [pod]
        for _ in range(2):
            cluster.reconcile()
        assert [(event.type, event.reason) for event in cluster.events[-2:]] == [
            ("Normal", Reason.CANDIDATE_STARTING),
            ("Warning", Reason.UNSCHEDULABLE),
        ]

    def test_that_the_source_is_not_ready_yet_is_no_warning(self) -> None:
        cluster = ServingCluster(spec=following())
        cluster.settle()
        assert [(event.type, event.reason) for event in cluster.events] == [("Normal", Reason.SOURCE_NOT_READY)]

    def test_pods_that_stop_answering_are_told(self) -> None:
        cluster = serving()
        [deployment] = cluster.objects[DEPLOYMENTS].values()
        deployment["status"] |= {"readyReplicas": 0, "availableReplicas": 0}
        cluster.reconcile()
        assert (cluster.events[-1].type, cluster.events[-1].reason) == ("Warning", Reason.SERVER_UNAVAILABLE)

    def test_trouble_that_goes_and_comes_back_is_told_again(self) -> None:
        cluster = serving()
        for runtime in ("vllm", "tgi-cpu", "vllm"):
            cluster.spec["runtime"] = runtime
            cluster.settle()
        told = [event for event in cluster.events if event.reason is Reason.RUNTIME_UNKNOWN]
        assert len(told) == 2

    def test_what_comes_on_top_of_a_failed_candidate_is_told(self) -> None:
        cluster = serving()
        cluster.spec = pinned(INACTIVE)
        cluster.settle()
        cluster.service_account = False
        cluster.settle()
        assert [event.reason for event in cluster.events[-2:]] == [
            Reason.ADAPTER_INACTIVE,
            Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
        ]


class TestEncryption:
    def test_how_the_source_writes_makes_no_other_revision(self) -> None:
        """Whoever reads need not know, so that the pods are the same."""
        source = published(GOOD)
        cluster = ServingCluster(spec=following(), source=source)
        cluster.settle()
        before = cluster.status
        encrypted = source.storage.model_copy(update={"encryption": Encryption(algorithm=EncryptionAlgorithm.AES256)})
        cluster.source = replace(source, storage=encrypted)
        cluster.settle()
        assert cluster.status == before


class TestReplicas:
    @pytest.mark.parametrize("wanted", [0, 1, 3])
    def test_they_follow_the_spec(self, wanted: int) -> None:
        cluster = serving(replicas=2)
        cluster.spec["replicas"] = wanted
        cluster.settle()
        assert (cluster.status.replicas, cluster.status.ready_replicas) == (wanted, wanted)
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
        assert cluster.status.phase is ServingPhase.READY

    def test_a_revision_that_shall_sleep_is_proved_first(self) -> None:
        cluster = ServingCluster(spec=pinned(GOOD, replicas=0))
        cluster.reconcile()
        assert [deployment["spec"]["replicas"] for deployment in cluster.objects[DEPLOYMENTS].values()] == [1]
        cluster.settle()
        assert [deployment["spec"]["replicas"] for deployment in cluster.objects[DEPLOYMENTS].values()] == [0]
        assert cluster.status.stable is not None

    def test_one_pod_is_proved_before_the_others_start_and_all_are_ready_before_the_traffic_moves(self) -> None:
        cluster = serving(replicas=3)
        old, cluster.spec = cluster.traffic(), pinned(BETTER, replicas=3)
        sizes = []
        while cluster.traffic() == old:
            cluster.reconcile()
            candidate = cluster.status.candidate
            deployment = cluster.objects[DEPLOYMENTS][candidate.deployment] if candidate else None
            sizes.append((deployment["spec"]["replicas"], candidate.state) if deployment and candidate else None)
            cluster.run_controllers()
            cluster.now += timedelta(seconds=POLICY_SECONDS)
        assert sizes == [
            (1, RevisionState.STARTING),
            (1, RevisionState.VERIFYING),
            (3, RevisionState.PROMOTING),
            None,
        ]

    def test_the_old_revision_is_scaled_too_while_a_new_one_starts(self) -> None:
        cluster = serving(replicas=1)
        cluster.spec = pinned(BETTER, replicas=3)
        cluster.reconcile()
        assert cluster.status.stable is not None
        assert cluster.objects[DEPLOYMENTS][cluster.status.stable.deployment]["spec"]["replicas"] == 3

    def test_nothing_but_the_number_changes_of_pods_that_the_values_would_make_otherwise_now(self) -> None:
        cluster = serving(replicas=1)
        cluster.spec["replicas"], cluster.settings = 3, _with_runtime(image="images/tgi-cpu:2")
        made = cluster.reconcile()
        assert cluster.status.stable is not None
        patches = [action for action in made.actions if isinstance(action, Patch)]
        assert patches == [Patch(DEPLOYMENTS, cluster.status.stable.deployment, {"spec": {"replicas": 3}})]

    @pytest.mark.parametrize(
        ("ready", "phase", "is_ready"), [(0, ServingPhase.DEGRADED, "False"), (1, ServingPhase.DEGRADED, "True")]
    )
    def test_pods_that_do_not_answer(self, ready: int, phase: ServingPhase, is_ready: str) -> None:
        cluster = serving(replicas=2)
        [deployment] = cluster.objects[DEPLOYMENTS].values()
        deployment["status"] |= {"readyReplicas": ready, "availableReplicas": ready}
        cluster.reconcile()
        assert cluster.status.phase is phase
        assert shown(cluster.status) == {"Ready": is_ready, "Reconciling": "True", "Stalled": "False"}
        assert cluster.status.ready_replicas == ready


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


def _with_runtime(**fields: Any) -> Settings:
    changed = SETTINGS.runtimes["tgi-cpu"].model_copy(update=fields)
    return SETTINGS.model_copy(update={"runtimes": SETTINGS.runtimes | {"tgi-cpu": changed}})
