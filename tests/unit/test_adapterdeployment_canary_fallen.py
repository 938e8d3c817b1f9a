"""A canary from which clients were taken back: nothing but another source or spec sends clients to it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome, RevisionState
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.observe import Source
from finetune_operator.adapterdeployment.plan import plan
from tests.support.played_pods import BETTER, GOOD
from tests.support.promoted import disprove, passes
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import following, published
from tests.unit.test_adapterdeployment_analysis import analysed
from tests.unit.test_adapterdeployment_canary import canary, crash_once, has_share, one_pass, until
from tests.unit.test_adapterdeployment_history import next_release
from tests.unit.test_adapterdeployment_walk import CANARY, wanted

pytestmark = pytest.mark.unit

Fall = Callable[[ServingCluster, str], None]


def worse(cluster: ServingCluster, _: str) -> None:
    cluster.analysis = AnalysisOutcome.FAILED
    one_pass(cluster, 1)  # its share is recorded
    one_pass(cluster, 1)


def reached(how: Fall) -> tuple[ServingCluster, str, str]:
    """An endpoint whose canary has its first share, as its source asks for it; what serves, and the canary."""
    strategy = analysed() if how in (worse, worse_by_now) else CANARY
    asked = {"replicas": 3, "strategy": strategy}
    cluster = ServingCluster(spec=following(**asked), source=published(GOOD), analysis=AnalysisOutcome.PASSED)
    cluster.settle()
    old, cluster.source = cluster.traffic(), published(BETTER)
    return cluster, old, until(cluster, has_share(1)).revision


def fallen(how: Fall) -> tuple[ServingCluster, str, str]:
    """The same, whose canary fell."""
    cluster, old, new = reached(how)
    how(cluster, new)
    cluster.settle()
    failed = cluster.status.candidate
    assert failed is not None
    assert (failed.revision, failed.state, cluster.traffic()) == (new, RevisionState.FAILED, old)
    return cluster, old, new


def assert_not_tried_again(cluster: ServingCluster, old: str, new: str) -> None:
    told = len(cluster.events)
    cluster.settle()
    candidate = cluster.status.candidate
    assert candidate is not None
    assert (candidate.revision, candidate.state, cluster.traffic()) == (new, RevisionState.FAILED, old)
    assert wanted(cluster) == {old: 3}
    assert Reason.CANDIDATE_STARTING not in {event.reason for event in cluster.events[told:]}
    assert condition(cluster.status, "Stalled") == ("True", candidate.reason)


@pytest.mark.slow
@pytest.mark.parametrize("how", [worse, crash_once, disprove])
def test_a_blocker_that_has_passed_sends_nobody_there_again(how: Fall) -> None:
    cluster, old, new = fallen(how)
    cluster.service_account = False
    passes(cluster)
    assert condition(cluster.status, "Stalled") == ("True", Reason.RUNNER_SERVICE_ACCOUNT_MISSING)
    cluster.service_account = True
    assert_not_tried_again(cluster, old, new)
    cluster.analysis = AnalysisOutcome.PASSED
    cluster.spec |= {"rerun": "again"}
    cluster.settle()
    assert cluster.traffic() == new


def worse_by_now(cluster: ServingCluster, _: str) -> None:
    """The Job has found it, and no pass has seen that yet."""
    cluster.analysis = AnalysisOutcome.FAILED
    one_pass(cluster, 1)


def no_account(cluster: ServingCluster) -> None:
    cluster.service_account = False


def unknown_runtime(cluster: ServingCluster) -> None:
    cluster.spec = cluster.spec | {"runtime": "of-another-platform"}
    cluster.generation += 1


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [no_account, unknown_runtime])
@pytest.mark.parametrize("how", [worse_by_now, crash_once, disprove])
def test_a_blocker_that_appears_as_it_falls_does_not_hide_that(
    how: Fall, blocked: Callable[[ServingCluster], None]
) -> None:
    cluster, old, new = reached(how)
    spec, told = cluster.spec, len(cluster.events)
    how(cluster, new)
    blocked(cluster)
    one_pass(cluster)
    failed = cluster.status.candidate
    assert failed is not None
    assert (failed.revision, failed.state, failed.taken_back_at) == (new, RevisionState.FAILED, failed.since)
    assert failed.reason in {event.reason for event in cluster.events[told:]}
    passes(cluster)
    assert wanted(cluster) == {old: 3}
    cluster.service_account, cluster.spec = True, spec
    cluster.generation += 1
    assert_not_tried_again(cluster, old, new)


def test_a_name_that_somebody_else_has_does_not_either() -> None:
    cluster, _, new = reached(crash_once)
    crash_once(cluster, new)
    made = plan(replace(cluster.observe(), conflicts=("Deployment demo-x",)), cluster.now)
    assert made.status.candidate is not None
    assert (made.status.candidate.revision, made.status.candidate.state) == (new, RevisionState.FAILED)


def test_one_that_stands_its_clients_is_begun_anew_after_a_blocker() -> None:
    cluster, _, new = reached(crash_once)
    cluster.service_account = False
    passes(cluster)
    assert cluster.status.candidate is None
    cluster.service_account = True
    cluster.settle()
    assert cluster.traffic() == new


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", [None, Source("Running", None, Storage())])
def test_a_source_that_goes_and_comes_back_does_not_either(meanwhile: Source | None) -> None:
    cluster, old, new = fallen(crash_once)
    cluster.source = meanwhile
    passes(cluster)
    cluster.source = published(BETTER)
    assert_not_tried_again(cluster, old, new)


@pytest.mark.slow
def test_the_next_release_does_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, old, new = fallen(crash_once)
    cluster.settings = next_release(monkeypatch)
    assert_not_tried_again(cluster, old, new)


def test_one_that_nobody_had_reached_is_tried_again() -> None:
    """As any candidate is that failed beside what serves: it has cost nobody an answer."""
    cluster = ServingCluster(spec=following(replicas=3, strategy=CANARY), source=published(GOOD))
    cluster.settle()
    cluster.source = published(BETTER)
    new = until(cluster, lambda each: each.state is RevisionState.VERIFYING).revision
    disprove(cluster, new, pods=1)
    cluster.settle()
    failed = cluster.status.candidate
    assert failed is not None
    assert failed.state is RevisionState.FAILED
    cluster.service_account = False
    passes(cluster)
    assert cluster.status.candidate is None
    cluster.service_account = True
    cluster.settle()
    assert cluster.traffic() == new


def test_it_is_marked_with_the_time() -> None:
    cluster = ServingCluster(spec=canary(GOOD))
    cluster.settle()
    cluster.spec = canary()
    new = until(cluster, has_share(1)).revision
    crash_once(cluster, new)
    cluster.reconcile()
    failed = cluster.status.candidate
    assert failed is not None
    assert failed.taken_back_at == failed.since
