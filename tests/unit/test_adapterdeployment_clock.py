"""A clock that is set back: no period lasts longer than it is to, counted from then on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState
from finetune_operator.adapterdeployment.candidate import PAUSE_SECONDS
from finetune_operator.adapterdeployment.retries import PAUSES
from finetune_operator.adapterdeployment.route import FOLLOWING_SECONDS
from finetune_operator.framework.api_failures import LASTING, ApiFailures
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, SERVICES
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.unmet import RETRY, Problem, Unmet
from tests.support.played_cluster import START
from tests.support.promoted import crash, passes, promoted
from tests.support.serving import ServingCluster
from tests.unit.test_adapterdeployment_canary import has_share, started
from tests.unit.test_adapterdeployment_canary import until as step
from tests.unit.test_adapterdeployment_gap import announced
from tests.unit.test_adapterdeployment_retries import TRIES, candidate, until_set_back, updating
from tests.unit.test_adapterdeployment_route_weights import taken_back, weighted

pytestmark = pytest.mark.unit

HOURS = timedelta(hours=5)
KEY = Key("AdapterDeployment", "team", "demo")


def set_back(cluster: ServingCluster) -> None:
    """The operator's clock is five hours earlier in the next pass."""
    cluster.now -= HOURS
    cluster.reconcile()
    cluster.run_controllers()


def test_pods_are_kept_for_as_long_as_they_are_to() -> None:
    cluster, old, new = promoted()
    passes(cluster)
    set_back(cluster)
    cluster.now += timedelta(minutes=9)
    passes(cluster)
    assert cluster.revisions(DEPLOYMENTS) == {old, new}
    cluster.now += timedelta(minutes=1)
    passes(cluster)
    assert cluster.revisions(DEPLOYMENTS) == {new}


def test_what_serves_is_watched_at_once() -> None:
    """A crash after it was set back is one since the revision took over, whatever the hour says."""
    cluster, old, new = promoted()
    passes(cluster)
    set_back(cluster)
    cluster.now += timedelta(minutes=1)
    crash(cluster, new)
    ended = cluster.pods[f"demo-{new}"][0]["status"]["containerStatuses"][0]["lastState"]["terminated"]
    ended |= {"startedAt": timestamp(cluster.now - timedelta(seconds=9)), "finishedAt": timestamp(cluster.now)}
    passes(cluster)
    assert cluster.traffic() == old


def test_a_candidate_that_was_given_back_pauses_for_an_hour() -> None:
    cluster = updating([Reason.S3_UNREACHABLE] * TRIES)
    old = cluster.traffic()
    cluster.settle(within=PAUSE_SECONDS / 2)
    assert candidate(cluster).state is RevisionState.WAITING
    set_back(cluster)
    cluster.now += timedelta(seconds=PAUSE_SECONDS)
    cluster.settle(within=PAUSE_SECONDS / 2)
    assert cluster.traffic() != old


def test_a_verification_that_could_not_be_done_is_tried_again_soon() -> None:
    """By the clock of the node that ended it, too: when it ended, its Job says."""
    cluster = updating([Reason.S3_UNREACHABLE])
    until_set_back(cluster)
    set_back(cluster)
    cluster.now += timedelta(seconds=PAUSES[0])
    cluster.reconcile()
    assert candidate(cluster).verification_retries == 1


def test_a_node_whose_clock_is_a_little_ahead_shortens_no_pause() -> None:
    cluster = updating([Reason.S3_UNREACHABLE])
    until_set_back(cluster)
    cluster.now -= timedelta(seconds=5)
    cluster.reconcile()
    assert candidate(cluster).verification_retries == 0


def test_a_step_of_a_canary_lasts_as_long_as_it_is_to() -> None:
    cluster, old, new = started()
    set_back(cluster)
    found = candidate(cluster).canary
    assert found is not None
    assert found.reached_at == found.started_at == timestamp(cluster.now)
    assert found.until is not None
    pause = parse_timestamp(found.until) - cluster.now
    cluster.now += pause
    step(cluster, has_share(2))
    assert cluster.traffic() == old
    assert candidate(cluster).revision == new


def test_an_announced_gap_begins_after_its_notice() -> None:
    cluster, _ = announced()
    set_back(cluster)
    assert candidate(cluster).reason == Reason.GAP_ANNOUNCED
    starts = parse_timestamp(candidate(cluster).gap_starts_at or "")
    assert timedelta(seconds=29) <= starts - cluster.now <= timedelta(seconds=31)


def test_a_gateway_has_its_time_to_follow_and_no_longer() -> None:
    cluster, _ = weighted()
    step(cluster, has_share(1))
    cluster.watch = lambda _: None
    taken_back(cluster)
    cluster.generation += 1
    cluster.reconcile()
    set_back(cluster)
    dropped = cluster.now
    cluster.settle()
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert cluster.now - dropped < timedelta(seconds=2 * FOLLOWING_SECONDS)


def test_no_condition_is_from_the_future() -> None:
    cluster, _, _ = promoted()
    passes(cluster)
    set_back(cluster)
    assert max(each.last_transition_time for each in cluster.status.conditions) <= timestamp(cluster.now)
    assert cluster.status == cluster.plan().status, "once"


def test_calls_that_fail_are_told_after_a_minute() -> None:
    failures = ApiFailures()
    assert not failures.persists(KEY, START)
    assert not failures.persists(KEY, START - HOURS)
    assert failures.persists(KEY, START - HOURS + LASTING)


def test_what_was_refused_is_tried_again_after_minutes() -> None:
    unmet, problem = Unmet(), Problem("no")
    unmet.record(KEY, "route", (), problem, START)
    later = START - HOURS
    assert unmet.held(KEY, "route", (), later) is None
    assert unmet.due_after(KEY, later) == 0
    unmet.record(KEY, "route", (), problem, later)
    assert unmet.held(KEY, "route", (), later + RETRY / 2) == "no"


def test_an_error_that_passes_is_told_if_it_lasts() -> None:
    unmet, problem = Unmet(), Problem("no", passes=True, soon=True)
    for moment in (START, START - HOURS):
        assert unmet.record(KEY, "route", (), problem, moment) == ""
    assert unmet.record(KEY, "route", (), problem, START - HOURS + LASTING) == "no"
