"""Ready is said only of what clients reach: endpoints of the Service that nodes have had time to hear of."""

from datetime import timedelta

import pytest

from finetune_api.base import Condition
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_operator.adapterdeployment.endpoint import SETTLING_SECONDS, EndpointState, endpoint_state
from finetune_operator.framework.actions import Create
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, SERVICES, Object
from tests.support.played_cluster import START
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import Saying, assert_says
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

LONG_AGO = timestamp(START - timedelta(hours=1))
JUST_NOW = timestamp(START - timedelta(seconds=1))
AHEAD = timestamp(START + timedelta(hours=1))
BEFORE = frozenset({"demo-of-before"})
OTHER: Object = {"targetRef": {"kind": "Pod", "name": "demo-of-before"}}
LEFT = SETTLING_SECONDS - 1
"""What is left of the time for settling when something happened ``JUST_NOW``."""


def ready(cluster: ServingCluster) -> tuple[str, str]:
    """Status and message of the condition."""
    found = next(each for each in cluster.status.conditions if each.type == "Ready")
    return found.status, found.message


def promoted(cluster: ServingCluster) -> ServingCluster:
    """Up to the pass that moves the Service, before anybody else has seen it."""
    before = cluster.traffic()
    while cluster.traffic() == before:
        cluster.run_controllers()
        cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
        cluster.reconcile()
    return cluster


