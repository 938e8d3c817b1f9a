"""Pods of what serves that are not what was evaluated any more: what the status says, and where the traffic goes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, RevisionState, ServingPhase
from finetune_operator.framework.objects import DEPLOYMENTS
from tests.support.played_pods import GOOD
from tests.support.promoted import disprove, passes, promoted, prove
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving, shown
from tests.unit.test_adapterdeployment_canary import canary, has_share
from tests.unit.test_adapterdeployment_canary import until as canary_until

pytestmark = pytest.mark.unit


def told(cluster: ServingCluster) -> list[str]:
    """Warnings about degraded pods."""
    return [each.message for each in cluster.events if each.reason == Reason.SELF_CHECK_FAILED]


def message_of(cluster: ServingCluster, kind: str) -> str:
    return next(each.message for each in cluster.status.conditions if each.type == kind)


def test_one_of_two_pods_is_said_and_the_other_serves() -> None:
    cluster = serving(replicas=2)
    revision = cluster.traffic()
    disprove(cluster, revision, pods=1)
    passes(cluster)
    assert cluster.traffic() == revision
    assert cluster.status.phase is ServingPhase.DEGRADED
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Degraded") == ("True", Reason.SELF_CHECK_FAILED)
    assert_says(
        message_of(cluster, "Degraded"),
        *("1 of 2 pods", f"revision {revision}", "fails its self-check", "no new connections"),
        f"Pod demo-{revision}-0",
        *(
            "had passed before",
            "logProbabilities",
            "expected at most 0.550",
            "seen 1.312",
            "delete it",
            "spec.rollbackTo",
        ),
    )
    assert len(told(cluster)) == 1, "once, and not in each pass"
    prove(cluster, revision)
    cluster.settle()
    assert shown(cluster.status) == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
    disprove(cluster, revision, pods=1)
    passes(cluster)
    assert len(told(cluster)) == 2, "another time is another event"


def test_without_a_revision_to_go_back_to_nobody_gets_wrong_answers() -> None:
    cluster = serving(replicas=2)
    revision = cluster.traffic()
    disprove(cluster, revision)
    cluster.run_controllers()
    passes(cluster)
    cluster.now += timedelta(hours=1)
    passes(cluster)
    assert cluster.traffic() == revision
    assert cluster.status.phase is ServingPhase.DEGRADED
    assert condition(cluster.status, "Ready") == ("False", Reason.SELF_CHECK_FAILED)
    assert_says(message_of(cluster, "Degraded"), "2 of 2 pods", "fail their self-check")
    assert len(told(cluster)) == 1
    assert cluster.objects[DEPLOYMENTS].keys() == {f"demo-{revision}"}


@pytest.mark.parametrize("replicas", [1, 3])
def test_all_pods_are_reason_to_go_back_at_once(replicas: int) -> None:
    """No pod answers any more, and waiting for a better answer would only be a longer gap."""
    cluster, old, new = promoted(replicas=replicas)
    passes(cluster)
    disprove(cluster, new)
    cluster.reconcile()
    assert cluster.traffic() == old, "in the very pass that sees it"
    fallen = cluster.status.candidate
    assert fallen is not None
    assert (fallen.revision, fallen.state, fallen.reason) == (new, RevisionState.FAILED, Reason.VERIFICATION_FAILED)
    assert_says(
        fallen.message, "Each of its pods fails its self-check", "seen 1.312", f"Revision {old}", "serves again"
    )
    assert [(each.name, each.outcome) for each in fallen.verification] == [("logProbabilities", CheckOutcome.FAILED)]
    cluster.settle()
    assert shown(cluster.status) == {"Ready": "True", "Reconciling": "False", "Stalled": "True", "RolledBack": "True"}
    assert_says(message_of(cluster, "RolledBack"), new, "logProbabilities", "status.candidate.verification")
    assert told(cluster) == [], "the event is that of the way back"
    assert [each.type for each in cluster.events if each.reason == Reason.ROLLED_BACK] == ["Warning"]


def test_while_a_pod_answers_nothing_goes_back() -> None:
    """Of one revision, pods that differ are no fault of the revision: their node, their card, their download."""
    cluster, old, new = promoted(replicas=2)
    passes(cluster)
    disprove(cluster, new, pods=1)
    passes(cluster)
    assert cluster.traffic() == new
    assert condition(cluster.status, "Degraded")[0] == "True"
    assert cluster.revisions(DEPLOYMENTS) == {old, new}
    disprove(cluster, new)
    cluster.reconcile()
    assert cluster.traffic() == old


def test_what_was_kept_too_long_ago_is_no_way_back() -> None:
    cluster, _, new = promoted()
    cluster.settle()
    disprove(cluster, new)
    passes(cluster)
    assert cluster.traffic() == new
    assert condition(cluster.status, "Degraded")[0] == "True"
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest != GOOD


def test_clients_get_answers_from_a_canary_where_what_serves_gives_none() -> None:
    cluster = serving(replicas=3)
    old, cluster.spec = cluster.traffic(), canary()
    new = canary_until(cluster, has_share(1)).revision
    disprove(cluster, old)
    cluster.run_controllers()
    passes(cluster, 2)
    assert (cluster.traffic(), cluster.shared()) == (old, True)
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert_says(message_of(cluster, "Ready"), f"None of the 3 pods of revision {old}", f"revision {new} is a canary")
    assert condition(cluster.status, "Degraded") == ("True", Reason.SELF_CHECK_FAILED)
    assert cluster.status.phase is ServingPhase.DEGRADED
    disprove(cluster, new)
    cluster.run_controllers()
    passes(cluster, 2)
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert condition(cluster.status, "Ready") == ("False", Reason.SELF_CHECK_FAILED)
    assert condition(cluster.status, "Stalled") == ("True", Reason.VERIFICATION_FAILED), "nothing is tried again"
