"""The analysis of a canary's steps: what its servers count decides with the pause whether it goes on."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.endpoint_stages import AnalyseParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import (
    AnalysisOutcome,
    CanaryAnalysisStatus,
    CanaryStatus,
    CheckOutcome,
    RevisionState,
    RevisionStatus,
    ServingPhase,
    VerificationCheck,
)
from finetune_api.stages import Stage, StageInput
from finetune_operator.adapterdeployment.analysis import LATE_SECONDS, Analysis
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.framework.actions import Action, Create
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, NETWORK_POLICIES, Object
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import Quota, ServingCluster, condition, serving
from tests.support.serving_specs import pinned
from tests.unit.test_adapterdeployment_canary import canary, crash_once, has_share, one_pass, until
from tests.unit.test_adapterdeployment_walk import ANALYSED, Safety, wanted

pytestmark = pytest.mark.unit


def analysed(**asked: Any) -> dict[str, Any]:
    """The strategy with an analysis in each of its two steps of one and two minutes."""
    return {**ANALYSED, "canary": {**ANALYSED["canary"], "analysis": asked}}


def started(outcome: AnalysisOutcome, **asked: Any) -> tuple[ServingCluster, str, str]:
    """An endpoint whose canary has its first share, and whose metrics say this; what serves, and the canary."""
    cluster = serving(replicas=3)
    cluster.watch, cluster.analysis = Safety(proved={cluster.traffic()}), outcome
    cluster.spec = canary(strategy=analysed(**asked))
    old, candidate = cluster.traffic(), until(cluster, has_share(1))
    one_pass(cluster, 1)  # its share is recorded
    return cluster, old, candidate.revision


def refuse_analyses(_: ServingCluster, action: Action) -> str:
    """A quota that has room for every Job but those of analyses."""
    is_one = isinstance(action, Create) and action.resource == JOBS and "-analyse-" in action.object["metadata"]["name"]
    return 'jobs.batch "x" is forbidden: exceeded quota: few' if is_one else ""


def jobs(cluster: ServingCluster) -> dict[str, Object]:
    """The Jobs of analyses."""
    found = cluster.objects.get(JOBS, {})
    return {name: job for name, job in found.items() if job["metadata"]["labels"][meta.LABEL_STAGE] == Stage.ANALYSE}


def told(cluster: ServingCluster) -> AnalyseParams:
    """What the only analysis is told."""
    [name] = jobs(cluster)
    given = StageInput.model_validate_json(cluster.objects[CONFIG_MAPS][name]["data"]["input.json"])
    assert given.params.analyse is not None
    return given.params.analyse


def of(candidate: RevisionStatus | None) -> CanaryStatus:
    assert candidate is not None
    assert candidate.canary is not None
    return candidate.canary


def wait(cluster: ServingCluster, seconds: float) -> None:
    """Time passes, with a pass every ten seconds, or thirty passes."""
    every = max(10, seconds / 30)
    for _ in range(math.ceil(seconds / every)):
        cluster.reconcile()
        cluster.run_controllers()
        cluster.now += timedelta(seconds=every)
    cluster.reconcile()


def test_it_is_told_the_pods_of_both_and_what_is_allowed() -> None:
    cluster, old, new = started(AnalysisOutcome.PASSED, maxErrorIncrease="0.02", minRequests=40)
    given, status = told(cluster), of(cluster.status.candidate)
    addresses = {
        revision: [f"http://{pod['status']['podIP']}:8080" for pod in cluster.pods[f"demo-{revision}"]]
        for revision in (old, new)
    }
    assert (given.canary, given.stable) == (addresses[new], sorted(addresses[old]))
    assert (given.engine, given.stable_engine) == ("tgi", "tgi")
    assert (given.min_requests, given.max_error_increase, given.max_latency_increase) == (40, 0.02, 0.5)
    assert given.until == status.until
    assert status.analysis is not None
    assert (status.analysis.outcome, status.analysis.until) == (AnalysisOutcome.RUNNING, status.until)
    assert_says(cluster.status.candidate.message if cluster.status.candidate else "", "if its analysis passes")


def test_where_clients_need_keys_it_reads_behind_the_proxy() -> None:
    cluster = serving(replicas=3)
    old = cluster.traffic()
    cluster.spec = canary(strategy=analysed(), access={"apiKeys": {"secretRef": {"name": "clients"}}})
    new = until(cluster, has_share(1)).revision
    cluster.reconcile()
    given = told(cluster)
    read = {old: given.stable, new: given.canary}
    ports = {revision: {url.rpartition(":")[2] for url in urls} for revision, urls in read.items()}
    assert ports == {old: {str(meta.SERVING_PORT)}, new: {str(meta.INNER_PORT)}}
    [job] = jobs(cluster).values()
    labels = job["spec"]["template"]["metadata"]["labels"]
    for revision, [port] in ports.items():
        rules = cluster.objects[NETWORK_POLICIES][f"demo-{revision}"]["spec"]["ingress"]
        peers = [peer for rule in rules if str(rule["ports"][0]["port"]) == port for peer in rule["from"]]
        chosen = [peer["podSelector"].get("matchLabels", {}) for peer in peers if "podSelector" in peer]
        assert any(each and each.items() <= labels.items() for each in chosen), "the analysis is not let in"


def test_its_pods_reach_the_metrics_and_no_store() -> None:
    cluster, *revisions = started(AnalysisOutcome.PASSED)
    [job] = jobs(cluster).values()
    template = job["spec"]["template"]
    labels, environment = template["metadata"]["labels"], template["spec"]["containers"][0]["env"]
    for revision in revisions:
        policy = cluster.objects[NETWORK_POLICIES][f"demo-{revision}"]["spec"]["ingress"][0]
        peers = [peer["podSelector"]["matchLabels"] for peer in policy["from"] if peer.get("podSelector")]
        assert any(peer and peer.items() <= labels.items() for peer in peers), "the analysis is not let in"
    assert not [each for each in environment if "SECRET" in each["name"] or each["name"].startswith("AWS_")]


def test_a_candidate_that_is_not_verified_is_reached_by_no_analysis() -> None:
    cluster = ServingCluster()
    cluster.reconcile()
    [policy] = cluster.objects[NETWORK_POLICIES].values()
    [peer] = policy["spec"]["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"][meta.LABEL_STAGE] == Stage.VERIFY


@pytest.mark.slow
def test_each_step_is_analysed_and_a_canary_that_passes_takes_over() -> None:
    cluster, old, new = started(AnalysisOutcome.PASSED)
    first = told(cluster)
    second = until(cluster, has_share(2))
    one_pass(cluster, 1)
    assert len(cluster.analysed) == 1
    assert told(cluster) != first, "the second step has other pods and another time"
    assert of(second).analysis is not None
    cluster.settle()
    assert cluster.traffic() == new
    assert [len(each.canary) for each in cluster.analysed] == [1, 3]
    assert [event.reason for event in cluster.events].count(Reason.ANALYSIS_PASSED) == 2
    assert cluster.revisions(DEPLOYMENTS) == {new} != {old}
    assert not jobs(cluster), "they say nothing any more"
    left = [name for name in cluster.objects[CONFIG_MAPS] if "-analyse-" in name]
    assert not left


@pytest.mark.slow
def test_a_worse_canary_gives_all_traffic_back_before_its_pause_is_over() -> None:
    cluster, old, new = started(AnalysisOutcome.FAILED)
    cluster.reconcile()
    failed = cluster.status.candidate
    assert failed is not None
    assert (failed.state, failed.reason) == (RevisionState.FAILED, Reason.ANALYSIS_FAILED)
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert [check.name for check in failed.verification] == ["digest", "differsFromBase", "failedRequests"]
    assert condition(cluster.status, "Stalled") == ("True", Reason.ANALYSIS_FAILED)
    stalled = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
    assert_says(stalled, new, "31 of 120 requests failed", "spec.strategy.canary.analysis", "spec.rerun")
    assert_says(cluster.events[-1].message, old, "gets all traffic again")
    cluster.settle()
    assert wanted(cluster) == {old: 3}
    assert jobs(cluster), "its log can be read"
    cluster.analysis = AnalysisOutcome.PASSED
    cluster.spec |= {"strategy": analysed(maxErrorIncrease="0.5")}
    cluster.settle()
    assert cluster.traffic() == old, "other limits are no other attempt"
    cluster.spec |= {"rerun": "again"}
    cluster.settle()
    assert cluster.traffic() == new


@pytest.mark.slow
def test_without_a_verdict_the_step_lasts_and_is_looked_at_again() -> None:
    cluster, old, new = started(AnalysisOutcome.INCONCLUSIVE)
    first = told(cluster)
    wait(cluster, 70)
    held = cluster.status.candidate
    analysis = of(held).analysis
    assert held is not None
    assert analysis is not None
    assert (held.state, held.reason) == (RevisionState.CANARY, Reason.ANALYSIS_INCONCLUSIVE)
    assert analysis.outcome is AnalysisOutcome.INCONCLUSIVE
    assert_says(held.message, "25 %", "no verdict", "31 of 120", analysis.until)
    assert condition(cluster.status, "Reconciling") == ("True", Reason.ANALYSIS_INCONCLUSIVE)
    assert [event.reason for event in cluster.events].count(Reason.ANALYSIS_INCONCLUSIVE) == 1
    assert (cluster.traffic(), cluster.shared()) == (old, True)
    cluster.reconcile()
    again = told(cluster)
    assert again.until == analysis.until
    lasted = parse_timestamp(again.until) - parse_timestamp(str(of(held).reached_at))
    assert lasted >= timedelta(seconds=119), "twice as long"
    wait(cluster, 600)
    assert condition(cluster.status, "Stalled") == ("True", Reason.ANALYSIS_INCONCLUSIVE), "somebody may have to act"
    assert cluster.status.phase is ServingPhase.DEGRADED
    ends = [parse_timestamp(each.until) for each in cluster.analysed]
    spans = [later - earlier for earlier, later in itertools.pairwise(ends)]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(spans)), spans
    assert first.until != ends[-1]
    cluster.analysis = AnalysisOutcome.PASSED
    cluster.settle(passes=200)
    assert cluster.traffic() == new


def test_a_step_that_lasts_for_ten_minutes_is_for_somebody_to_look_at() -> None:
    cluster, _, _ = started(AnalysisOutcome.INCONCLUSIVE)
    held = cluster.status.candidate
    assert held is not None
    while condition(cluster.status, "Stalled")[0] == "False":
        made = cluster.reconcile()
        cluster.run_controllers()
        cluster.now += timedelta(seconds=math.ceil(made.requeue_after or 0))
    lasted = (cluster.now - parse_timestamp(held.since)).total_seconds()
    assert LONG_WAIT_SECONDS <= lasted - math.ceil(made.requeue_after or 0) <= LONG_WAIT_SECONDS + 2


def test_what_has_failed_is_told_however_much_was_verified() -> None:
    check = VerificationCheck(name="digest", outcome=CheckOutcome.PASSED)
    bad = VerificationCheck(name="failedRequests", outcome=CheckOutcome.FAILED)
    status = CanaryAnalysisStatus(outcome=AnalysisOutcome.FAILED, until="2026-01-01T00:00:00Z", checks=[bad])
    cluster, _, _ = started(AnalysisOutcome.RUNNING)
    assert cluster.status.candidate is not None
    problem = Analysis(status, goes_on=False).problem(
        cluster.status.candidate.model_copy(update={"verification": [check] * 16})
    )
    assert problem is not None
    assert (len(problem.checks), problem.checks[-1]) == (16, bad)


@pytest.mark.slow
def test_to_go_on_without_a_verdict_counts_at_once() -> None:
    cluster, _, new = started(AnalysisOutcome.INCONCLUSIVE)
    wait(cluster, 90)
    assert of(cluster.status.candidate).step == 1
    cluster.spec |= {"strategy": analysed(onInconclusive="Continue")}
    cluster.reconcile()
    assert of(cluster.status.candidate).step == 2
    cluster.settle()
    assert cluster.traffic() == new
    told_of = [event.message for event in cluster.events if event.reason is Reason.ANALYSIS_INCONCLUSIVE]
    assert_says(told_of[-1], "31 of 120")


def test_with_continue_the_step_ends_with_its_pause() -> None:
    cluster, _, _ = started(AnalysisOutcome.INCONCLUSIVE, onInconclusive="Continue")
    reached = parse_timestamp(str(of(cluster.status.candidate).reached_at))
    second = until(cluster, lambda each: each.canary and each.canary.step == 2)
    assert parse_timestamp(second.since) - reached <= timedelta(seconds=70)


@pytest.mark.parametrize("how", ["Hold", "Continue"])
def test_an_analysis_that_does_not_end_is_none(how: str) -> None:
    cluster, _, _ = started(AnalysisOutcome.RUNNING, onInconclusive=how)
    cluster.now += timedelta(seconds=LATE_SECONDS)
    cluster.reconcile()
    assert of(cluster.status.candidate).step == 1, "it may be late"
    assert_says(str(cluster.status.candidate), "the verdict of its analysis is due")
    wait(cluster, 100)
    held = of(cluster.status.candidate)
    assert held.step == (1 if how == "Hold" else 2)
    if how == "Hold":
        assert held.analysis is not None
        assert_says(held.analysis.message, "could not be compared", "The Job has no pod yet")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Hold", "Continue"])
def test_a_quota_without_room_for_the_analysis_holds_or_not_as_the_spec_says(how: str) -> None:
    cluster, old, _ = started(AnalysisOutcome.PASSED)
    for name in list(jobs(cluster)):
        del cluster.objects[JOBS][name]
    cluster.spec |= {"strategy": analysed(onInconclusive=how)}
    cluster.refuse = Quota(JOBS, 1)
    wait(cluster, 90)
    assert (cluster.traffic(), of(cluster.status.candidate).step) == (old, 1 if how == "Hold" else 2)
    cluster.refuse = lambda *_: ""
    cluster.settle(passes=200)
    assert cluster.traffic() != old


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Hold", "Continue"])
def test_a_quota_without_room_for_the_analysis_ends_no_canary(how: str) -> None:
    cluster = serving(replicas=3)
    old, minutes = cluster.traffic(), ["90m", "80m"] if how == "Continue" else ["1m", "2m"]
    steps = [{"weight": weight, "pause": pause} for weight, pause in zip((10, 50), minutes, strict=True)]
    asked = {"type": "Canary", "canary": {"steps": steps, "analysis": {"onInconclusive": how}}}
    cluster.spec = canary(strategy=asked)
    cluster.refuse = refuse_analyses
    new = until(cluster, has_share(1)).revision
    for _ in range(60):
        one_pass(cluster, 120)
        held = cluster.status.candidate
        assert held is not None
        assert (held.revision, held.state, cluster.shared()) == (new, RevisionState.CANARY, True), held.message
    assert of(held).step == (1 if how == "Hold" else 2)
    assert condition(cluster.status, "Stalled")[0] == "True", "somebody may have to act"
    assert_says(str(cluster.status.conditions), "exceeded quota: few")
    cluster.refuse = lambda *_: ""
    cluster.settle(passes=200)
    assert cluster.traffic() == new != old


def test_a_canary_whose_analysis_is_refused_is_watched_all_the_same() -> None:
    cluster = serving(replicas=3)
    old, cluster.refuse, cluster.spec = cluster.traffic(), refuse_analyses, canary(strategy=analysed())
    new = until(cluster, lambda _: cluster.shared()).revision
    wait(cluster, 30)
    crash_once(cluster, new)
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert condition(cluster.status, "Stalled") == ("True", Reason.CANDIDATE_FAILED)


def test_a_job_that_is_deleted_is_made_again() -> None:
    cluster, _, _ = started(AnalysisOutcome.PASSED)
    [name] = jobs(cluster)
    del cluster.objects[JOBS][name]
    cluster.reconcile()
    assert list(jobs(cluster)) == [name]


def test_a_crash_ends_it_all_the_same() -> None:
    cluster, old, new = started(AnalysisOutcome.RUNNING)
    crash_once(cluster, new)
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert condition(cluster.status, "Stalled") == ("True", Reason.CANDIDATE_FAILED)


def test_what_is_asked_for_in_the_middle_of_a_step_counts_from_then() -> None:
    cluster = serving(replicas=3)
    cluster.spec = canary()
    until(cluster, has_share(1))
    cluster.spec |= {"strategy": analysed(minRequests=20)}
    cluster.reconcile()
    assert told(cluster).min_requests == 20
    cluster.spec |= {"strategy": analysed(minRequests=30)}
    cluster.reconcile()
    cluster.reconcile()
    assert told(cluster).min_requests == 30
    cluster.spec |= {"strategy": {**ANALYSED, "canary": {**ANALYSED["canary"], "analysis": None}}}
    cluster.reconcile()
    assert of(cluster.status.candidate).analysis is None
    cluster.reconcile()
    assert not jobs(cluster)


def test_an_operator_that_was_down_reads_the_verdict_later() -> None:
    cluster, old, _ = started(AnalysisOutcome.FAILED)
    cluster.run_controllers()
    cluster.now += timedelta(hours=3)
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert condition(cluster.status, "Stalled") == ("True", Reason.ANALYSIS_FAILED)


def test_a_step_without_a_pause_is_looked_at_for_a_minute() -> None:
    cluster = serving(replicas=1)
    step = {"weight": 50, "pause": "0s"}
    cluster.spec = pinned(BETTER, strategy={"type": "Canary", "canary": {"steps": [step], "analysis": {}}})
    until(cluster, has_share(1))
    wait(cluster, 10)
    cluster.reconcile()
    given = told(cluster)
    assert timestamp(cluster.now) < given.until <= timestamp(cluster.now + timedelta(seconds=60))
    cluster.settle()
    assert cluster.traffic() != ""
    assert cluster.status.phase is ServingPhase.READY


def test_blue_green_and_the_first_revision_are_not_analysed() -> None:
    cluster = ServingCluster(spec=pinned(GOOD, strategy=ANALYSED))
    cluster.settle()
    cluster.spec = pinned(BETTER, strategy={**ANALYSED, "type": "BlueGreen"})
    cluster.settle()
    assert not cluster.analysed
    assert cluster.status.phase is ServingPhase.READY


@pytest.mark.parametrize(
    "asked",
    [
        *({"maxErrorIncrease": "1"}, {"maxErrorIncrease": "-0.1"}, {"maxErrorIncrease": "0.0001"}),
        *({"maxErrorIncrease": ""}, {"maxErrorIncrease": "0."}),
        *({"maxLatencyIncrease": "10"}, {"maxLatencyIncrease": "0.123"}, {"maxLatencyIncrease": "half"}),
        *({"minRequests": 9}, {"minRequests": 1_000_001}, {"onInconclusive": "Wait"}, {"interval": "1m"}),
    ],
)
def test_an_analysis_that_cannot_be(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AdapterDeploymentSpec.model_validate(canary(strategy=analysed(**asked)))


def test_the_analysis_where_only_that_is_said() -> None:
    spec = AdapterDeploymentSpec.model_validate(canary(strategy=analysed()))
    found = spec.strategy.canary.analysis
    assert found is not None
    assert (found.max_error_increase, found.max_latency_increase, found.min_requests) == ("0.01", "0.5", 100)
    assert found.on_inconclusive == "Hold"
    assert AdapterDeploymentSpec.model_validate(canary()).strategy.canary.analysis is None
