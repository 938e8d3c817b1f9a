"""AdapterDeployment, one rule after the other: what was observed, and what the plan makes of it while all goes well."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_api.storage import Encryption, EncryptionAlgorithm
from finetune_operator.framework.actions import Action, Apply, Create, Patch
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Resource,
)
from finetune_operator.settings import ServingAccess, Settings
from tests.support.played_pods import BETTER, GOOD, INACTIVE, checks, pod_status
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving, shown
from tests.support.serving_specs import SETTINGS, following, pinned, published, uri, without_record

pytestmark = pytest.mark.unit

POLICY_SECONDS = SETTINGS.policy_seconds


def wrote(action: Action) -> tuple[str, Resource, str]:
    name = action.object["metadata"]["name"] if isinstance(action, Create | Apply) else action.name
    return type(action).__name__, action.resource, name


class TestRollout:
    def test_the_first_one_step_by_step(self) -> None:
        cluster = ServingCluster()
        steps = []
        for _ in range(5):
            made = cluster.reconcile()
            steps.append([wrote(action)[:2] for action in made.actions])
            cluster.run_controllers()
            cluster.now += timedelta(seconds=POLICY_SECONDS)
        before = (NETWORK_POLICIES, SERVICES, CONTROLLER_REVISIONS)
        assert steps == [
            [("Create", kind) for kind in (*before, CONFIG_MAPS, CONFIG_MAPS, DEPLOYMENTS)],
            [("Create", CONFIG_MAPS), ("Create", JOBS)],
            [("Delete", SERVICES), ("Apply", NETWORK_POLICIES)],
            [("Create", SERVICES)],
            [],
        ]
        assert [event.reason for event in cluster.events] == [Reason.CANDIDATE_STARTING, Reason.PROMOTED]

    def test_the_status_of_a_served_revision(self) -> None:
        status = serving(replicas=2).status
        assert status.stable is not None
        assert status.stable.artifact_digest == GOOD
        assert status.stable.artifact_uri == uri(GOOD)
        assert (status.stable.accuracy, status.stable.expected_accuracy) == ("0.9000", "0.9100")
        assert status.stable.verification == checks(None)
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

    @pytest.mark.parametrize(
        "clients", [[], [{"podSelector": {}}], [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]]
    )
    def test_only_the_verifier_reaches_a_candidate_and_the_admins_clients_what_serves(
        self, clients: list[dict[str, Any]]
    ) -> None:
        """Without any client too, the list of peers is not empty: that would mean everybody."""
        access = ServingAccess(ingress_from=clients)
        cluster = ServingCluster(settings=SETTINGS.model_copy(update={"serving": access}))
        cluster.settle()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        policies = {name: policy["spec"]["ingress"] for name, policy in cluster.objects[NETWORK_POLICIES].items()}
        port = [{"protocol": "TCP", "port": meta.SERVING_PORT}]
        candidate = cluster.status.candidate
        assert candidate is not None
        [rule] = policies.pop(candidate.deployment)
        [verifier] = rule["from"]
        assert verifier["podSelector"]["matchLabels"][meta.LABEL_STAGE] == "verify"
        assert verifier["podSelector"]["matchLabels"][meta.LABEL_OWNER_NAME] == "demo"
        labels = verifier["podSelector"]["matchLabels"]
        own = [{"podSelector": {"matchLabels": {**labels, meta.LABEL_STAGE: stage}}} for stage in ("verify", "analyse")]
        door = {"ports": [{"protocol": "TCP", "port": meta.SELF_CHECK_PORT}], "from": own[:1]}
        opened = [{"ports": port, "from": [*own, *clients]}, door]
        assert policies.pop(f"demo-{old}") == opened
        cluster.settle()
        assert [policy["spec"]["ingress"] for policy in cluster.objects[NETWORK_POLICIES].values()] == [opened]

    def test_other_clients_are_let_in_without_a_new_revision(self) -> None:
        """Also where an earlier version of the operator had let in everybody."""
        cluster = serving()
        before = cluster.status.stable
        [policy] = cluster.objects[NETWORK_POLICIES].values()
        del policy["spec"]["ingress"][0]["from"]
        cluster.settle()
        [policy] = cluster.objects[NETWORK_POLICIES].values()
        assert policy["spec"]["ingress"][0]["from"][2:] == [{"podSelector": {}}]
        access = ServingAccess(ingress_from=[{"namespaceSelector": {}}])
        cluster.settings = SETTINGS.model_copy(update={"serving": access})
        cluster.settle()
        [policy] = cluster.objects[NETWORK_POLICIES].values()
        assert policy["spec"]["ingress"][0]["from"][2:] == [{"namespaceSelector": {}}]
        assert cluster.status.stable == before

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
        assert cluster.revisions(DEPLOYMENTS) == {new}
        assert cluster.revisions(NETWORK_POLICIES) == {old, new}, "its pods may still answer"
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
        for kind in (DEPLOYMENTS, SERVICES, JOBS, CONFIG_MAPS):
            assert not cluster.revisions(kind) & skipped
        cluster.reconcile()  # its pods have ended
        assert not cluster.revisions(NETWORK_POLICIES) & skipped

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

    def test_pods_that_serve_go_on_while_the_store_gives_another_one_nothing(self) -> None:
        """The store is down at a scale-up: a condition says why it takes so long, and clients lose nothing."""
        cluster = serving(replicas=1)
        before = cluster.traffic()
        cluster.spec["replicas"] = 2
        cluster.reconcile()
        cluster.run_controllers()
        assert cluster.status.stable is not None
        [_, added] = cluster.pods[cluster.status.stable.deployment]
        added["status"] |= pod_status(Reason.S3_UNREACHABLE) | {"conditions": [{"type": "Ready", "status": "False"}]}
        [deployment] = cluster.objects[DEPLOYMENTS].values()
        deployment["status"] |= {"readyReplicas": 1, "availableReplicas": 1}
        cluster.reconcile()
        assert (cluster.status.phase, cluster.traffic()) == (ServingPhase.DEGRADED, before)
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
        assert condition(cluster.status, "Reconciling") == ("True", Reason.S3_UNREACHABLE)
        [message] = [each.message for each in cluster.status.conditions if each.type == "Reconciling"]
        assert_says(message, "1 of 2 pods are ready", "The store does not answer", "start automatically")
        [event] = [each for each in cluster.events if each.reason is Reason.S3_UNREACHABLE]
        assert (event.type, event.message) == ("Warning", message)
        cluster.reconcile()
        assert [each.reason for each in cluster.events].count(Reason.S3_UNREACHABLE) == 1

    def test_nothing_but_the_number_changes_of_pods_that_the_values_would_make_otherwise_now(self) -> None:
        cluster = serving(replicas=1)
        cluster.spec["replicas"], cluster.settings = 3, _with_runtime(image="images/tgi-cpu:2")
        [before] = cluster.objects[DEPLOYMENTS].values()
        cluster.reconcile()
        assert cluster.status.stable is not None
        after = cluster.objects[DEPLOYMENTS][cluster.status.stable.deployment]
        assert after["spec"] == before["spec"] | {"replicas": 3}

    def test_without_a_record_nothing_but_the_number_is_written(self) -> None:
        """An earlier version of the operator wrote none."""
        cluster = serving(replicas=1)
        cluster.objects[CONTROLLER_REVISIONS].clear()
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


class TestStorage:
    def test_how_the_source_writes_makes_no_other_revision(self) -> None:
        """Whoever reads need not know, so that the pods are the same."""
        source = without_record(published(GOOD))
        cluster = ServingCluster(spec=following(), source=source)
        cluster.settle()
        before = cluster.status
        encrypted = source.storage.model_copy(update={"encryption": Encryption(algorithm=EncryptionAlgorithm.AES256)})
        cluster.source = replace(source, storage=encrypted)
        cluster.settle()
        assert cluster.status == before

    def test_an_artifact_is_read_from_the_store_to_which_it_was_published(self) -> None:
        """The job's spec names another one while the run that will publish there is under way, or fails."""
        cluster = ServingCluster(spec=following(), source=published(GOOD))
        cluster.settle()
        before, moved = cluster.status, published(GOOD, endpoint="http://other.svc:1")
        cluster.source = replace(published(GOOD), phase="Running", storage=moved.storage)
        assert (cluster.plan().actions, cluster.plan().status) == ((), before)
        cluster.source = moved
        cluster.settle()
        assert before.stable is not None
        assert cluster.status.stable is not None
        assert cluster.status.stable.revision != before.stable.revision
        assert cluster.status.stable.storage == moved.storage

    def test_a_job_that_has_not_noted_its_store_is_read_by_its_spec(self) -> None:
        cluster = ServingCluster(spec=following(), source=without_record(published(GOOD)))
        cluster.settle()
        noted = ServingCluster(spec=following(), source=published(GOOD))
        noted.settle()
        assert cluster.status == noted.status


def _with_runtime(**fields: Any) -> Settings:
    changed = SETTINGS.runtimes["tgi-cpu"].model_copy(update=fields)
    return SETTINGS.model_copy(update={"runtimes": SETTINGS.runtimes | {"tgi-cpu": changed}})
