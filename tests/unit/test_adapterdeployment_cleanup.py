"""How long pods of earlier revisions stay: as long as their own drain takes, whatever the runtime says by now."""

from datetime import timedelta

import pytest

from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, NETWORK_POLICIES
from finetune_operator.settings import Settings
from tests.support.played_pods import BETTER, GOOD
from tests.support.promoted import crash
from tests.support.promoted import promoted as before_rollback
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit


def promoted(cluster: ServingCluster) -> str:
    """Go on until another revision serves; the one of before."""
    old = cluster.traffic()
    while cluster.traffic() == old:
        cluster.reconcile()
        cluster.run_controllers()
        cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
    return old


@pytest.mark.parametrize(("old_runtime", "new_runtime", "drain"), [("tgi", "tgi-cpu", 15), ("tgi-cpu", "tgi", 5)])
def test_pods_drain_as_they_were_started(old_runtime: str, new_runtime: str, drain: int) -> None:
    cluster = serving(runtime=old_runtime)
    cluster.spec = pinned(GOOD, runtime=new_runtime)
    old = promoted(cluster)
    since = cluster.status.stable.since if cluster.status.stable else ""
    cluster.now = parse_timestamp(since) + timedelta(seconds=drain - 1)
    assert cluster.reconcile().requeue_after == 1
    assert old in cluster.revisions(DEPLOYMENTS)
    cluster.now += timedelta(seconds=1)
    cluster.reconcile()
    assert cluster.revisions(DEPLOYMENTS) == {cluster.traffic()}


def test_a_runtime_that_is_gone_from_the_values_drains_all_the_same() -> None:
    cluster = serving(runtime="tgi")
    cluster.spec = pinned(BETTER, runtime="tgi-cpu")
    old = promoted(cluster)
    cluster.settings = Settings.model_validate(SETTINGS.model_dump(by_alias=True) | {"runtimes": {}})
    cluster.reconcile()
    assert old in cluster.revisions(DEPLOYMENTS)


def test_a_longer_drain_in_the_values_does_not_hold_pods_that_end_sooner() -> None:
    cluster = serving()
    longer = SETTINGS.runtimes["tgi-cpu"].model_copy(update={"drain_seconds": 600})
    cluster.settings = SETTINGS.model_copy(update={"runtimes": SETTINGS.runtimes | {"tgi-cpu": longer}})
    old = promoted(cluster)
    cluster.now += timedelta(seconds=5)
    cluster.reconcile()
    assert old not in cluster.revisions(DEPLOYMENTS)


@pytest.mark.parametrize("by_hand", [False, True])
def test_bad_pods_begin_to_drain_as_soon_as_nobody_is_sent_to_them(by_hand: bool) -> None:
    """Clients that keep their connections get answers of theirs until then."""
    cluster, old, new = before_rollback()
    if by_hand:
        cluster.spec["rollbackTo"] = old
    else:
        crash(cluster, new)
    cluster.reconcile()
    assert cluster.traffic() == old
    assert new in cluster.revisions(DEPLOYMENTS), "nodes send clients to them until the Service has moved"
    cluster.run_endpoints()
    cluster.reconcile()
    assert cluster.revisions(DEPLOYMENTS) == {old}


def test_the_network_stays_as_it_is_until_the_last_pod_has_ended() -> None:
    """An answer that is under way would be cut off."""
    cluster = serving()
    cluster.spec = pinned(BETTER)
    old = promoted(cluster)
    cluster.now += timedelta(seconds=5)
    cluster.reconcile()
    assert old not in cluster.revisions(DEPLOYMENTS)
    assert old in cluster.revisions(NETWORK_POLICIES)
    assert f"demo-{old}" not in cluster.pods, "they have ended"
    cluster.reconcile()
    assert cluster.revisions(NETWORK_POLICIES) == {cluster.traffic()}
