"""A canary with exact weights: the gateway divides the requests, or without it the pods do."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState
from finetune_operator.adapterdeployment.route import FOLLOWING_SECONDS, UNDIVIDED_SINCE
from finetune_operator.framework.actions import Action
from finetune_operator.framework.objects import DEPLOYMENTS, HTTP_ROUTES, SERVICES
from finetune_operator.resources.route import Backend
from finetune_operator.settings import FormerRoutes, ServingAccess, Settings
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import pinned, start_seconds
from tests.unit.test_adapterdeployment_canary import crash_once, has_share, one_pass, until
from tests.unit.test_adapterdeployment_route import (
    HTTP,
    INGRESS,
    OFFERED,
    open_to_the_world,
    route,
    routed,
    says,
    shares,
    told,
)
from tests.unit.test_adapterdeployment_walk import CANARY, wanted

pytestmark = pytest.mark.unit


def weighted(**spec: Any) -> tuple[ServingCluster, str]:
    """An endpoint whose gateway takes its route, and follows it at once, and that is to serve another artifact."""
    replicas = spec.pop("replicas", 3)
    cluster = open_to_the_world(replicas=replicas)
    says(cluster)
    cluster.settle()
    old = cluster.traffic()
    cluster.watch = lambda each: says(each) if route(each) else None
    given: dict[str, Any] = {"replicas": replicas, "strategy": CANARY} | spec
    cluster.spec = routed(None, digest=BETTER, **given)
    cluster.generation += 1
    return cluster, old


def candidate_service(revision: str) -> str:
    return f"demo-{revision}-candidate"


@pytest.mark.slow
def test_requests_are_divided_exactly_while_the_service_names_the_old_one() -> None:
    cluster, old = weighted()
    first = until(cluster, has_share(1))
    new = first.revision
    assert first.canary is not None
    assert (first.canary.routed_weight, first.canary.share, first.canary.summary) == (10, 10, "1/2 10%")
    assert_says(first.message, "1 of 4 pods get 10 % of the requests through the HTTPRoute", str(first.canary.until))
    assert shares(cluster) == [Backend("demo", 90), Backend(candidate_service(new), 10)]
    assert not cluster.shared()
    assert cluster.traffic() == old
    assert candidate_service(new) in cluster.objects[SERVICES]
    second = until(cluster, has_share(2))
    assert second.canary is not None
    assert (second.canary.routed_weight, wanted(cluster)) == (50, {old: 3, new: 3})
    assert shares(cluster) == [Backend("demo", 50), Backend(candidate_service(new), 50)]
    assert not cluster.shared()
    left: list[bool] = []

    def gone_too_early(each: ServingCluster) -> None:
        named = {backend.service for backend in shares(each)}
        left.append(named <= set(each.objects[SERVICES]))
        says(each)

    cluster.watch = gone_too_early
    cluster.settle()
    assert cluster.traffic() == new
    assert shares(cluster) == [Backend("demo", 100)]
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert all(left), "the route never names a Service that is gone"


MOST = {"type": "Canary", "canary": {"steps": [{"weight": 90, "pause": "1m"}]}}


@pytest.mark.parametrize("replicas", [1, 3])
def test_most_requests_go_to_a_canary_that_has_as_many_pods_as_the_old_one(replicas: int) -> None:
    cluster, old = weighted(strategy=MOST, replicas=replicas)
    candidate = until(cluster, has_share(1))
    assert candidate.canary is not None
    assert (candidate.canary.routed_weight, candidate.canary.share) == (90, 90)
    assert shares(cluster) == [Backend("demo", 10), Backend(candidate_service(candidate.revision), 90)]
    assert wanted(cluster) == {old: replicas, candidate.revision: replicas}
    cluster.settle()
    assert cluster.traffic() == candidate.revision


def test_without_its_gateway_a_canary_gets_half_at_most() -> None:
    cluster = open_to_the_world(replicas=3)
    cluster.spec = routed(digest=BETTER, replicas=3, strategy=MOST)
    cluster.generation += 1
    candidate = until(cluster, has_share(1))
    assert candidate.canary is not None
    assert (candidate.canary.routed_weight, candidate.canary.share, candidate.canary.pods) == (None, 50, "3 of 6")
    assert_says(candidate.message, "50 % of new connections (weight 90)")


def test_the_next_weight_waits_for_the_pods_of_its_step() -> None:
    cluster, _ = weighted()
    until(cluster, has_share(1))
    cluster.room = cluster.held()
    waiting = until(cluster, lambda each: each.canary and each.canary.step == 2)
    assert waiting.canary is not None
    assert (waiting.canary.weight, waiting.canary.routed_weight) == (50, 10)
    assert shares(cluster)[0] == Backend("demo", 90)


def test_a_step_counts_from_when_the_gateway_has_taken_its_weight() -> None:
    cluster, _ = weighted()
    cluster.watch = lambda _: None
    waiting = until(cluster, lambda each: each.canary and each.canary.routed_weight == 10)
    for _ in range(3):
        one_pass(cluster, 5)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.canary is not None
    assert cluster.status.candidate.canary.reached_at is None
    assert_says(cluster.status.candidate.message, "once its gateway has applied the weights")
    assert waiting.canary is not None
    says(cluster)
    one_pass(cluster, 0)
    assert cluster.status.candidate.canary.reached_at is not None


@pytest.mark.parametrize("step", [1, 2])
def test_a_crash_gives_all_requests_back_before_its_pods_go(step: int) -> None:
    cluster, old = weighted()
    new = until(cluster, has_share(step)).revision
    crash_once(cluster, new)
    one_pass(cluster, 0)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.FAILED
    assert shares(cluster) == [Backend("demo", 100)]
    assert cluster.traffic() == old
    assert new in cluster.revisions(DEPLOYMENTS), "the gateway may be a moment behind"
    cluster.settle()
    assert cluster.revisions(DEPLOYMENTS) == {old}
    assert set(cluster.objects[SERVICES]) == {"demo"}


def lost(cluster: ServingCluster) -> None:
    cluster.watch = lambda _: None
    says(cluster, accepted=False, reason="NoMatchingParent")


def removed(cluster: ServingCluster) -> None:
    cluster.watch = lambda _: None
    del cluster.spec["access"]


@pytest.mark.slow
@pytest.mark.parametrize("event", [lost, removed])
def test_without_its_gateway_a_canary_goes_on_by_pods_and_stays_with_them(event: Any) -> None:
    cluster, old = weighted()
    until(cluster, has_share(1))
    event(cluster)
    by_pods = until(cluster, lambda each: each.canary and each.canary.routed_weight is None)
    assert by_pods.canary is not None
    assert (by_pods.canary.step, by_pods.canary.share) == (1, 25)
    assert cluster.shared()
    assert len(shares(cluster)) <= 1
    if route(cluster):
        says(cluster)
    one_pass(cluster, 5)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.canary is not None
    assert cluster.status.candidate.canary.routed_weight is None
    cluster.settle()
    assert cluster.traffic() not in ("", old)


def test_a_gateway_that_never_takes_the_weights_ends_no_canary() -> None:
    cluster, _ = weighted()
    cluster.watch = lambda _: None
    until(cluster, lambda each: each.canary and each.canary.routed_weight == 10)
    cluster.now += timedelta(seconds=start_seconds("tgi-cpu"))
    by_pods = until(cluster, has_share(1))
    assert by_pods.canary is not None
    assert by_pods.canary.routed_weight is None
    assert cluster.shared()


@pytest.mark.parametrize("given", [INGRESS, HTTP], ids=["an Ingress", "no answer yet"])
def test_without_a_gateway_that_takes_it_the_share_is_that_of_the_pods(given: dict[str, Any]) -> None:
    cluster = open_to_the_world(given, replicas=3)
    cluster.spec = routed(given, digest=BETTER, replicas=3, strategy=CANARY)
    first = until(cluster, has_share(1))
    assert first.canary is not None
    assert (first.canary.routed_weight, first.canary.share) == (None, 25)
    assert cluster.shared()


def test_a_refused_weight_leaves_the_canary_to_its_pods() -> None:
    cluster, _ = weighted()

    def refused(_: ServingCluster, action: Action) -> str:
        return "denied by a webhook" if action.resource == HTTP_ROUTES else ""

    cluster.refuse = refused
    by_pods = until(cluster, has_share(1))
    assert by_pods.canary is not None
    assert by_pods.canary.routed_weight is None


def test_rules_that_change_meanwhile_take_no_requests_to_a_canary_that_is_given_up() -> None:
    """The route stays as it is, but for the weights, which are the operator's."""
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    rule = TenancyRule(namespaces=["team"], gateways=["{namespace}/*"], hostnames=["*.{namespace}.example"])
    cluster.settings = OFFERED.model_copy(update={"tenancy": Tenancy(rules=[rule])})
    before = route(cluster)
    assert before is not None
    before = deepcopy(before)
    one_pass(cluster, 0)
    assert [each.service for each in shares(cluster)] == ["demo"]
    after = route(cluster)
    assert after is not None
    assert (after["spec"]["hostnames"], after["spec"]["parentRefs"]) == (
        before["spec"]["hostnames"],
        before["spec"]["parentRefs"],
    )
    assert after["spec"]["rules"][0]["matches"] == before["spec"]["rules"][0]["matches"]
    cluster.settle()
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old}), f"nothing is left of {new}"
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.NOT_ALLOWED)


