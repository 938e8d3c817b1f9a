"""Adapters that are removed while their pods serve, and Jobs that ask pods and end without an answer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api.artifact_source import set_address
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, ServingPhase
from finetune_operator.adapterdeployment.delivery_job import AGAIN_SECONDS, is_of_delivery
from finetune_operator.framework.objects import JOBS
from finetune_operator.settings import Engine, Runtime
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.promoted import passes
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.unit.test_adapterdeployment_adapters import VLLM
from tests.unit.test_adapterdeployment_delivery import LOADED, asked, endpoint, stable, states, told, told_of

pytestmark = pytest.mark.unit


class TestRemoved:
    """The kubelet brings pods the new list after up to two minutes. Until then the name answers."""

    @staticmethod
    def removing() -> ServingCluster:
        """One of two adapters is taken from the spec, and a pod answers to it still."""
        cluster = endpoint(fr=GOOD, de=BETTER)
        cluster.lasting, cluster.loading = {GOOD}, {GOOD}
        asked(cluster, de=BETTER)
        passes(cluster, count=3, seconds=1)
        return cluster

    def test_it_is_in_the_status_until_no_pod_answers_to_it(self) -> None:
        cluster = self.removing()
        before = cluster.traffic()
        assert told(cluster) == {"de": True}
        assert states(cluster) == {"de": LOADED, "fr": (AdapterState.REMOVING, "")}
        assert condition(cluster.status, "Reconciling") == ("True", Reason.WAITING)
        assert condition(cluster.status, "Stalled")[0] == "False"
        assert cluster.status.phase is ServingPhase.PROGRESSING
        assert stable(cluster).artifact_digest == set_address({"de": BETTER}), "of what the spec asks for"
        [fr] = [each for each in stable(cluster).adapters if each.name == "fr"]
        assert_says(fr.message, "no running pod", "its name")
        assert cluster.asked_of[-1][1] == ["fr"]
        cluster.lasting, cluster.loading = set(), set()
        cluster.settle()
        assert states(cluster) == {"de": LOADED}
        assert (cluster.status.phase, cluster.traffic()) == (ServingPhase.READY, before)
        assert condition(cluster.status, "Reconciling")[0] == "False"
        assert [each.message for each in cluster.events if each.reason == Reason.ADAPTER_REMOVED] == [
            "Adapter 'fr' was removed: no running pod answers to its name any more."
        ]
        assert not [each for each in cluster.objects[JOBS].values() if is_of_delivery(each)], "it is done"

    def test_pods_are_asked_again_if_one_does_not_let_go_of_it(self) -> None:
        cluster = self.removing()
        tries = len(cluster.asked_of)
        cluster.loading = set()
        passes(cluster, count=6, seconds=1)
        assert len(cluster.asked_of) > tries + 1
        [fr] = [each for each in stable(cluster).adapters if each.name == "fr"]
        assert fr.state is AdapterState.REMOVING
        assert_says(fr.message, "asked again", "Its server still answers")
        cluster.lasting = set()
        cluster.settle()
        assert states(cluster) == {"de": LOADED}

    def test_it_comes_back_as_one_that_is_added(self) -> None:
        """Some pods may have let go of it, and others not."""
        cluster = self.removing()
        before = cluster.traffic()
        asked(cluster, de=BETTER, fr=GOOD)
        cluster.settle()
        assert told(cluster) == {"de": True, "fr": False}
        assert states(cluster) == {"de": LOADED, "fr": (AdapterState.LOADING, "")}
        cluster.loading = set()
        cluster.settle()
        assert states(cluster) == {"de": LOADED, "fr": LOADED}
        assert (told(cluster), cluster.traffic()) == ({"de": True, "fr": True}, before)

    def test_it_does_not_hold_up_one_that_is_added(self) -> None:
        cluster = self.removing()
        asked(cluster, de=BETTER, es=BETTER)
        cluster.settle()
        assert states(cluster) == {"de": LOADED, "es": LOADED, "fr": (AdapterState.REMOVING, "")}

    def test_without_pods_it_is_gone_at_once(self) -> None:
        cluster = self.removing()
        cluster.spec = cluster.spec | {"replicas": 0}
        cluster.settle()
        assert states(cluster).keys() == {"de"}
        assert cluster.status.phase is ServingPhase.READY

    def test_what_no_pod_has_read_of_leaves_nothing_to_wait_for(self) -> None:
        cluster = endpoint(fr=GOOD)
        cluster.spec = cluster.spec | {"replicas": 0}
        asked(cluster, fr=GOOD, de=INACTIVE)
        cluster.settle()
        assert states(cluster)["de"] == (AdapterState.WAITING, "")
        asked(cluster, fr=GOOD)
        cluster.reconcile()
        assert states(cluster).keys() == {"fr"}

    def test_what_has_failed_on_one_pod_may_be_on_another(self) -> None:
        cluster = endpoint(fr=GOOD)
        asked(cluster, fr=GOOD, de=INACTIVE)
        cluster.settle()
        assert states(cluster)["de"] == (AdapterState.FAILED, "")
        cluster.loading = {INACTIVE}
        asked(cluster, fr=GOOD)
        passes(cluster, count=2, seconds=1)
        assert states(cluster)["de"] == (AdapterState.REMOVING, "")
        assert cluster.asked_of[-1][1] == ["de"]
        cluster.loading = set()
        cluster.settle()
        assert states(cluster) == {"fr": LOADED}

    def test_a_pod_that_is_not_ready_is_asked_too(self) -> None:
        """It may become ready with the former list."""
        cluster = endpoint(fr=GOOD, de=BETTER)
        unready = cluster.pods[f"demo-{cluster.traffic()}"][0]
        for each in unready["status"]["conditions"]:
            each["status"] = "False"
        asked(cluster, de=BETTER)
        passes(cluster, count=1)
        assert [len(pods) for pods, names in cluster.asked_of if names == ["fr"]] == [2]

    def test_why_it_stays_is_told_while_pods_are_asked_again(self) -> None:
        cluster = self.removing()
        cluster.loading = set()
        passes(cluster, count=2, seconds=1)
        cluster.loading = {GOOD}
        for _ in range(5):
            passes(cluster, count=1, seconds=1)
            assert condition(cluster.status, "Stalled") == ("True", Reason.ADAPTER_STAYS)
        [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
        assert_says(stalled.message, "Adapter 'fr'", "Its server still answers", "delete the pod")
        assert condition(cluster.status, "Ready")[0] == "True"
        cluster.lasting, cluster.loading = set(), set()
        cluster.settle()
        assert condition(cluster.status, "Stalled")[0] == "False"

    def test_one_that_is_loaded_for_ever_does_not_hold_it_up(self) -> None:
        cluster = self.removing()
        cluster.lasting, cluster.loading = set(), {"9" * 64}
        asked(cluster, de=BETTER, es="9" * 64)
        cluster.settle()
        assert states(cluster) == {"de": LOADED, "es": (AdapterState.LOADING, "")}

    def test_a_job_that_is_being_deleted_has_answered_already(self) -> None:
        cluster = self.removing()
        cluster.lasting, cluster.loading = set(), set()
        cluster.run_controllers()
        [job] = [each for each in cluster.objects[JOBS].values() if is_of_delivery(each)]
        assert job["status"], "it has ended well"
        job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        cluster.reconcile()
        assert states(cluster)["fr"] == (AdapterState.REMOVING, "")

    def test_what_goes_back_to_the_revision_has_not_got_it(self) -> None:
        """What is being removed is none of those that a revision serves."""
        cluster = self.removing()
        cluster.settings = VLLM.model_copy(
            update={"runtimes": {**VLLM.runtimes, "vllm": Runtime(engine=Engine.VLLM, image="images/vllm:0.33.0")}}
        )
        before = cluster.traffic()
        cluster.reconcile()
        assert told_of(cluster, before) == {"de": True}


@pytest.mark.parametrize("removed", [False, True])
def test_a_job_that_ends_without_a_word_says_nothing_of_an_adapter(removed: bool) -> None:
    """Its pod was killed for its memory, say. The pods are asked again, after a while: the next one may end so, too."""
    cluster = endpoint(fr=GOOD, es=GOOD)
    cluster.killed_jobs = 2
    asked(cluster, **({"fr": GOOD} if removed else {"fr": GOOD, "es": GOOD, "de": BETTER}))
    name = "es" if removed else "de"
    passes(cluster, count=4, seconds=1)
    tries = len(cluster.asked_of)
    [row] = [each for each in stable(cluster).adapters if each.name == name]
    assert (row.state, row.outcome) == (AdapterState.REMOVING if removed else AdapterState.LOADING, None)
    assert_says(row.message, "again", "memory")
    assert row.reason == Reason.STAGE_CRASHED, "the remedy for a lack of memory is about serving pods"
    assert condition(cluster.status, "Stalled") == ("True", Reason.STAGE_CRASHED)
    assert condition(cluster.status, "Ready")[0] == "True"
    passes(cluster, count=4, seconds=1)
    assert len(cluster.asked_of) == tries
    assert 0 < (cluster.reconcile().requeue_after or 0) <= AGAIN_SECONDS
    cluster.now += timedelta(seconds=AGAIN_SECONDS)
    passes(cluster, count=3, seconds=1)
    assert len(cluster.asked_of) == tries + 1
    assert condition(cluster.status, "Stalled") == ("True", Reason.STAGE_CRASHED), "as long as nothing else is known"
    cluster.now += timedelta(seconds=AGAIN_SECONDS)
    cluster.settle()
    assert states(cluster) == ({"fr": LOADED} if removed else dict.fromkeys(("de", "es", "fr"), LOADED))
    assert not [each for each in cluster.events if "is not served" in each.message]
