"""The last good revision: its pods stay for a while, traffic goes back to them by itself, and what fell is not
tried again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.health import UNANSWERED_SECONDS
from finetune_operator.adapterdeployment.observe import Source
from finetune_operator.adapterdeployment.turns import contender_of
from finetune_operator.framework.actions import Apply, Create
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Object,
)
from tests.support.played_pods import BETTER, GOOD, pod_status
from tests.support.promoted import crash, falls_silent, passes, promoted, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, shown
from tests.support.serving_specs import SETTINGS, following, pinned, published

pytestmark = pytest.mark.unit

NO_ACCOUNT = Reason.RUNNER_SERVICE_ACCOUNT_MISSING


class TestKeeping:
    def test_pods_stay_as_long_as_they_are_to(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        assert cluster.revisions(DEPLOYMENTS) == {old, new}
        assert cluster.status.phase is ServingPhase.READY
        assert cluster.status.previous is not None
        assert (cluster.status.previous.revision, cluster.status.previous.state) == (old, RevisionState.KEPT)
        assert [(line.revision, line.state) for line in cluster.status.revisions] == [
            (new, RevisionState.SERVING),
            (old, RevisionState.KEPT),
        ]
        assert 500 < (cluster.plan().requeue_after or 0) <= 600
        cluster.settle()
        status = cluster.status
        assert cluster.revisions(DEPLOYMENTS) == {new}
        assert status.previous is None
        assert status.revisions[1].state is RevisionState.SUPERSEDED
        assert cluster.revisions(CONTROLLER_REVISIONS) == {old, new}

    def test_nothing_stays_where_it_is_not_to(self) -> None:
        cluster, _, new = promoted(keep="0s")
        assert cluster.status.previous is None
        passes(cluster)
        assert cluster.revisions(DEPLOYMENTS) == {new}

    def test_one_that_comes_back_while_it_drains_keeps_its_network_open(self) -> None:
        """Its last clients are answered to the end, though it has to be verified again."""
        cluster, old, _ = promoted(keep="0s")
        opened = cluster.objects[NETWORK_POLICIES][f"demo-{old}"]["spec"]
        cluster.spec = pinned(GOOD, keepLastGood="0s")
        cluster.now += timedelta(seconds=1)
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.revision == old
        assert cluster.objects[NETWORK_POLICIES][f"demo-{old}"]["spec"] == opened
        cluster.settle()
        assert cluster.traffic() == old

    def test_nothing_stays_where_nothing_serves(self) -> None:
        """Scaled to zero is asked for to free the hardware."""
        cluster, _, new = promoted()
        cluster.spec["replicas"] = 0
        passes(cluster)
        assert cluster.revisions(DEPLOYMENTS) == {new}
        assert cluster.held() == 0
        cluster.spec = pinned(GOOD, keepLastGood="10m", replicas=0)
        until(cluster, lambda: cluster.traffic() != new)
        assert cluster.status.previous is None

    def test_less_time_counts_at_once(self) -> None:
        cluster, _, new = promoted()
        passes(cluster)
        cluster.spec["keepLastGood"] = "0s"
        passes(cluster, 1)
        assert cluster.revisions(DEPLOYMENTS) == {new}

    @pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("90s", 90), ("10m", 600), ("2h", 7200)])
    def test_times(self, text: str, seconds: int) -> None:
        assert AdapterDeploymentSpec.model_validate(pinned(GOOD, keepLastGood=text)).keep_seconds == seconds

    def test_they_are_left_alone(self) -> None:
        """Nobody reaches them, so their number does not follow the spec; and what is deleted of them stays deleted."""
        cluster, old, new = promoted()
        cluster.spec["replicas"] = 3
        passes(cluster)
        sizes = {name: each["spec"]["replicas"] for name, each in cluster.objects[DEPLOYMENTS].items()}
        assert sizes == {f"demo-{old}": 1, f"demo-{new}": 3}
        del cluster.objects[DEPLOYMENTS][f"demo-{old}"]
        passes(cluster)
        assert cluster.revisions(DEPLOYMENTS) == {new}
        assert cluster.status.previous is None

    def test_they_make_room_for_more_pods_of_what_serves(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        cluster.room, cluster.spec["replicas"] = 2, 2
        passes(cluster)
        assert old not in cluster.revisions(DEPLOYMENTS)
        assert cluster.status.ready_replicas == 2
        assert cluster.traffic() == new

    @pytest.mark.parametrize(
        ("said", "reason", "stay"),
        [
            ("denied by a webhook", Reason.POD_REJECTED, True),
            ('error looking up service account team/x: serviceaccount "x" not found', NO_ACCOUNT, True),
            ('deployments "x" is forbidden: exceeded quota: few', Reason.QUOTA_EXCEEDED, False),
        ],
    )
    def test_they_stay_where_their_end_would_make_no_room(self, said: str, reason: Reason, stay: bool) -> None:
        cluster, old, _ = promoted()
        passes(cluster)
        cluster.refuse = lambda _, action: said if isinstance(action, Create) and action.resource == DEPLOYMENTS else ""
        cluster.spec = pinned(GOOD, runtime="tgi", keepLastGood="10m")
        passes(cluster)
        assert condition(cluster.status, "Stalled") == ("True", reason)
        assert (old in cluster.revisions(DEPLOYMENTS)) is stay
        assert (cluster.status.previous is not None) is stay

    def test_they_make_room_for_the_next_candidate(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        cluster.room = 2
        cluster.spec = pinned(GOOD, runtime="tgi", keepLastGood="10m")
        until(cluster, lambda: cluster.traffic() != new)
        assert old not in cluster.revisions(DEPLOYMENTS)
        assert cluster.status.previous is not None
        assert cluster.status.previous.revision == new


class TestByItself:
    @pytest.mark.parametrize("replicas", [1, 3])
    def test_a_crash_loop(self, replicas: int) -> None:
        cluster, old, new = promoted(replicas=replicas)
        passes(cluster)
        crash(cluster, new)
        cluster.reconcile()
        assert cluster.traffic() == old, "in the very pass that sees it"
        assert cluster.status.stable is not None
        assert (cluster.status.stable.revision, cluster.status.stable.state) == (old, RevisionState.SERVING)
        assert cluster.status.last_good_revision == old
        assert cluster.status.previous is None
        passes(cluster)
        assert cluster.revisions(DEPLOYMENTS) == {old}, "the bad pods drained, and are gone"
        assert shown(cluster.status) == {
            "Ready": "True",
            "Reconciling": "False",
            "Stalled": "True",
            "RolledBack": "True",
        }
        assert condition(cluster.status, "Stalled")[1] == Reason.OUT_OF_MEMORY
        assert cluster.status.phase is ServingPhase.DEGRADED
        [told] = [each for each in cluster.events if each.reason == Reason.ROLLED_BACK]
        assert told.type == "Warning"
        assert_says(told.message, new, "was rolled back", "more memory than its limit", old, "serves again")
        line = next(line for line in cluster.status.revisions if line.revision == new)
        assert (line.state, line.reason) == (RevisionState.ROLLED_BACK, Reason.OUT_OF_MEMORY)
        assert line.promoted_at is not None
        assert line.ended_at is not None

    def test_a_server_that_ends_without_an_error(self) -> None:
        """So does vLLM when its engine has died."""
        cluster, old, new = promoted(replicas=3)
        crash(cluster, new, code=0, reason="Completed")
        cluster.reconcile()
        assert cluster.traffic() == old
        assert condition(cluster.status, "RolledBack")[0] == "True"

    def test_two_crashes_are_no_loop(self) -> None:
        cluster, _, new = promoted()
        crash(cluster, new, restarts=2)
        cluster.reconcile()
        assert cluster.traffic() == new

    def test_silence(self) -> None:
        cluster, old, new = promoted()
        falls_silent(cluster, new)
        cluster.now += timedelta(seconds=20)
        made = cluster.reconcile()
        assert cluster.traffic() == new
        assert made.requeue_after is not None
        assert made.requeue_after <= 40
        cluster.now += timedelta(seconds=40)
        cluster.reconcile()
        assert cluster.traffic() == old
        assert cluster.status.candidate is not None
        assert_says(cluster.status.candidate.message, "has answered for 60 s")

    @pytest.mark.slow
    def test_it_is_not_tried_again_until_the_spec_or_the_source_changes(self) -> None:
        cluster, old, new = promoted()
        crash(cluster, new)
        cluster.settle()
        asked = set(cluster.objects[JOBS])
        for _ in range(3):
            cluster.now += timedelta(hours=3)
            cluster.settle()
        assert cluster.traffic() == old
        assert set(cluster.objects[JOBS]) == asked
        cluster.spec["replicas"] = 2
        cluster.settle()
        assert cluster.traffic() == old
        cluster.spec["rerun"] = "fixed"
        cluster.settle()
        assert cluster.traffic() == new
        assert shown(cluster.status) == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}

    def test_another_artifact_of_the_source_is_another_try(self) -> None:
        cluster = ServingCluster(spec=following(keepLastGood="10m"), source=published(GOOD))
        cluster.settle()
        old = cluster.traffic()
        cluster.source = published(BETTER)
        until(cluster, lambda: cluster.traffic() != old)
        crash(cluster, cluster.traffic())
        cluster.settle()
        assert cluster.traffic() == old
        cluster.source = published(GOOD)
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert "RolledBack" not in shown(cluster.status)

    def test_a_blocker_in_between_does_not_make_it_forgotten(self) -> None:
        cluster, old, new = promoted()
        crash(cluster, new)
        cluster.settle()
        cluster.service_account = False
        passes(cluster)
        cluster.service_account = True
        cluster.settle()
        assert cluster.traffic() == old
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.state is RevisionState.FAILED

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("meanwhile", "stalled"),
        [
            (None, Reason.SOURCE_NOT_FOUND),
            (Source("Running", None, Storage()), Reason.OUT_OF_MEMORY),
            (Source("Failed", None, Storage()), Reason.SOURCE_NOT_READY),
        ],
    )
    def test_a_source_that_goes_and_comes_back_does_not_either(self, meanwhile: Source | None, stalled: Reason) -> None:
        """The FineTuneJob is applied anew, and publishes what fell. What to do meanwhile is told of the job."""
        cluster = ServingCluster(spec=following(keepLastGood="10m"), source=published(GOOD))
        cluster.settle()
        old, cluster.source = cluster.traffic(), published(BETTER)
        until(cluster, lambda: cluster.traffic() != old)
        crash(cluster, cluster.traffic())
        cluster.settle()
        told, cluster.source = len(cluster.events), meanwhile
        cluster.settle()
        assert condition(cluster.status, "Stalled") == ("True", stalled)
        assert condition(cluster.status, "RolledBack")[0] == "True"
        cluster.source = published(BETTER)
        cluster.settle()
        assert cluster.traffic() == old
        assert Reason.CANDIDATE_STARTING not in {event.reason for event in cluster.events[told:]}
        assert condition(cluster.status, "Stalled") == ("True", Reason.OUT_OF_MEMORY)

    @pytest.mark.slow
    def test_one_that_is_to_be_tried_again_and_is_blocked_holds_nobody_up(self) -> None:
        cluster, _, new = promoted()
        cluster.settings = SETTINGS.model_copy(update={"max_concurrent_rollouts": 1})
        crash(cluster, new)
        cluster.settle()
        another = cluster.raw()
        another["metadata"] |= {"uid": "uid-of-another", "name": "another"}
        another["status"]["candidate"] |= {"state": "Starting", "since": timestamp(cluster.now)}
        cluster.others = [another]
        cluster.spec["rerun"] = "fixed"
        passes(cluster)
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.reason == Reason.ROLLOUT_QUEUED
        assert "RolledBack" not in shown(cluster.status)
        cluster.service_account = False
        passes(cluster)
        assert contender_of(cluster.raw()) is None
        cluster.service_account, cluster.others = True, []
        cluster.settle()
        assert cluster.traffic() == new

    def test_a_node_that_is_lost_is_no_fault_of_the_revision(self) -> None:
        cluster, old, new = promoted()
        for pod in cluster.pods[f"demo-{new}"]:
            pod["spec"] = {"nodeName": "lost"}
            pod["status"] |= {
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": timestamp(cluster.now)}],
                "containerStatuses": [{"name": "server", "started": True, "ready": True, "state": {"running": {}}}],
            }
        cluster.now += timedelta(seconds=UNANSWERED_SECONDS)
        cluster.reconcile()
        assert cluster.traffic() == old
        assert cluster.status.candidate is not None
        assert (cluster.status.candidate.state, cluster.status.candidate.reason) == (
            RevisionState.WAITING,
            Reason.NODE_LOST,
        )
        cluster.settle(passes=60)
        assert cluster.traffic() == new, "it is tried again an hour later"

    @pytest.mark.parametrize("cause", [Reason.S3_UNREACHABLE, Reason.IMAGE_PULL_FAILED, Reason.UNSCHEDULABLE])
    def test_a_pod_that_is_replaced_and_cannot_start_is_no_fault_of_the_revision(self, cause: Reason) -> None:
        """Its only pod was evicted, and the next one is kept from loading while the kept ones could answer. They do not
        make room for it meanwhile, which would leave nobody who answers."""
        cluster, old, new = promoted()
        passes(cluster)
        room, cluster.room = cluster.room, 1
        cluster.pods[f"demo-{new}"].clear()
        cluster.run_controllers()
        [pod] = cluster.pods[f"demo-{new}"]
        if cause is not Reason.UNSCHEDULABLE:
            pod["status"] = pod_status(cause) | {"startTime": timestamp(cluster.now), "phase": "Pending"}
        passes(cluster, 5, seconds=10)
        assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (new, {old, new})
        passes(cluster, 2, seconds=10)
        assert cluster.traffic() == old
        passes(cluster)
        assert condition(cluster.status, "Ready")[0] == "True"
        assert condition(cluster.status, "RolledBack") == ("True", cause)
        assert cluster.status.candidate is not None
        assert (cluster.status.candidate.state, cluster.status.candidate.reason) == (RevisionState.WAITING, cause)
        cluster.room = room
        cluster.settle(passes=60)
        assert cluster.traffic() == new, "it is tried again an hour later"

    def test_kept_ones_stay_while_the_way_back_to_them_is_refused(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        cluster.room = 1
        cluster.pods[f"demo-{new}"].clear()
        cluster.run_controllers()
        cluster.refuse = lambda _, action: "no" if isinstance(action, Apply) and action.resource == SERVICES else ""
        passes(cluster, 10, seconds=10)
        assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (new, {old, new})
        cluster.refuse = lambda _cluster, _action: ""
        passes(cluster, 2, seconds=10)
        assert cluster.traffic() == old

    def test_a_new_pod_that_loads_is_waited_for(self) -> None:
        cluster, _, new = promoted()
        passes(cluster)
        cluster.loading = {BETTER}
        cluster.pods[f"demo-{new}"].clear()
        passes(cluster, 12, seconds=10)
        assert cluster.traffic() == new
        cluster.loading = set()
        cluster.settle()
        assert cluster.traffic() == new

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda live: live["status"].update(readyReplicas=0),
            lambda live: live["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
            lambda live: live["spec"]["template"]["spec"]["containers"][0].update(image="images/tampered:1"),
        ],
    )
    def test_only_to_pods_that_are_there_as_they_were_proved(self, spoil: Callable[[Object], None]) -> None:
        cluster, old, new = promoted()
        crash(cluster, new)
        spoil(cluster.objects[DEPLOYMENTS][f"demo-{old}"])
        cluster.reconcile()
        assert cluster.traffic() == new

    def test_not_after_the_time_is_over(self) -> None:
        cluster, _, new = promoted()
        cluster.settle()
        crash(cluster, new)
        cluster.reconcile()
        assert cluster.traffic() == new
        assert condition(cluster.status, "Ready")[0] == "True"

    def test_not_before_what_is_seen_is_judged(self) -> None:
        """The time runs out while nobody answers, but not yet for too long."""
        cluster, old, new = promoted()
        cluster.now = parse_timestamp(cluster.status.previous.since if cluster.status.previous else "")
        cluster.now += timedelta(seconds=570)
        falls_silent(cluster, new)
        for _ in range(7):
            made = cluster.reconcile()
            if cluster.traffic() == old:
                break
            assert made.requeue_after is not None
            assert 0 < made.requeue_after <= UNANSWERED_SECONDS
            cluster.now += timedelta(seconds=made.requeue_after)
        assert cluster.traffic() == old
        assert cluster.status.revisions[0].state is RevisionState.ROLLED_BACK

    def test_they_go_once_the_new_one_answers_again(self) -> None:
        cluster, old, new = promoted()
        cluster.now += timedelta(seconds=580)
        answering = copy.deepcopy(cluster.pods[f"demo-{new}"])
        falls_silent(cluster, new)
        passes(cluster, 1, seconds=30)
        assert cluster.revisions(DEPLOYMENTS) == {old, new}
        cluster.pods[f"demo-{new}"] = answering
        cluster.settle()
        assert cluster.revisions(DEPLOYMENTS) == {new}
        assert cluster.traffic() == new

    def test_an_operator_that_was_away_judges_first(self) -> None:
        cluster, old, new = promoted()
        crash(cluster, new)
        cluster.now += timedelta(minutes=11)
        cluster.reconcile()
        assert cluster.traffic() == old

    def test_kept_pods_that_do_not_answer_go_in_time(self) -> None:
        cluster, old, new = promoted()
        crash(cluster, new)
        cluster.objects[DEPLOYMENTS][f"demo-{old}"]["status"]["readyReplicas"] = 0
        cluster.now += timedelta(minutes=11)
        cluster.reconcile()
        assert cluster.traffic() == new
        assert cluster.status.previous is None

    def test_what_the_spec_asks_for_by_then_goes_on(self) -> None:
        cluster, old, new = promoted()
        cluster.spec = pinned(GOOD, runtime="tgi", keepLastGood="10m")
        passes(cluster, 2)
        under_way = cluster.status.candidate
        assert under_way is not None
        crash(cluster, new)
        cluster.reconcile()
        assert cluster.traffic() == old
        assert cluster.status.candidate == under_way
        cluster.settle()
        assert cluster.traffic() == under_way.revision
        states = {line.revision: line.state for line in cluster.status.revisions}
        assert states[new] is RevisionState.ROLLED_BACK

    @pytest.mark.parametrize("by_hand", [False, True])
    def test_no_refused_deployment_keeps_traffic_from_going_back(self, by_hand: bool) -> None:
        """The kept pods are fewer than the spec asks for by now: more of them can come later."""
        cluster, old, new = promoted()
        passes(cluster)
        cluster.spec["replicas"] = 2
        cluster.reconcile()
        cluster.refuse = lambda _, action: "no" if isinstance(action, Apply) and action.resource == DEPLOYMENTS else ""
        if by_hand:
            cluster.spec["rollbackTo"] = old
        else:
            crash(cluster, new)
        cluster.reconcile()
        assert cluster.traffic() == old
        assert cluster.status.stable is not None
        assert cluster.status.stable.revision == old
        cluster.refuse = lambda _cluster, _action: ""
        passes(cluster)
        assert cluster.objects[DEPLOYMENTS][f"demo-{old}"]["spec"]["replicas"] == 2

    def test_what_is_refused_is_not_reported_as_done(self) -> None:
        cluster, _, new = promoted()
        crash(cluster, new)
        cluster.refuse = lambda _, action: "no" if isinstance(action, Apply) and action.resource == SERVICES else ""
        cluster.reconcile()
        assert cluster.traffic() == new
        assert cluster.status.stable is not None
        assert cluster.status.stable.revision == new
        assert "RolledBack" not in shown(cluster.status)

    @pytest.mark.parametrize("listed", [True, False])
    @pytest.mark.parametrize("crash_after", range(4))
    def test_an_operator_that_dies_in_the_middle(self, crash_after: int, listed: bool) -> None:
        """The bad pods tell the next one what happened until the status does, even if no client can reach them."""
        cluster, old, new = promoted()
        crash(cluster, new)
        if not listed:
            cluster.slices["demo"]["endpoints"] = []
        cluster.reconcile(crash_after=crash_after)
        cluster.settle()
        assert cluster.traffic() == old
        assert cluster.revisions(DEPLOYMENTS) == {old}
        assert cluster.status.revisions[0].state is RevisionState.ROLLED_BACK


class TestWithdrawn:
    """What served before was withdrawn while it did: nothing goes back to it where the policy refuses it."""

    SAID = "withdrawn by dpo on 2026-03-01: erasure request 4711"

    def replaced(self, policy: str = "Refuse") -> tuple[ServingCluster, str, str]:
        """A cluster just after the update that took the place of what had been withdrawn."""
        asked = {"keepLastGood": "10m", "policy": {"withdrawn": policy}}
        cluster = ServingCluster(spec=pinned(GOOD, **asked))
        cluster.settle()
        old = cluster.traffic()
        cluster.withdrawn[GOOD] = self.SAID
        cluster.spec = pinned(BETTER, **asked)
        until(cluster, lambda: cluster.traffic() != old)
        return cluster, old, cluster.traffic()

    def test_a_crash_leads_nowhere(self) -> None:
        cluster, old, new = self.replaced()
        assert cluster.status.previous is None
        [told] = [each for each in cluster.events if "no traffic goes back" in each.message]
        assert told.reason == Reason.ARTIFACT_WITHDRAWN
        assert_says(told.message, old, self.SAID, "Refuse")
        crash(cluster, new)
        passes(cluster)
        assert cluster.traffic() == new
        assert cluster.revisions(DEPLOYMENTS) == {new}
        assert not [each for each in cluster.events if each.reason == Reason.ROLLED_BACK]

    def test_a_field_asks_the_policy_too(self) -> None:
        """It is verified again, which asks the store."""
        cluster, old, new = self.replaced()
        passes(cluster, 1)
        cluster.spec = pinned(BETTER, keepLastGood="10m", rollbackTo=old)
        passes(cluster, 8)
        assert cluster.traffic() == new
        candidate = cluster.status.candidate
        assert candidate is not None
        assert (candidate.revision, candidate.state) == (old, RevisionState.FAILED)
        assert candidate.reason == Reason.ARTIFACT_WITHDRAWN

    def test_where_the_policy_only_warns_it_comes_back(self) -> None:
        cluster, old, new = self.replaced("Warn")
        passes(cluster)
        assert cluster.status.previous is not None
        crash(cluster, new)
        cluster.reconcile()
        assert cluster.traffic() == old
        passes(cluster)
        assert condition(cluster.status, "Discouraged") == ("True", Reason.ARTIFACT_WITHDRAWN)

    def test_a_policy_that_refuses_by_now_lets_the_kept_pods_go(self) -> None:
        cluster, _, new = self.replaced("Warn")
        cluster.spec = pinned(BETTER, keepLastGood="10m")
        passes(cluster)
        assert cluster.status.previous is None
        assert cluster.revisions(DEPLOYMENTS) == {new}

    def test_the_mark_counts_through_the_steps_of_a_canary(self) -> None:
        asked = {
            "keepLastGood": "10m",
            "strategy": {"type": "Canary", "canary": {"steps": [{"weight": 50, "pause": "1m"}]}},
        }
        cluster = ServingCluster(spec=pinned(GOOD, **asked))
        cluster.settle()
        cluster.withdrawn[GOOD] = self.SAID
        cluster.spec = pinned(BETTER, **asked)
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == BETTER
        assert [each.reason for each in cluster.events].count(Reason.ARTIFACT_WITHDRAWN) >= 1
        assert cluster.status.previous is None

    @pytest.mark.parametrize("is_asked", [True, False], ids=["it says no", "it does not know"])
    def test_a_mark_that_was_found_lasts_until_a_verification_finds_none(self, is_asked: bool) -> None:
        """One that reads another store, or whose report is lost, has not seen that it is gone."""
        cluster = ServingCluster(spec=pinned(GOOD, keepLastGood="10m"))
        cluster.settle()
        old, stable = cluster.traffic(), cluster.status.stable
        assert stable is not None
        found = {"withdrawn": self.SAID} | ({} if is_asked else {"storage": None})
        cluster.status = cluster.status.model_copy(update={"stable": stable.model_copy(update=found)})
        cluster.spec = pinned(BETTER, keepLastGood="10m")
        until(cluster, lambda: cluster.traffic() != old)
        assert (cluster.status.previous is not None) is is_asked

    def test_the_name_of_the_verification_does_not_hang_on_what_serves(self) -> None:
        """It would be made again whenever that changes."""
        cluster = ServingCluster(spec=pinned(GOOD))
        cluster.settle()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        cluster.run_controllers()
        cluster.reconcile()
        made = set(cluster.objects[JOBS])
        assert cluster.status.stable is not None
        stable = cluster.status.stable.model_copy(update={"storage": None})
        cluster.status = cluster.status.model_copy(update={"stable": stable})
        cluster.reconcile()
        assert set(cluster.objects[JOBS]) == made


class TestGates:
    """What served before was verified without the gates that the policy asks for by now."""

    def test_it_is_verified_again_before_it_comes_back(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        asked = {"keepLastGood": "10m", "policy": {"gates": "Passed"}}
        cluster.spec = pinned(BETTER, **asked)
        passes(cluster)
        assert cluster.status.previous is None
        [told] = [each for each in cluster.events if each.reason == Reason.GATES_NOT_PASSED]
        assert_says(told.message, old, "not verified by the gates")
        cluster.spec = pinned(GOOD, **asked)
        until(cluster, lambda: cluster.traffic() == old)
        assert cluster.status.stable is not None
        assert cluster.status.stable.gates
        cluster.spec = pinned(BETTER, **asked)
        until(cluster, lambda: cluster.traffic() == new)
        passes(cluster)
        assert cluster.status.previous is not None, "verified by the same gates, it stays"

    def test_gates_that_the_policy_asks_for_since_then_count_too(self) -> None:
        cluster = ServingCluster(spec=pinned(GOOD, keepLastGood="10m", policy={"gates": "Passed"}))
        cluster.settle()
        old = cluster.traffic()
        cluster.spec = pinned(BETTER, keepLastGood="10m", policy={"gates": "Passed"})
        until(cluster, lambda: cluster.traffic() != old)
        passes(cluster)
        assert RevisionState.KEPT in {line.state for line in cluster.status.revisions}
        asked = {"gates": "Passed", "requiredGates": ["accuracy"]}
        cluster.spec = pinned(BETTER, keepLastGood="10m", policy=asked)
        passes(cluster)
        assert RevisionState.KEPT not in {line.state for line in cluster.status.revisions}
        told = [each.message for each in cluster.events if each.reason == Reason.GATES_NOT_PASSED]
        assert_says(told[-1], old, "not verified by the gates")
