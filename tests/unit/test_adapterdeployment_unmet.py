"""What an endpoint can do without and did not get: when it is tried again, what is said of it, and that requests are
taken back from a canary that has failed whatever else the API server does not take."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState
from finetune_operator.framework.api_failures import LASTING
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.conditions import ConditionType
from finetune_operator.framework.objects import DEPLOYMENTS, DISRUPTION_BUDGETS, HTTP_ROUTES, JOBS, Resource
from finetune_operator.framework.unmet import RETRY
from finetune_operator.resources.route import Backend
from tests.support.played_pods import GOOD
from tests.support.reconciled import Reconciled
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.unit.test_adapterdeployment_adapter_channels import following, output, served
from tests.unit.test_adapterdeployment_canary import crash_once, has_share, until
from tests.unit.test_adapterdeployment_route import shares, told
from tests.unit.test_adapterdeployment_route_weights import candidate_service, weighted

pytestmark = pytest.mark.unit

UNAVAILABLE = ApiError(503, "ServiceUnavailable", "the server is currently unable to handle the request")
CONFLICT = ApiError(409, "Conflict", "the object has been modified")
BUSY = ApiError(429, "TooManyRequests", "wait")
NO_ANSWER = ApiError(0, "", "timed out")
FORGETS = ApiError(403, "Forbidden", "create not allowed while custom resource definition is terminating")
DENIED = ApiError(403, "Forbidden", "denied by a webhook")
ALL_BACK = [Backend("demo", 100)]


class Failing:
    """Fails writes of a kind so many times."""

    def __init__(self, resource: Resource, error: ApiError, times: int = 1000) -> None:
        self.resource, self.error, self.left = resource, error, times

    def __call__(self, resource: Resource) -> ApiError | None:
        if resource != self.resource or not self.left:
            return None
        self.left -= 1
        return self.error


def crashed() -> tuple[Reconciled, str, str]:
    """A canary with a tenth of the requests of the HTTPRoute, whose server has just crashed: the operator, the revision
    that serves, and the canary."""
    cluster, old = weighted()
    new = until(cluster, has_share(1)).revision
    crash_once(cluster, new)
    return Reconciled(cluster), old, new


def state(cluster: ServingCluster) -> RevisionState | None:
    return cluster.status.candidate.state if cluster.status.candidate else None


@pytest.mark.parametrize(
    "error", [UNAVAILABLE, CONFLICT, BUSY, NO_ANSWER, FORGETS], ids=lambda error: error.reason or "no answer"
)
def test_requests_are_taken_back_by_the_very_next_try_after_an_error_that_passes(error: ApiError) -> None:
    operator, _, new = crashed()
    operator.fails = Failing(HTTP_ROUTES, error, times=1)
    with pytest.raises(ApiError):
        operator.turn()
    assert state(operator.cluster) is RevisionState.CANARY, "nothing is said to have happened that has not"
    assert operator.told == []
    operator.turn()
    assert shares(operator.cluster) == ALL_BACK
    assert state(operator.cluster) is RevisionState.FAILED
    assert_says(operator.told[-1]["message"], new, "gets all traffic again")


def test_a_share_that_the_api_server_does_not_let_go_of_is_told_and_tried_in_every_pass() -> None:
    operator, old, new = crashed()
    operator.fails = Failing(HTTP_ROUTES, DENIED)
    turn = operator.turn()
    assert state(operator.cluster) is RevisionState.FAILED
    failed = next(each["message"] for each in operator.told if each["reason"] == Reason.CANDIDATE_FAILED)
    assert_says(failed, new, f"Revision {old} is to get all traffic again", "RouteAccepted")
    assert "gets all traffic" not in failed
    assert condition(operator.cluster.status, ConditionType.ROUTE_ACCEPTED) == ("False", Reason.ROUTE_REFUSED)
    assert_says(told(operator.cluster), "denied by a webhook", "10 % of the requests", candidate_service(new))
    for count in (2, 3):
        assert turn.after is not None
        assert turn.after <= 10
        operator.cluster.now += timedelta(seconds=1)
        turn = operator.turn()
        assert operator.writes(HTTP_ROUTES) == count
    operator.fails = lambda _: None
    operator.turn()
    assert shares(operator.cluster) == ALL_BACK


def test_an_outage_is_told_once_it_lasts() -> None:
    operator, _, _ = crashed()
    operator.fails = Failing(HTTP_ROUTES, UNAVAILABLE)
    with pytest.raises(ApiError):
        operator.turn()
    operator.cluster.now += LASTING
    operator.turn()
    assert state(operator.cluster) is RevisionState.FAILED
    assert_says(told(operator.cluster), "unable to handle the request", "10 % of the requests")


@pytest.mark.parametrize("resource", [DEPLOYMENTS, HTTP_ROUTES])
def test_no_other_refusal_leaves_requests_with_a_canary_that_has_failed(resource: Resource) -> None:
    """The refused object is of what serves; were the canary still one, it would get its weight back."""
    operator, old, new = crashed()
    operator.cluster.spec |= {"replicas": 4}
    if resource == DEPLOYMENTS:
        operator.fails = Failing(resource, DENIED)
    for _ in range(3):
        operator.turn()
        assert shares(operator.cluster) == ALL_BACK
        assert state(operator.cluster) is RevisionState.FAILED
        operator.cluster.now += timedelta(seconds=5)
    if resource == DEPLOYMENTS:
        assert condition(operator.cluster.status, ConditionType.STALLED) == ("True", Reason.POD_REJECTED)
    assert [each["reason"] for each in operator.told].count(Reason.CANDIDATE_FAILED) == 1
    assert (operator.cluster.traffic(), old != new) == (old, True)


def test_a_canary_keeps_to_its_weights_through_an_error_that_passes() -> None:
    """By pods, where it would stay, its share would be another one."""
    cluster, _ = weighted()
    operator = Reconciled(cluster)
    until(cluster, has_share(1))
    operator.fails = Failing(HTTP_ROUTES, UNAVAILABLE, times=1)
    for _ in range(200):
        turn = operator.turn()
        candidate = cluster.status.candidate
        assert candidate is not None
        assert candidate.canary is not None
        assert candidate.canary.routed_weight is not None
        if candidate.canary.step == 2 and candidate.canary.until is not None:
            break
        cluster.now += timedelta(seconds=min(turn.after or 5, 5))
    assert shares(cluster)[0] == Backend("demo", 50)
    assert condition(cluster.status, ConditionType.ROUTE_ACCEPTED)[0] == "True"


def test_what_is_refused_is_tried_again_within_five_minutes_without_any_event() -> None:
    cluster, _ = weighted(strategy={"type": "BlueGreen"})
    cluster.settle()
    operator = Reconciled(cluster)
    cluster.objects[HTTP_ROUTES].clear()
    operator.fails = Failing(HTTP_ROUTES, DENIED, times=1)
    turn = operator.turn()
    assert condition(cluster.status, ConditionType.ROUTE_ACCEPTED) == ("False", Reason.ROUTE_REFUSED)
    assert turn.after is not None
    assert turn.after <= RETRY.total_seconds()
    cluster.now += timedelta(seconds=turn.after)
    operator.turn()
    assert shares(cluster) == ALL_BACK


def test_an_error_that_passes_is_tried_again_soon_and_not_told() -> None:
    cluster, _ = weighted(strategy={"type": "BlueGreen"})
    cluster.settle()
    operator = Reconciled(cluster)
    cluster.objects[DISRUPTION_BUDGETS].clear()
    operator.fails = Failing(DISRUPTION_BUDGETS, UNAVAILABLE, times=3)
    for _ in range(3):
        turn = operator.turn()
        assert turn.after is not None
        assert turn.after <= 4
        assert not any(each.type == ConditionType.DISCOURAGED for each in cluster.status.conditions)
        cluster.now += timedelta(seconds=turn.after)
    operator.turn()
    assert cluster.objects[DISRUPTION_BUDGETS]
    assert operator.told == []


def test_what_is_not_asked_for_any_more_is_not_waited_for() -> None:
    """A look at a channel that was refused, and whose adapter has gone: nobody would ever try it again, and the
    operator would look at the endpoint without a pause."""
    operator = Reconciled(served(fr=GOOD, de=GOOD))
    cluster = operator.cluster
    cluster.now += timedelta(minutes=6)
    operator.fails = Failing(JOBS, DENIED)
    for _ in range(3):
        operator.turn()
    known = {each.adapter: each.reason for each in cluster.status.adapter_channels}
    assert known["de"] == Reason.POD_REJECTED
    operator.fails = lambda _: None
    cluster.spec = following({"fr": output("fr")})
    begin = cluster.now
    for _ in range(20):
        cluster.now += timedelta(seconds=operator.turn().after or 0)
    assert cluster.now - begin > timedelta(minutes=10), "it goes from look to look"
    assert condition(cluster.status, ConditionType.STALLED)[0] == "False"
