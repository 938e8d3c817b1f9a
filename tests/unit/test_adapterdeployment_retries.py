"""A verification that could not be done, for a cause outside of the revision, is done again; a wrong answer is not."""

import math
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.meta import LABEL_REVISION
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus, ServingPhase
from finetune_operator.adapterdeployment.candidate import PAUSE_SECONDS
from finetune_operator.adapterdeployment.retries import PAUSES
from finetune_operator.framework.objects import JOBS, Object
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving, shown
from tests.support.serving_specs import pinned
from tests.unit.test_adapterdeployment_walk import IN_PLACE

pytestmark = pytest.mark.unit

OUTSIDE = [Reason.S3_UNREACHABLE, Reason.API_KEYS_MISSING, Reason.CERTIFICATE_UNUSABLE]
TRIES = len(PAUSES) + 1


def updating(setbacks: list[Reason], digest: str = BETTER, **spec: Any) -> ServingCluster:
    """One revision serves, and the next verifications of another one cannot be done."""
    cluster = serving()
    cluster.spec, cluster.setbacks = pinned(digest, **spec), list(setbacks)
    cluster.generation += 1
    return cluster


def candidate(cluster: ServingCluster) -> RevisionStatus:
    found = cluster.status.candidate
    assert found is not None
    return found


def until_set_back(cluster: ServingCluster) -> float:
    """Go on until a verification has ended for a cause outside of the revision, and the status says so. Seconds until
    the next one."""
    for _ in range(20):
        cluster.reconcile()
        cluster.run_controllers()
        made = cluster.reconcile()
        if cluster.status.candidate and candidate(cluster).reason in OUTSIDE:
            return made.requeue_after or math.inf
        cluster.now += timedelta(seconds=1)
    raise AssertionError("no verification was set back")


def _revision(job: Object) -> str:
    return str(job["metadata"]["labels"][LABEL_REVISION])


@pytest.mark.parametrize("reason", OUTSIDE)
def test_one_that_could_not_be_done_is_done_again(reason: Reason) -> None:
    cluster = updating([reason])
    old, began = cluster.traffic(), cluster.now
    until_set_back(cluster)
    assert candidate(cluster).state is RevisionState.VERIFYING
    assert candidate(cluster).reason == reason
    assert cluster.traffic() == old
    cluster.settle()
    assert cluster.traffic() not in ("", old)
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.now - began < timedelta(seconds=2 * PAUSES[0] + 60)


def test_the_first_revision_of_all_too() -> None:
    cluster = ServingCluster(setbacks=[Reason.S3_UNREACHABLE])
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY


def test_it_says_why_and_when_and_what_to_do() -> None:
    cluster = updating([Reason.S3_UNREACHABLE])
    until_set_back(cluster)
    assert_says(candidate(cluster).message, "could not be done", "tried again at 2026-", "it does not answer")
    assert shown(cluster.status) == {"Ready": "True", "Reconciling": "True", "Stalled": "False"}
    assert condition(cluster.status, "Reconciling") == ("True", Reason.S3_UNREACHABLE)
    said = next(each.message for each in cluster.status.conditions if each.type == "Reconciling")
    assert_says(said, candidate(cluster).revision, "tried again at", "network policies", "spec.rerun")
    assert (cluster.events[-1].type, cluster.events[-1].reason) == ("Warning", Reason.S3_UNREACHABLE)


def test_the_pauses_grow_and_end() -> None:
    """A candidate holds hardware, so it does not try for ever; each try that could not be done is told."""
    cluster = updating([Reason.S3_UNREACHABLE] * TRIES)
    old, waits = cluster.traffic(), []
    for _ in PAUSES:
        waits.append(until_set_back(cluster))
        assert cluster.held() == 2
        cluster.now += timedelta(seconds=math.ceil(waits[-1]))
    assert waits == sorted(waits)
    assert waits == [pytest.approx(pause, abs=1) for pause in PAUSES]
    cluster.reconcile()
    cluster.run_controllers()
    cluster.reconcile()
    cluster.run_controllers()
    cluster.reconcile()
    assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.WAITING, Reason.S3_UNREACHABLE)
    assert_says(candidate(cluster).message, f"{TRIES} times", "it does not answer", "tried again at")
    assert condition(cluster.status, "Stalled") == ("True", Reason.S3_UNREACHABLE)
    assert (cluster.held(), cluster.traffic()) == (1, old)
    told = [event for event in cluster.events if event.reason == Reason.S3_UNREACHABLE]
    assert len(told) == TRIES
    cluster.now += timedelta(seconds=PAUSE_SECONDS)
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.traffic() != old


