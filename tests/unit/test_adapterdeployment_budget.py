"""The disruption budget of an endpoint: who has one, and that nothing else waits for one that cannot be made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, ServingPhase
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.framework.cache import CHILDREN, Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import Reconciler
from finetune_operator.framework.unmet import RETRY
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.support.memory_cluster import NAMESPACE, MemoryCluster, runner
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.sentences import assert_says
from tests.support.serving import Quota, ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

KEY = Key(meta.ADAPTERDEPLOYMENT, NAMESPACE, "demo")
OPTED_OUT = SETTINGS.model_copy(update={"disruption_budgets": False})


def advice(status: AdapterDeploymentStatus) -> str:
    """The message of the condition Discouraged; empty without one."""
    return next((each.message for each in status.conditions if each.type == "Discouraged"), "")


# Who has one


def test_several_pods_have_a_budget_which_goes_with_the_traffic() -> None:
    cluster = serving()
    assert not cluster.objects.get(DISRUPTION_BUDGETS)
    for wanted, digest in ((2, GOOD), (2, BETTER), (3, BETTER)):
        cluster.spec = pinned(digest, replicas=wanted)
        cluster.settle()
        [budget] = cluster.objects[DISRUPTION_BUDGETS].values()
        assert budget["metadata"]["name"] == "demo"
        selected = budget["spec"]["selector"]["matchLabels"]
        assert selected == cluster.objects[SERVICES]["demo"]["spec"]["selector"]
        assert budget["spec"]["maxUnavailable"] == 1
    for wanted in (1, 0):
        cluster.spec = pinned(BETTER, replicas=wanted)
        cluster.settle()
        assert not cluster.objects[DISRUPTION_BUDGETS]


def test_a_candidate_takes_the_budget_of_what_serves_only_with_the_traffic() -> None:
    cluster = serving(replicas=2)
    old, cluster.spec = cluster.traffic(), pinned(INACTIVE, replicas=2)
    cluster.settle()
    [budget] = cluster.objects[DISRUPTION_BUDGETS].values()
    assert budget["spec"]["selector"]["matchLabels"][meta.LABEL_REVISION] == old


def test_an_admin_who_opts_out_gets_none_and_is_rid_of_those_that_were_made() -> None:
    cluster = serving(replicas=2)
    assert cluster.objects[DISRUPTION_BUDGETS]
    before, cluster.settings = cluster.traffic(), OPTED_OUT
    cluster.settle()
    assert not cluster.objects[DISRUPTION_BUDGETS]
    assert cluster.traffic() == before, "no new revision"
    cluster.settings = SETTINGS
    cluster.settle()
    assert cluster.objects[DISRUPTION_BUDGETS]


# One that cannot be made


def test_an_endpoint_is_promoted_and_updated_while_its_budget_is_refused() -> None:
    quota = Quota(DISRUPTION_BUDGETS, 0)
    cluster = ServingCluster(spec=pinned(GOOD, replicas=2), refuse=quota)
    for digest in (GOOD, BETTER):
        cluster.spec = pinned(digest, replicas=2)
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == digest
        assert condition(cluster.status, "Stalled") == ("False", Reason.SERVING)
        assert condition(cluster.status, "Discouraged") == ("True", Reason.DISRUPTION_BUDGET_REFUSED)
    assert_says(advice(cluster.status), "PodDisruptionBudget demo", "exceeded quota: few", "disruptionBudgets: false")
    warnings = [event.reason for event in cluster.events if event.type == "Warning"]
    assert warnings == [Reason.DISRUPTION_BUDGET_REFUSED], "once"
    quota.most = 1
    cluster.settle()
    assert cluster.objects[DISRUPTION_BUDGETS]
    assert advice(cluster.status) == ""


def test_what_serves_has_its_budget_while_a_candidate_is_refused() -> None:
    cluster = serving(replicas=2)
    cluster.refuse, cluster.spec = Quota(DEPLOYMENTS, 1), pinned(BETTER, replicas=2)
    cluster.settle()
    assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
    cluster.objects[DISRUPTION_BUDGETS].clear()
    cluster.settle()
    [budget] = cluster.objects[DISRUPTION_BUDGETS].values()
    assert budget["spec"]["selector"] == {"matchLabels": cluster.objects[SERVICES]["demo"]["spec"]["selector"]}


@dataclass
class TakenCluster(MemoryCluster):
    """A cluster that takes budgets or not, and counts the attempts to make one."""

    refusal: ApiError | None = None
    attempts: int = 0

    def create(self, resource: Resource, body: Object) -> Object:
        if resource == DISRUPTION_BUDGETS:
            self.attempts += 1
            if self.refusal is not None:
                said = f"{self.refusal.message} (request {self.attempts})"
                raise ApiError(self.refusal.status, self.refusal.reason, said)
        return super().create(resource, body)


class Operator:
    """An endpoint of two replicas that serves, and its reconciler."""

    def __init__(self, cluster: TakenCluster) -> None:
        self.cluster = cluster
        known = serving(replicas=2).raw()
        cluster.create(SERVICE_ACCOUNTS, runner())
        metadata = {"name": KEY.name, "namespace": NAMESPACE}
        cluster.create(ADAPTERDEPLOYMENTS, known | {"metadata": metadata, "kind": KEY.kind})
        self._cache = Cache()
        kind = adapter_deployment_kind(cluster, self._cache, SETTINGS)
        self._reconciler = Reconciler(cluster, self._cache, {KEY.kind: kind}, lambda: cluster.now)

    def turn(self, after: timedelta = timedelta()) -> AdapterDeploymentStatus:
        """A pass, some time after the one before, and the status that it leaves."""
        self.cluster.now += after
        for resource in (ADAPTERDEPLOYMENTS, *CHILDREN):
            asked = self._cache.moment()
            for found in self.cluster.select(resource, None):
                self._cache.record(resource, found, asked)
            self._cache.sweep(resource, None, asked)
        self._reconciler.reconcile(KEY)
        stored = self.cluster.objects[KEY.kind, KEY.name]["status"]
        return AdapterDeploymentStatus.model_validate(stored)

    def events(self) -> list[str]:
        """Reasons of the events about budgets."""
        found = [each for (kind, _), each in self.cluster.objects.items() if kind == EVENTS.kind]
        return [each["reason"] for each in found if each["reason"] == Reason.DISRUPTION_BUDGET_REFUSED]


def theirs() -> Object:
    """Somebody's own budget, of the endpoint's name."""
    return {"metadata": {"name": "demo", "namespace": NAMESPACE, "labels": {}}, "spec": {"minAvailable": 1}}


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (None, "already exists and does not belong to this AdapterDeployment"),
        (ApiError(403, "Forbidden", "exceeded quota: few"), "exceeded quota: few"),
        (ApiError(422, "Invalid", "policy: no budgets here"), "policy: no budgets here"),
    ],
)
def test_it_is_told_without_holding_anything_and_tried_again_at_a_slow_pace(
    refusal: ApiError | None, words: str
) -> None:
    cluster = TakenCluster(refusal=refusal)
    if refusal is None:
        MemoryCluster.create(cluster, DISRUPTION_BUDGETS, theirs())
    operator = Operator(cluster)
    status = operator.turn()
    assert (DEPLOYMENTS.kind, status.stable.deployment if status.stable else "") in cluster.objects
    assert_says(advice(status), "PodDisruptionBudget demo", words, "operator.disruptionBudgets: false")
    assert condition(status, "Stalled") == ("False", Reason.SERVING)
    written = cluster.version()
    for _ in range(5):
        operator.turn(timedelta(seconds=10))
    assert (cluster.version(), cluster.attempts) == (written, 1), "neither the status nor the budget, in any pass"
    operator.turn(RETRY)
    assert (cluster.attempts, len(operator.events())) == (2, 1), "other words of a webhook are no news"
    cluster.refusal = None
    cluster.objects.pop((DISRUPTION_BUDGETS.kind, "demo"), None)
    assert advice(operator.turn(RETRY)) == ""
    assert (DISRUPTION_BUDGETS.kind, "demo") in cluster.objects


def test_a_webhook_that_is_down_is_told_after_a_minute_and_holds_nothing() -> None:
    cluster = TakenCluster(refusal=ApiError(500, "InternalError", "failed calling webhook"))
    operator = Operator(cluster)
    assert advice(operator.turn()) == ""
    for _ in range(7):
        status = operator.turn(timedelta(seconds=10))
    assert_says(advice(status), "PodDisruptionBudget demo", "failed calling webhook")
    assert condition(status, "Stalled") == ("False", Reason.SERVING)
    assert 2 < cluster.attempts < 8, "ever more rarely"
    assert len(operator.events()) == 1
