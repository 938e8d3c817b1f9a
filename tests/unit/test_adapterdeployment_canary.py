"""Canary: a verified revision gets a growing share, and all traffic goes back if it does not stand it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.canary import LOOK_SECONDS, canary_pods
from finetune_operator.adapterdeployment.health import UNANSWERED_SECONDS
from finetune_operator.adapterdeployment.turns import contender_of
from finetune_operator.framework.actions import Apply
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS, NETWORK_POLICIES
from tests.support.played_pods import BETTER, GOOD
from tests.support.promoted import disprove, falls_silent, passes
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving, shown
from tests.support.serving_specs import SETTINGS, pinned, start_seconds
from tests.unit.test_adapterdeployment_walk import CANARY, IN_PLACE, Safety, wanted

pytestmark = pytest.mark.unit

SECOND = {"type": "Canary", "canary": {"steps": [{"weight": 40, "pause": "0s"}, {"weight": 50, "pause": "2m"}]}}


def canary(digest: str = BETTER, **spec: Any) -> dict[str, Any]:
    return pinned(digest, **({"replicas": 3, "strategy": CANARY} | spec))


def one_pass(cluster: ServingCluster, seconds: float | None = None) -> None:
    made = cluster.reconcile()
    cluster.run_controllers()
    cluster.now += timedelta(seconds=math.ceil(made.requeue_after or 1) if seconds is None else seconds)


def until(cluster: ServingCluster, reached: Callable[[RevisionStatus], object]) -> RevisionStatus:
    """Passes of five seconds until the candidate is as asked."""
    for _ in range(60):
        one_pass(cluster, 5)
        candidate = cluster.status.candidate
        if candidate is not None and reached(candidate):
            return candidate
    raise AssertionError(cluster.status)


def has_share(step: int) -> Callable[[RevisionStatus], object]:
    return lambda candidate: candidate.canary and candidate.canary.step == step and candidate.canary.until


def started(step: int = 1, **spec: Any) -> tuple[ServingCluster, str, str]:
    """An endpoint whose canary has the share of a step; the revision that serves, and the canary."""
    cluster = serving(replicas=spec.get("replicas", 3))
    cluster.watch = Safety(proved={cluster.traffic()})
    cluster.spec = canary(**spec)
    return cluster, cluster.traffic(), until(cluster, has_share(step)).revision


def crash_once(cluster: ServingCluster, revision: str) -> None:
    """The server of one pod ends, and is started again at once."""
    ended = {"exitCode": 1, "reason": "Error", "finishedAt": timestamp(cluster.now)}
    server = {"name": "server", "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": ended}}
    cluster.pods[f"demo-{revision}"][0]["status"]["containerStatuses"] = [server]


@pytest.mark.parametrize(
    ("beside", "weight", "pods"),
    [
        *[(1, 10, 1), (1, 50, 1), (3, 10, 1), (3, 25, 1), (3, 39, 1), (3, 40, 2), (3, 50, 3)],
        *[(9, 10, 1), (18, 10, 2), (100, 1, 1), (100, 50, 100)],
        *[(1, 51, 1), (1, 99, 1), (3, 75, 3), (100, 99, 100)],
    ],
)
def test_as_many_pods_as_come_closest_without_being_more(beside: int, weight: int, pods: int) -> None:
    assert canary_pods(beside, weight) == pods


@pytest.mark.slow
def test_it_gets_its_shares_one_after_the_other_and_then_takes_over() -> None:
    cluster, old, new = started()
    candidate = cluster.status.candidate
    assert candidate is not None
    assert candidate.canary is not None
    assert (candidate.state, candidate.reason) == (RevisionState.CANARY, Reason.CANARY_STEP)
    assert (candidate.canary.weight, candidate.canary.share, candidate.canary.pods) == (10, 25, "1 of 4")
    assert candidate.canary.summary == "1/2 25%"
    assert_says(candidate.message, "Step 1 of 2", "1 of 4 pods", "25 %", "weight 10", str(candidate.canary.until))
    assert candidate.accuracy == "0.9000"
    assert cluster.shared()
    assert cluster.traffic() == old
    assert wanted(cluster) == {old: 3, new: 1}
    ready = next(each.message for each in cluster.status.conditions if each.type == "Ready")
    assert_says(ready, old, "3 of 3 pods", new, str(candidate.canary.until))
    assert condition(cluster.status, "Reconciling") == ("True", Reason.CANARY_STEP)
    assert [event.reason for event in cluster.events].count(Reason.CANARY_STEP) == 1
    reached = candidate.canary.reached_at
    second = until(cluster, has_share(2))
    assert second.canary is not None
    assert (second.canary.share, second.canary.pods) == (50, "3 of 6")
    assert second.canary.started_at == reached
    assert wanted(cluster) == {old: 3, new: 3}
    assert cluster.traffic() == old
    cluster.settle()
    assert cluster.traffic() == new
    assert not cluster.shared()
    assert wanted(cluster) == {new: 3}
    assert cluster.status.stable is not None
    assert cluster.status.stable.canary is None
    assert cluster.status.stable.accuracy == "0.9000"
    assert cluster.status.stable.message == "It passed every step of its canary."
    assert len(cluster.objects[JOBS]) == 1


def test_nobody_reaches_it_before_its_network_is_open() -> None:
    cluster = serving(replicas=3)
    cluster.spec = canary()
    candidate = until(cluster, lambda each: each.state is RevisionState.CANARY)
    assert candidate.canary is not None
    assert candidate.canary.started_at is None
    assert not cluster.shared()
    assert 0 < (cluster.plan().requeue_after or 0) <= SETTINGS.policy_seconds


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
def test_a_single_crash_gives_all_traffic_back_at_once(step: int) -> None:
    cluster, old, new = started(step)
    crash_once(cluster, new)
    cluster.reconcile()
    assert not cluster.shared()
    assert cluster.traffic() == old
    failed = cluster.status.candidate
    assert failed is not None
    assert (failed.state, failed.reason, failed.canary) == (RevisionState.FAILED, Reason.CANDIDATE_FAILED, None)
    assert condition(cluster.status, "Stalled") == ("True", Reason.CANDIDATE_FAILED)
    assert_says(cluster.events[-1].message, new, old, "gets all traffic again")
    assert cluster.revisions(DEPLOYMENTS) == {old, new}, "nodes may still send clients there"
    cluster.settle()
    assert wanted(cluster) == {old: 3}
    cluster.spec |= {"replicas": 2}
    cluster.generation += 1
    cluster.settle()
    assert wanted(cluster) == {old: 2}, "it is not tried again"
    cluster.spec |= {"rerun": "again"}
    cluster.settle()
    assert cluster.traffic() == new


def test_one_pod_that_answers_otherwise_gives_all_traffic_back_at_once() -> None:
    """Also while others of it are ready: what served answers as it should."""
    cluster, old, new = started(2)
    disprove(cluster, new, pods=1)
    cluster.reconcile()
    assert (cluster.shared(), cluster.traffic()) == (False, old)
    failed = cluster.status.candidate
    assert failed is not None
    assert (failed.state, failed.reason) == (RevisionState.FAILED, Reason.VERIFICATION_FAILED)
    assert [each.name for each in failed.verification] == ["logProbabilities"]
    assert "Degraded" not in shown(cluster.status), "what serves is right"


def test_a_refused_deployment_does_not_keep_a_crashed_one_in_the_traffic() -> None:
    cluster, old, new = started()
    cluster.refuse = lambda _, action: "denied" if isinstance(action, Apply) and action.resource == DEPLOYMENTS else ""
    cluster.spec |= {"replicas": 4}
    crash_once(cluster, new)
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)


def test_a_server_that_ends_without_an_error_has_crashed() -> None:
    """So does vLLM when its engine has died."""
    cluster, old, new = started()
    crash_once(cluster, new)
    cluster.pods[f"demo-{new}"][0]["status"]["containerStatuses"][0]["lastState"]["terminated"] |= {
        "exitCode": 0,
        "reason": "Completed",
    }
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.FAILED
    assert_says(cluster.status.candidate.message, "code 0", "never ends by itself")


@pytest.mark.parametrize(("reason", "code"), [("Unknown", 255), ("ContainerStatusUnknown", 137)])
def test_a_node_that_restarts_gives_it_back(reason: str, code: int) -> None:
    """The kubelet finds the containers of before gone: nothing says that the server would have crashed."""
    cluster, old, new = started()
    crash_once(cluster, new)
    cluster.pods[f"demo-{new}"][0]["status"]["containerStatuses"][0]["lastState"]["terminated"] |= {
        "exitCode": code,
        "reason": reason,
    }
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    candidate = cluster.status.candidate
    assert candidate is not None
    assert (candidate.state, candidate.reason) == (RevisionState.WAITING, Reason.NODE_LOST)
    assert_says(candidate.message, "'server'", "its node", "tried again at")


def test_a_node_that_restarts_hides_no_crash_of_another_pod() -> None:
    cluster, old, new = started(2)
    crash_once(cluster, new)
    lost, crashed, *_ = cluster.pods[f"demo-{new}"]
    crashed["status"]["containerStatuses"] = copy.deepcopy(lost["status"]["containerStatuses"])
    lost["status"]["containerStatuses"][0]["lastState"]["terminated"] |= {"exitCode": 255, "reason": "Unknown"}
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.FAILED
    assert_says(cluster.status.candidate.message, crashed["metadata"]["name"], "code 1")


def test_a_crash_while_its_last_pods_start_counts_too() -> None:
    cluster, old, new = started(2, strategy=SECOND, replicas=4)
    cluster.loading.add(BETTER)
    cluster.spec |= {"replicas": 8, "strategy": {"type": "BlueGreen"}}
    until(cluster, lambda each: each.state is RevisionState.PROMOTING)
    assert cluster.shared()
    crash_once(cluster, new)
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)


def test_a_minute_without_an_answer_gives_all_traffic_back() -> None:
    cluster, old, new = started()
    falls_silent(cluster, new)
    cluster.reconcile()
    assert cluster.shared()
    assert (cluster.plan().requeue_after or 0) <= UNANSWERED_SECONDS
    cluster.now += timedelta(seconds=UNANSWERED_SECONDS + 1)
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.FAILED


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    ("spec", "serves"),
    [(pinned("e" * 64), GOOD), (pinned(GOOD), GOOD), (pinned(BETTER, runtime="unknown"), GOOD)],
    ids=["another", "what serves", "blocked"],
)
def test_another_spec_takes_the_share_away_first(step: int, spec: dict[str, Any], serves: str) -> None:
    cluster, old, new = started(step)
    cluster.spec = spec | {"replicas": 3, "strategy": CANARY}
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    cluster.settle()
    assert wanted(cluster) == {old: 3}
    assert new not in cluster.revisions(DEPLOYMENTS)
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == serves


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
def test_another_verification_begins_anew_with_the_network_open(step: int) -> None:
    cluster, old, new = started(step)
    cluster.spec |= {"verification": {"samples": 7}}
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.VERIFYING
    again = until(cluster, has_share(1))
    assert again.revision == new
    assert wanted(cluster) == {old: 3, new: 1}
    cluster.settle()
    assert cluster.traffic() == new


def test_a_shorter_pause_counts_at_once_and_fewer_steps_too() -> None:
    cluster, _, new = started()
    steps = [{"weight": 10, "pause": "0s"}]
    cluster.spec |= {"strategy": {"type": "Canary", "canary": {"steps": steps}}}
    one_pass(cluster)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.PROMOTING
    cluster.settle()
    assert cluster.traffic() == new


@pytest.mark.parametrize("step", [1, 2])
def test_an_operator_that_was_down_goes_on(step: int) -> None:
    cluster, old, new = started(step)
    before = copy.deepcopy(cluster.status.candidate)
    cluster.now += timedelta(hours=3)
    cluster.reconcile()
    assert before is not None
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is (RevisionState.CANARY if step == 1 else RevisionState.PROMOTING)
    assert cluster.traffic() == old
    cluster.settle()
    assert cluster.traffic() == new


@pytest.mark.parametrize(
    "how",
    [{"replicas": 0}, {"strategy": {"type": "BlueGreen"}}],
    ids=["scaled to zero", "BlueGreen"],
)
def test_the_steps_that_are_left_are_left_out(how: dict[str, Any]) -> None:
    cluster, _, new = started()
    cluster.spec |= how
    cluster.generation += 1
    one_pass(cluster)
    assert cluster.status.candidate is None or cluster.status.candidate.state is RevisionState.PROMOTING
    cluster.settle()
    assert cluster.traffic() == new
    assert not cluster.shared()
    assert cluster.status.stable is not None
    assert cluster.status.stable.message == "The rest of its canary was skipped at step 1 of 2."


def test_in_place_from_a_step_on() -> None:
    cluster, old, new = started()
    cluster.spec |= {"strategy": IN_PLACE}
    cluster.reconcile()
    assert (cluster.traffic(), cluster.shared()) == (old, False)
    assert cluster.status.candidate is not None
    assert (cluster.status.candidate.state, cluster.status.candidate.canary) == (RevisionState.STOPPING, None)
    cluster.settle()
    assert cluster.traffic() == new


def test_nothing_to_share_with_means_no_steps() -> None:
    cluster = serving()
    falls_silent(cluster, cluster.traffic())
    cluster.run_controllers()
    cluster.spec = canary(replicas=1)
    seen = set()
    for _ in range(30):
        one_pass(cluster, 5)
        seen.add(cluster.status.candidate and cluster.status.candidate.state)
    assert RevisionState.CANARY not in seen
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


@pytest.mark.slow
def test_the_way_back_by_hand_takes_no_steps() -> None:
    cluster, old, _ = started(keepLastGood="0s")
    cluster.settle()
    cluster.spec |= {"rollbackTo": old}
    seen = set()
    for _ in range(30):
        one_pass(cluster, 5)
        seen.add(cluster.status.candidate and cluster.status.candidate.state)
    assert RevisionState.CANARY not in seen
    assert cluster.traffic() == old


def test_pods_of_a_third_revision_go_before_it_gets_a_share() -> None:
    cluster = serving(replicas=2, keepLastGood="1h")
    kept = cluster.traffic()
    cluster.spec = pinned(BETTER, replicas=2, keepLastGood="1h")
    for _ in range(12):
        one_pass(cluster, 5)
    assert cluster.revisions(DEPLOYMENTS) == {kept, cluster.traffic()}
    cluster.watch = Safety(proved={kept, cluster.traffic()})
    cluster.spec = pinned(GOOD, runtime="tgi", replicas=2, keepLastGood="1h", strategy=CANARY)
    until(cluster, has_share(1))
    assert cluster.shared()
    assert cluster.status.previous is None
    assert kept not in cluster.revisions(DEPLOYMENTS)


def test_a_stray_pod_gets_no_client() -> None:
    cluster, old, _ = started()
    stray = copy.deepcopy(cluster.pods[f"demo-{old}"][0])
    stray["metadata"]["name"] = "stray"
    stray["metadata"]["labels"]["finetune.dev/revision"] = "00000000"
    cluster.pods["stray"] = [stray]
    cluster.reconcile()
    assert not cluster.shared()
    del cluster.pods["stray"]
    cluster.reconcile()
    assert cluster.shared()


@pytest.mark.parametrize("leaves", [True, False])
def test_it_says_which_pods_it_waits_for_and_ends_only_for_those_that_stay(leaves: bool) -> None:
    """Pods that are being deleted are waited for as long as that takes. Those that nothing deletes may never go."""
    cluster = serving(replicas=3)
    old = cluster.traffic()
    stray = copy.deepcopy(cluster.pods[f"demo-{old}"][0])
    stray["metadata"] |= {
        "name": "stray",
        "labels": stray["metadata"]["labels"] | {"finetune.dev/revision": "00000000"},
    }
    if leaves:
        stray["metadata"]["deletionTimestamp"] = timestamp(cluster.now + timedelta(days=1))
    cluster.pods["stray"] = [stray]
    cluster.spec = canary()
    new = until(cluster, lambda each: each.state is RevisionState.CANARY).revision
    cluster.now += timedelta(seconds=start_seconds("tgi-cpu") - 60)
    one_pass(cluster, 61)
    waiting = cluster.status.candidate
    assert waiting is not None
    assert_says(waiting.message, "Step 1 of 2", "are gone: pod stray")
    one_pass(cluster, 1)
    assert not cluster.shared()
    candidate = cluster.status.candidate
    assert candidate is not None
    assert candidate.state is (RevisionState.CANARY if leaves else RevisionState.WAITING)
    assert_says(candidate.message, *["pod stray", *([] if leaves else ["nothing deletes", "tried again at"])])
    if leaves:
        status = cluster.objects[DEPLOYMENTS][f"demo-{new}"]["status"]
        available = status.pop("availableReplicas")
        made = cluster.reconcile()
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.state is RevisionState.CANARY, "a pod that is not ready for a moment"
        assert (made.requeue_after or 0) <= LOOK_SECONDS
        status["availableReplicas"] = available
        del cluster.pods["stray"]
        cluster.settle()
        assert cluster.traffic() == new


def test_pods_that_are_not_ready_when_the_others_have_gone_get_their_time() -> None:
    """However late it is by then: it was others that were waited for."""
    cluster = serving(replicas=3)
    old = cluster.traffic()
    stray = copy.deepcopy(cluster.pods[f"demo-{old}"][0])
    labels = stray["metadata"]["labels"] | {"finetune.dev/revision": "00000000"}
    gone = timestamp(cluster.now + timedelta(days=1))
    stray["metadata"] |= {"name": "stray", "labels": labels, "deletionTimestamp": gone}
    cluster.pods["stray"] = [stray]
    cluster.spec = canary()
    new = until(cluster, lambda each: each.state is RevisionState.CANARY).revision
    time = start_seconds("tgi-cpu")
    for _ in range(16):
        one_pass(cluster, time / 8)
    del cluster.pods["stray"]
    del cluster.objects[DEPLOYMENTS][f"demo-{new}"]["status"]["availableReplicas"]
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.state is RevisionState.CANARY, "a pod that is not ready for a moment"
    cluster.now += timedelta(seconds=time)
    cluster.reconcile()
    given_back = cluster.status.candidate
    assert given_back is not None
    assert given_back.state is RevisionState.WAITING, "it has had its time"


@pytest.mark.parametrize("at_once", [True, False])
def test_one_that_is_tried_again_while_clients_leave_it_keeps_its_network_open(at_once: bool) -> None:
    """Whether its pods are still there, or are being deleted: answers that are under way come to their end."""
    cluster, _, new = started()
    answering = copy.deepcopy(cluster.pods[f"demo-{new}"])
    leaving = copy.deepcopy(cluster.pods[f"demo-{new}"][0])
    leaving["metadata"]["deletionTimestamp"] = timestamp(cluster.now + timedelta(minutes=2))
    falls_silent(cluster, new)
    cluster.now += timedelta(seconds=UNANSWERED_SECONDS)
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.canary is None
    assert not cluster.shared()
    opened = cluster.objects[NETWORK_POLICIES][f"demo-{new}"]["spec"]
    if not at_once:
        cluster.pods["leaving"] = [leaving]
        passes(cluster)
        assert new not in cluster.revisions(DEPLOYMENTS)
    cluster.spec |= {"rerun": "again"}
    one_pass(cluster, 5)
    assert cluster.objects[NETWORK_POLICIES][f"demo-{new}"]["spec"] == opened
    cluster.pods.pop("leaving", None)
    if at_once:
        cluster.pods[f"demo-{new}"] = answering
    cluster.settle()
    assert cluster.traffic() == new


@pytest.mark.parametrize("room", [4, 100])
def test_a_step_whose_pods_do_not_start_in_time_ends(room: int) -> None:
    """It is given back if they find no room, and has failed if they do not load."""
    cluster, old, _ = started()
    cluster.loading, cluster.room = {BETTER}, room
    candidate = until(cluster, lambda each: each.canary and each.canary.step == 2)
    assert candidate.canary is not None
    assert candidate.canary.until is None
    one_pass(cluster, 1)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.reason == (Reason.UNSCHEDULABLE if room == 4 else Reason.CANARY_STEP)
    assert cluster.shared(), "the first pod keeps its share"
    cluster.now += timedelta(seconds=start_seconds("tgi-cpu"))
    cluster.reconcile()
    ended = cluster.status.candidate
    assert ended is not None
    assert ended.state is (RevisionState.WAITING if room == 4 else RevisionState.FAILED)
    assert ended.canary is None
    assert (cluster.traffic(), cluster.shared()) == (old, False)


def test_it_counts_as_rolled_out_while_it_takes_its_steps() -> None:
    cluster, _, _ = started()
    contender = contender_of(cluster.raw())
    assert contender is not None
    assert contender.takes_turn(cluster.now)


@pytest.mark.parametrize(
    "steps",
    [[], [{"weight": 0}], [{"weight": 51}], [{}], [{"weight": 10, "pause": "-1m"}], [{"weight": 10}] * 11],
)
def test_steps_that_cannot_be(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        AdapterDeploymentSpec.model_validate(pinned(GOOD, strategy={"type": "Canary", "canary": {"steps": steps}}))


def test_the_steps_where_nothing_says_which() -> None:
    spec = AdapterDeploymentSpec.model_validate(pinned(GOOD, strategy={"type": "Canary"}))
    assert [(step.weight, step.pause_seconds) for step in spec.strategy.canary.steps] == [(10, 600), (50, 600)]