def test_after_the_pause_of_an_hour_it_has_all_its_tries_again() -> None:
    cluster = updating([Reason.S3_UNREACHABLE] * (TRIES + 1))
    cluster.settle()
    assert cluster.setbacks == []
    assert cluster.status.phase is ServingPhase.READY


@pytest.mark.parametrize("setbacks", [0, 1, TRIES - 1])
def test_a_wrong_answer_stays_wrong(setbacks: int) -> None:
    cluster = updating([Reason.S3_UNREACHABLE] * setbacks, INACTIVE)
    old = cluster.traffic()
    cluster.settle()
    assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.FAILED, Reason.ADAPTER_INACTIVE)
    assert cluster.traffic() == old
    of_it = [job for job in cluster.objects[JOBS].values() if _revision(job) == candidate(cluster).revision]
    assert len(of_it) == 1  # whose log can be read


@pytest.mark.parametrize("reason", [Reason.S3_ACCESS_DENIED, Reason.STAGE_CRASHED, Reason.DEADLINE_EXCEEDED])
def test_what_nobody_outside_can_be_blamed_for_fails(reason: Reason) -> None:
    cluster = updating([reason])
    cluster.settle()
    assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.FAILED, reason)


def test_a_new_rerun_tries_at_once_and_from_the_beginning() -> None:
    cluster = updating([Reason.S3_UNREACHABLE] * 2)
    pause = until_set_back(cluster)
    cluster.now += timedelta(seconds=math.ceil(pause))
    until_set_back(cluster)
    assert candidate(cluster).verification_retries == 1
    cluster.spec = pinned(BETTER, rerun="store-answers")
    cluster.generation += 1
    cluster.reconcile()
    assert candidate(cluster).verification_retries == 0
    cluster.settle(within=PAUSES[1] / 2)
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


@pytest.mark.parametrize("crash_after", [0, 1, 2, 3])
def test_an_operator_that_dies_when_it_starts_the_next_one_goes_on(crash_after: int) -> None:
    cluster = updating([Reason.S3_UNREACHABLE] * 2)
    pause = until_set_back(cluster)
    cluster.now += timedelta(seconds=math.ceil(pause))
    cluster.reconcile(crash_after=crash_after)
    cluster.settle()
    assert cluster.setbacks == []
    assert cluster.status.phase is ServingPhase.READY


def test_nothing_of_it_is_left_once_it_serves() -> None:
    cluster = updating([Reason.S3_UNREACHABLE])
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.verification_retries == 0
    assert cluster.revisions(JOBS) == {cluster.traffic()}
    assert len(cluster.objects[JOBS]) == 1


class TestInPlace:
    """Requests are not answered meanwhile."""

    @staticmethod
    def gap(setbacks: int) -> ServingCluster:
        return updating([Reason.S3_UNREACHABLE] * setbacks, strategy=IN_PLACE)

    def test_it_is_tried_again_in_the_gap(self) -> None:
        cluster = self.gap(TRIES - 1)
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == BETTER

    def test_the_revision_before_comes_back_after_the_last_try(self) -> None:
        cluster = self.gap(TRIES)
        cluster.settle()
        assert (candidate(cluster).state, candidate(cluster).reason) == (RevisionState.FAILED, Reason.S3_UNREACHABLE)
        assert_says(candidate(cluster).message, "spec.rerun", f"{TRIES} times", "it does not answer")
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == GOOD
        assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
