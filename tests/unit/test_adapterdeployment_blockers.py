"""AdapterDeployment without a target: what the plan leaves alone, what it tells, and when it tells it again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.meta import ADAPTERDEPLOYMENT
from finetune_api.reasons import Reason, remedy
from finetune_api.serving_status import AdapterDeploymentStatus, ServingPhase
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.blockers import DELETION_SECONDS
from finetune_operator.adapterdeployment.observe import Source, UnplannedDeployment
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.framework.actions import Event
from finetune_operator.framework.objects import CONTROLLER_REVISIONS, DEPLOYMENTS
from finetune_operator.settings import Settings
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.played_cluster import START
from tests.support.played_pods import BETTER, GOOD, INACTIVE, server_pod
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving, shown
from tests.support.serving_specs import SETTINGS, following, pinned, published, uri

pytestmark = pytest.mark.unit


def limited(**limits: Any) -> Settings:
    """Settings whose only rule of tenancy is for the namespace of the tests."""
    rules = [TenancyRule(namespaces=["team"], **limits)]
    return SETTINGS.model_copy(update={"tenancy": Tenancy(rules=rules)})


class TestBlocked:
    """Without a target nothing is started, and the status says what is missing and whether it comes by itself."""

    @pytest.mark.parametrize(
        ("cluster", "reason", "says", "waiting"),
        [
            (
                ServingCluster(spec=pinned(GOOD, runtime="vllm")),
                Reason.RUNTIME_UNKNOWN,
                "spec.runtime is 'vllm' … tgi, tgi-cpu",
                False,
            ),
            (
                ServingCluster(settings=SETTINGS.model_copy(update={"runtimes": {}})),
                Reason.RUNTIME_UNKNOWN,
                "spec.runtime is 'tgi-cpu' … none",
                False,
            ),
            (
                ServingCluster(settings=limited(runtimes=["vllm"])),
                Reason.NOT_ALLOWED,
                "spec.runtime is 'tgi-cpu' … 'team' … vllm",
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
                f"spec.source.artifact.uri is '{uri(GOOD)}' … 'team' … below s3://models/other",
                False,
            ),
            (
                ServingCluster(spec=following(), source=published(GOOD), settings=limited(inputs=[])),
                Reason.NOT_ALLOWED,
                f"The artifact of FineTuneJob 'intents' is '{uri(GOOD)}'",
                False,
            ),
            (
                ServingCluster(spec=following(), source=published(GOOD), settings=limited(endpoints=["AWS"])),
                Reason.NOT_ALLOWED,
                "The endpoint … FineTuneJob 'intents' … is 'http://s3.storage.svc:8333' … 'team' … none (AWS)",
                False,
            ),
            (
                ServingCluster(service_account=False),
                Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
                "ServiceAccount 'finetune-runner' … runtime 'tgi-cpu' … namespace 'team'",
                False,
            ),
            (ServingCluster(spec=following()), Reason.SOURCE_NOT_READY, "FineTuneJob 'intents' does not exist", True),
            (
                ServingCluster(spec=following(), source=Source("Running", None, Storage())),
                Reason.SOURCE_NOT_READY,
                "FineTuneJob 'intents' … artifact … Running",
                True,
            ),
            (
                ServingCluster(spec=following(), source=Source("", None, Storage())),
                Reason.SOURCE_NOT_READY,
                "FineTuneJob 'intents' … artifact … not started",
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
        assert_says(ready.message, *says.split(" … "))

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
        made = plan(replace(cluster.observe(), conflicts=("Service demo",)), START)
        assert made.actions == ()
        assert condition(made.status, "Stalled") == ("True", Reason.NAME_TAKEN)
        assert made.blocked  # no event shows when the other Service is deleted

    def test_what_an_earlier_resource_of_the_name_left_is_waited_for(self) -> None:
        """The garbage collector takes it: nobody has to act, and nobody is warned."""
        cluster = ServingCluster()
        made = plan(replace(cluster.observe(), pending_deletion=("Service demo",)), START)
        assert (made.actions, made.events) == ((), ())
        assert made.status.phase is ServingPhase.PENDING
        assert shown(made.status) == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}
        assert condition(made.status, "Ready") == ("False", Reason.WAITING)
        assert_says(made.status.conditions[0].message, "Service demo", "deleted AdapterDeployment")
        assert made.requeue_after == DELETION_SECONDS

    @pytest.mark.parametrize(
        ("reference", "outlived"),
        [
            ({}, True),
            ({"uid": "uid-of-demo"}, False),
            ({"name": "other"}, False),
            ({"kind": "FineTuneJob"}, False),
            ({"apiVersion": "elsewhere.io/v1"}, False),
            ({"controller": False}, False),
        ],
    )
    def test_what_a_deleted_resource_left_is_told_from_a_conflict(
        self, reference: dict[str, Any], outlived: bool
    ) -> None:
        owner = ServingCluster().observe().owner
        [theirs] = replace(owner, uid="uid-of-before").metadata("demo")["ownerReferences"]
        assert owner.outlived({"metadata": {"ownerReferences": [theirs | reference]}}) is outlived
        assert owner.outlived({"metadata": {}}) is False

    def test_what_the_api_server_refuses_is_told_in_its_words(self) -> None:
        cluster = ServingCluster()
        said = 'deployments.apps "demo" is forbidden: exceeded quota: few, requested: count/deployments.apps=1'
        made = plan(replace(cluster.observe(), refusal=said), START)
        assert condition(made.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
        assert any("exceeded quota: few" in each.message for each in made.status.conditions)
        assert made.blocked  # nobody need tell when the quota grows

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
        assert [resource for resource, found in cluster.objects.items() if found] == [CONTROLLER_REVISIONS]
        assert cluster.status.candidate is None

    @pytest.mark.parametrize(
        ("reason", "problem", "told"),
        [
            (Reason.SPEC_INVALID, "spec.runtime: too long", "not valid"),
            (Reason.API_CALLS_FAIL, "500 InternalError: away", "API"),
        ],
    )
    def test_what_cannot_be_planned_changes_only_the_status(self, reason: Reason, problem: str, told: str) -> None:
        cluster = serving()
        metadata = cluster.observe().resource.metadata
        made = plan(UnplannedDeployment(metadata, cluster.status, reason, problem), START)
        assert made.actions == ()
        assert condition(made.status, "Stalled") == ("True", reason)
        message = next(each.message for each in made.status.conditions if each.type == "Stalled")
        assert_says(message, told, f"{problem}.", remedy(reason, ADAPTERDEPLOYMENT))
        assert made.events == (Event("Warning", reason, message),)
        assert made.status.stable == cluster.status.stable
        assert condition(made.status, "Ready")[0] == "True"
        first = plan(UnplannedDeployment(metadata, AdapterDeploymentStatus(), reason, problem), START).status
        assert (first.phase, condition(first, "Ready")[0]) == (ServingPhase.FAILED, "False")


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
        name = cluster.status.candidate.deployment
        labels = cluster.objects[DEPLOYMENTS][name]["spec"]["template"]["metadata"]["labels"]
        cluster.pods[name] = [server_pod(name, "p", labels, {"conditions": [unschedulable]})]
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

    def test_that_they_answer_again_is_told_once(self) -> None:
        cluster = serving()
        [deployment] = cluster.objects[DEPLOYMENTS].values()
        ready = {name: deployment["status"][name] for name in ("readyReplicas", "availableReplicas")}
        for status in (dict.fromkeys(ready, 0), ready):
            deployment["status"] |= status
            for _ in range(3):
                cluster.reconcile()
        assert [(event.type, event.reason) for event in cluster.events[-2:]] == [
            ("Warning", Reason.SERVER_UNAVAILABLE),
            ("Normal", Reason.SERVING),
        ]
        assert "1 of 1 pods answer" in cluster.events[-1].message

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