def runtime_gone(cluster: ServingCluster) -> None:
    cluster.spec["runtime"] = "not-offered"


def taken_back(cluster: ServingCluster) -> None:
    cluster.spec = cluster.spec | {"source": pinned(GOOD)["source"]}


@pytest.mark.parametrize("event", [runtime_gone, taken_back])
def test_a_canary_that_is_dropped_keeps_its_service_until_the_gateway_has_followed(event: Any) -> None:
    """Nothing is left in the status that says when it was dropped: the HTTPRoute does."""
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    event(cluster)
    cluster.generation += 1
    one_pass(cluster, 0)
    assert cluster.status.candidate is None
    assert shares(cluster) == [Backend("demo", 100)]
    for _ in range(2):
        assert candidate_service(new) in cluster.objects[SERVICES], "the gateway may be a moment behind"
        assert new in cluster.revisions(DEPLOYMENTS), "and so may be those whom it has sent there"
        one_pass(cluster, 4)
    cluster.settle()
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})


@pytest.mark.parametrize("event", [runtime_gone, taken_back])
def test_a_slow_gateway_keeps_the_service_of_a_dropped_canary_until_it_has_seen_the_route(event: Any) -> None:
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    cluster.watch = lambda _: None
    event(cluster)
    cluster.generation += 1
    for _ in range(3):
        one_pass(cluster, 30)
        assert shares(cluster) == [Backend("demo", 100)]
        assert candidate_service(new) in cluster.objects[SERVICES], "it still divides requests"
        assert new in cluster.revisions(DEPLOYMENTS)
    says(cluster)
    one_pass(cluster, 0)
    assert set(cluster.objects[SERVICES]) == {"demo"}
    cluster.settle()
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})


