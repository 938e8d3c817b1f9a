"""AdapterDeployment in a namespace that takes only so many objects: what is refused, what stays, what makes room."""

from datetime import timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.framework.actions import Action, Delete
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS, SERVICES, Resource
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.serving import Quota, ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit


def told(cluster: ServingCluster) -> list[Reason]:
    """Reasons of the warnings."""
    return [event.reason for event in cluster.events if event.type == "Warning"]


def test_one_service_is_enough_for_the_first_rollout() -> None:
    """The candidate's own goes when it is proved, a while before the public one is needed."""
    cluster = ServingCluster(refuse=Quota(SERVICES, 1))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert told(cluster) == []


def test_a_promotion_that_is_refused_waits_without_beginning_anew() -> None:
    quota = Quota(SERVICES, 1)
    cluster = ServingCluster(refuse=quota)
    while not cluster.status.candidate or cluster.status.candidate.state is not RevisionState.PROMOTING:
        cluster.reconcile()
        cluster.run_controllers()
    proved, quota.most = cluster.status.candidate, 0
    cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
    for _ in range(10):
        made = cluster.reconcile()
        assert cluster.status.candidate == proved
        assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
        assert made.blocked  # nobody need tell when the quota grows
        cluster.now += timedelta(minutes=1)
    assert told(cluster) == [Reason.QUOTA_EXCEEDED]
    quota.most = 1
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert [event.reason for event in cluster.events] == [
        Reason.CANDIDATE_STARTING,
        Reason.QUOTA_EXCEEDED,
        Reason.PROMOTED,
    ]


def test_what_is_not_needed_goes_before_what_is_new() -> None:
    """A candidate of an earlier spec would hold the place of its successor for ever."""
    cluster = serving()
    cluster.refuse = Quota(DEPLOYMENTS, 2)
    cluster.spec = pinned(INACTIVE)
    cluster.reconcile()
    cluster.now += timedelta(minutes=1)  # the drain of what came before is over
    cluster.spec = pinned(BETTER)
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert told(cluster) == []


def test_what_clients_may_be_connected_to_goes_after_the_service_has_moved() -> None:
    """Also of a runtime that does not drain."""
    hasty = SETTINGS.runtimes["tgi-cpu"].model_copy(update={"drain_seconds": 0})
    cluster = ServingCluster(settings=SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": hasty}}))
    cluster.settle()
    old, cluster.spec = cluster.traffic(), pinned(BETTER)
    done: list[tuple[type[Action], Resource]] = []
    while cluster.traffic() == old:
        cluster.slices.clear()  # nobody says that the old pods are endpoints
        done = [(type(action), action.resource) for action in cluster.reconcile().actions]
        cluster.run_deployments()
        cluster.run_controllers()
        cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
    assert done.index((Delete, DEPLOYMENTS)) > [resource for _, resource in done].index(SERVICES)


def test_a_failed_revision_is_not_tried_again_because_a_repair_was_refused() -> None:
    cluster = serving()
    cluster.spec = pinned(INACTIVE)
    cluster.settle()
    failed = cluster.status.candidate
    assert failed is not None
    assert failed.state is RevisionState.FAILED
    cluster.refuse = Quota(SERVICES, 0)
    del cluster.objects[SERVICES]["demo"]
    for _ in range(3):
        cluster.reconcile()
    assert cluster.status.candidate == failed
    assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
    cluster.refuse = Quota(SERVICES, 9)
    cluster.settle()
    assert cluster.status.candidate == failed
    assert told(cluster) == [Reason.ADAPTER_INACTIVE, Reason.QUOTA_EXCEEDED]


def test_a_verification_that_is_refused_is_asked_for_again() -> None:
    cluster = ServingCluster(spec=pinned(GOOD), refuse=Quota(JOBS, 0))
    cluster.settle()
    candidate = cluster.status.candidate
    assert candidate is not None
    assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
    cluster.refuse = Quota(JOBS, 1)
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert told(cluster) == [Reason.QUOTA_EXCEEDED]