class TestEndpointState:
    """What the endpoints of the Service say, given what clients could rely on before."""

    @staticmethod
    def state(*endpoints: Object, answered: bool = False, **times: str) -> EndpointState:
        """With these endpoints: ``{}`` is a pod that serves, ``OTHER`` one of another revision."""
        cluster = serving()
        stable = cluster.status.stable
        assert stable is not None
        since, made, began = (times.get(name, LONG_AGO) for name in ("promoted", "slice_made", "pod_ready"))
        [pod] = cluster.pods[stable.deployment]
        pod["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": began}]
        own = {"targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}}
        metadata = cluster.slices["demo"]["metadata"] | {"creationTimestamp": made}
        cluster.slices["demo"] = {"metadata": metadata, "endpoints": [own | each for each in endpoints] or None}
        before = Condition(type="Ready", status=str(answered), reason=Reason.WAITING, last_transition_time=LONG_AGO)
        cluster.status = cluster.status.model_copy(update={"conditions": [before]})
        return endpoint_state(cluster.observe(), stable.model_copy(update={"since": since}), START)

    @pytest.mark.parametrize("answered", [True, False])
    @pytest.mark.parametrize("conditions", [{"ready": True}, {}, None])
    def test_a_ready_endpoint_of_the_revision(self, answered: bool, conditions: Object | None) -> None:
        """One that says nothing of itself is ready: so the API defines it."""
        state = self.state({"conditions": conditions}, answered=answered)
        assert state == EndpointState(answers=True, settled=True)

    @pytest.mark.parametrize("answered", [True, False])
    def test_no_endpoint(self, answered: bool) -> None:
        gap = Saying("pod demo-", "is ready", "EndpointSlice")
        assert self.state(answered=answered) == EndpointState(gap=gap)
        assert self.state({"conditions": {"ready": False}}, answered=answered) == EndpointState(gap=gap)

    @pytest.mark.parametrize("answered", [True, False])
    def test_only_pods_of_another_revision(self, answered: bool) -> None:
        """Whoever has been told of an endpoint goes on being answered; nobody is told of a first one by it."""
        gap = Saying("pod demo-", "in no EndpointSlice")
        assert self.state(OTHER, answered=answered) == EndpointState(answers=answered, elsewhere=BEFORE, gap=gap)

    def test_pods_of_both(self) -> None:
        assert self.state({}, OTHER) == EndpointState(answers=True, settled=True, elsewhere=BEFORE)

    @pytest.mark.parametrize(
        ("times", "answered", "expected"),
        [
            ({"promoted": JUST_NOW}, False, EndpointState(due_after=LEFT)),
            ({"slice_made": JUST_NOW}, False, EndpointState(due_after=LEFT)),
            ({"pod_ready": JUST_NOW}, False, EndpointState(due_after=LEFT)),
            # The Service has moved: nodes that have not heard of it send to the pods before.
            ({"promoted": JUST_NOW}, True, EndpointState(answers=True, due_after=LEFT)),
            # A pod or a slice that is replaced while another one answers.
            ({"slice_made": JUST_NOW}, True, EndpointState(answers=True, settled=True)),
            ({"pod_ready": JUST_NOW}, True, EndpointState(answers=True, settled=True)),
            # Clocks of others.
            ({"pod_ready": AHEAD}, False, EndpointState(answers=True, settled=True)),
            ({"pod_ready": AHEAD, "slice_made": JUST_NOW}, False, EndpointState(due_after=LEFT)),
        ],
    )
    def test_nodes_hear_of_it_a_moment_later(
        self, times: dict[str, str], answered: bool, expected: EndpointState
    ) -> None:
        assert self.state({}, answered=answered, **times) == expected

    def test_nothing_serves(self) -> None:
        assert endpoint_state(ServingCluster().observe(), None, START) == EndpointState()


class TestFirstRevision:
    def test_ready_is_said_once_the_nodes_know_the_endpoints(self) -> None:
        cluster = promoted(ServingCluster())
        revision = cluster.traffic()
        for _ in range(2):
            assert cluster.status.phase is ServingPhase.PROGRESSING
            state, message = ready(cluster)
            assert state == "False"
            assert_says(message, f"Revision {revision}", "endpoints")
            assert cluster.plan().requeue_after is None  # the endpoints come with an event
            cluster.now += timedelta(minutes=5)
            cluster.reconcile()
        cluster.run_controllers()
        made = cluster.reconcile()
        assert (cluster.status.phase, made.requeue_after) == (ServingPhase.PROGRESSING, SETTLING_SECONDS)
        cluster.now += timedelta(seconds=SETTLING_SECONDS)
        made = cluster.reconcile()
        assert (cluster.status.phase, made.requeue_after) == (ServingPhase.READY, None)
        state, message = ready(cluster)
        assert state == "True"
        assert_says(message, f"Revision {revision}", GOOD[:12], "1 of 1 pods")

    def test_waiting_for_endpoints_is_no_warning(self) -> None:
        cluster = promoted(ServingCluster())
        cluster.settle()
        assert [event.reason for event in cluster.events] == [Reason.CANDIDATE_STARTING, Reason.PROMOTED]

    def test_endpoints_of_an_earlier_service_of_the_name_do_not_count(self) -> None:
        cluster = serving()
        cluster.objects[SERVICES].clear()
        cluster.reconcile()  # makes it again
        assert cluster.traffic() != ""
        assert ready(cluster)[0] == "False"
        cluster.settle()
        assert ready(cluster)[0] == "True"


class TestMove:
    """From one revision to the next, clients get answers all the time, and Ready says so."""

    def test_until_the_nodes_know_the_new_revision(self) -> None:
        cluster = serving()
        old, cluster.spec = cluster.traffic(), pinned(BETTER)
        promoted(cluster)
        new = cluster.traffic()
        for _ in range(2):
            state, message = ready(cluster)
            assert (cluster.status.phase, state) == (ServingPhase.PROGRESSING, "True")
            assert_says(message, f"revision {new}", "some clients", "previous revision")
            cluster.run_controllers()
            cluster.reconcile()
        assert cluster.revisions(DEPLOYMENTS) == {old, new}
        cluster.now += timedelta(seconds=SETTLING_SECONDS)
        cluster.reconcile()
        assert cluster.status.phase is ServingPhase.READY
        assert ready(cluster)[1].startswith(f"Revision {new} serves")

    def test_the_old_pods_stay_as_long_as_the_service_names_them(self) -> None:
        """However long the drain: whoever writes the endpoints may be down."""
        cluster = serving()
        old, cluster.spec = cluster.traffic(), pinned(BETTER)
        promoted(cluster)
        new = cluster.traffic()
        cluster.now += timedelta(hours=1)
        cluster.reconcile()
        assert cluster.revisions(DEPLOYMENTS) == {old, new}
        assert ready(cluster)[0] == "True"
        cluster.run_controllers()
        cluster.reconcile()
        assert cluster.revisions(DEPLOYMENTS) == {new}


class TestOutage:
    def test_a_service_without_endpoints_is_not_ready(self) -> None:
        cluster = serving()
        cluster.slices["demo"]["endpoints"] = []
        cluster.reconcile()
        assert ready(cluster)[0] == "False"
        cluster.settle()
        assert (ready(cluster)[0], cluster.status.phase) == ("True", ServingPhase.READY)

    def test_a_service_that_somebody_deletes_comes_back_before_ready_does(self) -> None:
        cluster = serving()
        cluster.objects[SERVICES].clear()
        [action] = cluster.plan().actions
        assert isinstance(action, Create)
        assert cluster.plan().status.phase is ServingPhase.PROGRESSING

    def test_without_pods_there_is_nothing_to_reach(self) -> None:
        cluster = serving(replicas=0)
        assert cluster.slices["demo"]["endpoints"] == []
        assert cluster.status.phase is ServingPhase.READY
        assert ready(cluster)[1].endswith("scaled to zero.")