def test_a_gateway_that_answers_no_more_is_not_waited_for_without_end() -> None:
    cluster, old = weighted()
    until(cluster, has_share(1))
    cluster.watch = lambda _: None
    taken_back(cluster)
    cluster.generation += 1
    one_pass(cluster, 0)
    dropped = cluster.now
    cluster.settle()
    assert cluster.now - dropped >= timedelta(seconds=FOLLOWING_SECONDS)
    assert set(cluster.objects[SERVICES]) == {"demo"}
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})


def test_a_time_that_nobody_can_read_keeps_no_service() -> None:
    cluster, _ = weighted()
    until(cluster, has_share(1))
    runtime_gone(cluster)
    one_pass(cluster, 0)
    live = route(cluster)
    assert live is not None
    live["metadata"]["annotations"][UNDIVIDED_SINCE] = "yesterday"
    cluster.settle()
    assert set(cluster.objects[SERVICES]) == {"demo"}


def turned_off(former: FormerRoutes = FormerRoutes.DELETE) -> Settings:
    return OFFERED.model_copy(update={"serving": ServingAccess(former_routes=former)})


def test_routes_that_are_no_longer_offered_go_and_a_canary_goes_on_by_pods() -> None:
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    cluster.settings = turned_off()
    cluster.watch = lambda _: None
    one_pass(cluster, 0)
    assert route(cluster) is None
    assert condition(cluster.status, "RouteAccepted") == ("False", Reason.ROUTE_UNAVAILABLE)
    assert_says(told(cluster), "serving.httpRoutes", "an existing one is deleted")
    assert cluster.status.url == ""
    by_pods = until(cluster, lambda each: each.canary and each.canary.routed_weight is None)
    assert (by_pods.revision, cluster.shared()) == (new, True)
    cluster.settle()
    assert (cluster.traffic(), set(cluster.objects[SERVICES])) == (new, {"demo"})
    assert old != new


def test_routes_stay_where_the_admin_wants_to_delete_them() -> None:
    cluster = open_to_the_world()
    cluster.settings = turned_off(FormerRoutes.KEEP)
    cluster.settle()
    assert route(cluster) is not None
    assert_says(told(cluster), "serving.httpRoutes", "stays unchanged", "serving.formerRoutes")
