"""A few endpoints are rolled out at once: who goes first, what the others say, and that nobody blocks the line."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.adapterdeployment.candidate import RECORD_SECONDS
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.adapterdeployment.observe import UnplannedDeployment
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.turns import (
    ACTIVE,
    LOOK_SECONDS,
    MOST_LOOK_SECONDS,
    TURN_SECONDS,
    Contender,
    Turn,
    contender_of,
    find_turn,
    next_in_line,
)
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, Object
from finetune_operator.framework.reading import Unplanned
from finetune_operator.settings import Settings
from tests.support.fast import share
from tests.support.played_cluster import START
from tests.support.played_pods import BETTER, CRASHING, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import Quota, ServingCluster, condition, serving, shown
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

RESYNC = 600.0


def contender(uid: str, state: RevisionState, age: float = 60, **how: object) -> Contender:
    """An endpoint whose candidate has been in a state for so many seconds."""
    reason = Reason.ROLLOUT_QUEUED if state is RevisionState.WAITING else Reason.CANDIDATE_STARTING
    facts = {"namespace": "team", "name": f"name-{uid}", "uid": uid, "state": state, "reason": reason}
    return Contender(**(facts | {"since": timestamp(START - timedelta(seconds=age)), "patient": True} | how))  # type: ignore[arg-type]


QUEUED, STARTING = RevisionState.WAITING, RevisionState.STARTING


class TestTurn:
    @pytest.mark.parametrize(
        ("contenders", "limit", "order"),
        [
            pytest.param([contender("a", QUEUED)], 1, ["a"], id="alone"),
            pytest.param([contender("a", QUEUED, 1), contender("b", QUEUED, 9)], 1, ["b"], id="the oldest first"),
            pytest.param([contender("a", QUEUED), contender("b", QUEUED)], 1, ["a"], id="of the same second, by uid"),
            pytest.param(
                [contender("a", QUEUED, 9), contender("b", QUEUED, 1, patient=False)], 1, ["b"], id="a spec's change"
            ),
            pytest.param([contender("a", QUEUED), contender("b", STARTING)], 1, [], id="another one is under way"),
            pytest.param([contender("a", QUEUED), contender("b", STARTING)], 2, ["a"], id="there is room for two"),
            pytest.param(
                [contender("a", QUEUED), contender("b", STARTING, TURN_SECONDS)], 1, ["a"], id="something holds it up"
            ),
            pytest.param(
                [contender("a", QUEUED), contender("b", STARTING, LONG_WAIT_SECONDS, reason=Reason.UNSCHEDULABLE)],
                1,
                ["a"],
                id="it finds no node",
            ),
            pytest.param(
                [contender("a", QUEUED), contender("b", STARTING, 599, reason=Reason.UNSCHEDULABLE)],
                1,
                [],
                id="a node may be on its way",
            ),
            pytest.param(
                [contender("a", QUEUED), contender("b", QUEUED, 9000, reason=Reason.UNSCHEDULABLE)],
                1,
                ["a"],
                id="one that gave its hardware back waits for itself",
            ),
        ],
    )
    def test_whose_it_is(self, contenders: list[Contender], limit: int, order: list[str]) -> None:
        turns = {each.uid: find_turn(contenders, each.uid, limit, START) for each in contenders}
        assert [uid for uid, turn in turns.items() if turn and turn.has_come] == order

    def test_who_is_not_in_line_has_none(self) -> None:
        assert find_turn([contender("a", STARTING)], "a", 1, START) is None
        assert find_turn([contender("a", QUEUED)], "b", 1, START) is None

    def test_it_names_those_of_the_own_namespace(self) -> None:
        running = (contender("a", STARTING), contender("b", STARTING, namespace="other"))
        ahead = tuple(contender(uid, QUEUED) for uid in "cdefg")
        text = Turn(2, running, ahead).message("team")
        assert_says(text, "2 (name-a) endpoints are", "2 at once", "operator.maxConcurrentRollouts", "5 (name-c")
        assert_says(text, "name-c, name-d, name-e, …")
        assert "name-b" not in text
        assert_says(Turn(1, running[1:]).message("team"), "1 endpoint is being rolled out", "0 endpoints")

    @pytest.mark.parametrize(("ahead", "seconds"), [(0, LOOK_SECONDS), (4, LOOK_SECONDS), (5, 2 * LOOK_SECONDS)])
    def test_those_behind_look_less_often(self, ahead: int, seconds: float) -> None:
        running = tuple(contender(f"r{number}", STARTING) for number in range(5))
        waiting = tuple(contender(f"w{number}", QUEUED) for number in range(ahead))
        assert Turn(5, running, waiting).look_after == seconds
        assert Turn(5, running, waiting * 500).look_after <= MOST_LOOK_SECONDS

    def test_what_others_statuses_tell(self) -> None:
        """As other versions may have written them."""
        cluster = serving()
        assert contender_of(cluster.raw()) is None
        assert contender_of({"metadata": {"name": "x", "namespace": "y", "uid": "z"}}) is None
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        raw = cluster.raw()
        found = contender_of(raw)
        assert found is not None
        assert (found.uid, found.state, found.patient) == (cluster.uid, RevisionState.STARTING, False)
        raw["status"]["candidate"]["state"] = "AddedLater"
        assert contender_of(raw) is None
        gone = cluster.raw()
        gone["metadata"]["deletionTimestamp"] = timestamp(START)
        assert contender_of(gone) is None


@dataclass
class Fleet:
    """Endpoints of one operator, which gives each a turn when it is due, or when something has happened to it."""

    members: list[ServingCluster]
    limit: int
    now: datetime = START
    due: dict[str, datetime] = field(default_factory=dict)
    raws: dict[str, Object] = field(default_factory=dict)
    """What the API server has of each since its last pass, which is what the others see of it: its status."""

    @classmethod
    def serving(cls, count: int, limit: int) -> "Fleet":
        """All serve, on the settings of before."""
        members = [serving() for _ in range(count)]
        for number, member in enumerate(members):
            member.uid = f"uid-{number}"
        return cls(members, limit, max(member.now for member in members))

    def upgrade(self) -> None:
        """The chart's new values make another revision of every endpoint."""
        runtime = SETTINGS.runtimes["tgi-cpu"].model_copy(update={"image": "images/tgi-cpu:2"})
        new = SETTINGS.model_copy(
            update={"runtimes": SETTINGS.runtimes | {"tgi-cpu": runtime}, "max_concurrent_rollouts": self.limit}
        )
        self.set(new)

    def set(self, new: Settings) -> None:
        for member in self.members:
            member.settings = new
        self.due = {member.uid: self.now for member in self.members}
        self.raws = {member.uid: member.raw() for member in self.members}

    def run(self, seconds: float) -> None:
        """Time passes; ``check`` holds after every pass."""
        end = self.now + timedelta(seconds=seconds)
        while True:
            member = min(self.members, key=lambda each: (self.due[each.uid], each.uid))
            if self.due[member.uid] > end:
                self.now = end
                return
            self.now = max(self.now, self.due[member.uid])
            self.turn(member)
            self.check()

    def turn(self, member: ServingCluster) -> None:
        member.now = self.now
        member.others = [self.raws[each.uid] for each in self.members if each is not member]
        before = (member.status, member.traffic())
        made = member.reconcile()
        member.run_controllers()
        self.raws[member.uid] = member.raw()
        busy = made.actions or before != (member.status, member.traffic())
        after = 1.0 if busy and member.status.candidate and member.status.candidate.state in ACTIVE else RESYNC
        asked = RESYNC if made.blocked or made.requeue_after is None else made.requeue_after
        self.due[member.uid] = self.now + timedelta(seconds=min(after, asked, RESYNC))

    def check(self) -> None:
        """Never more than the limit are under way, apart from those that something holds up."""
        found = map(contender_of, self.raws.values())
        assert sum(each.takes_turn(self.now) for each in found if each) <= self.limit
        assert all(condition(member.status, "Ready") == ("True", Reason.SERVING) for member in self.members)

    def image(self, member: ServingCluster) -> str:
        """The image that answers."""
        live = member.objects[DEPLOYMENTS][f"demo-{member.traffic()}"]
        return str(live["spec"]["template"]["spec"]["containers"][0]["image"])

    def moved(self) -> list[bool]:
        return [self.image(member) == "images/tgi-cpu:2" for member in self.members]


def test_an_endpoint_alone_does_not_say_that_it_waits_for_others() -> None:
    fleet = Fleet.serving(1, limit=1)
    fleet.upgrade()
    [member] = fleet.members
    member.reconcile()
    assert member.status.candidate
    assert (member.status.candidate.state, member.status.candidate.reason) == (QUEUED, Reason.ROLLOUT_QUEUED)
    assert_says(member.status.candidate.message, "a place in the line", "at once", "its turn has come")


class TestUpgrade:
    @pytest.mark.slow
    def test_few_at_once_and_all_in_the_end(self) -> None:
        fleet = Fleet.serving(7, limit=2)
        fleet.upgrade()
        fleet.run(10)
        waiting = [each for each in fleet.members if each.status.candidate and each.status.candidate.state is QUEUED]
        assert len(waiting) >= 4
        status = waiting[-1].status
        assert status.phase is ServingPhase.PROGRESSING
        assert shown(status) == {"Ready": "True", "Reconciling": "True", "Stalled": "False"}
        assert condition(status, "Reconciling") == ("True", Reason.ROLLOUT_QUEUED)
        assert waiting[-1].held() == 1
        assert Reason.ROLLOUT_QUEUED not in [event.reason for event in waiting[-1].events]
        fleet.run(1800)
        assert all(fleet.moved())
        assert all(member.status.phase is ServingPhase.READY for member in fleet.members)

    @pytest.mark.slow
    def test_those_that_find_no_node_or_fail_let_the_others_go_on(self) -> None:
        fleet = Fleet.serving(5, limit=1)
        fleet.members[0].room = 1
        fleet.members[1].loading.add(GOOD)
        fleet.upgrade()
        fleet.run(2 * 3600)
        assert fleet.moved() == [False, False, True, True, True]
        states = [member.status.candidate for member in fleet.members[:2]]
        assert [(each.state, each.reason) for each in states if each] == [
            (RevisionState.STARTING, Reason.UNSCHEDULABLE),
            (RevisionState.FAILED, Reason.DEADLINE_EXCEEDED),
        ]
        fleet.members[0].room = 2
        fleet.run(1800)
        assert fleet.moved()[0]

    @pytest.mark.slow
    def test_one_that_the_api_server_refuses_lets_the_others_go_on(self) -> None:
        fleet = Fleet.serving(3, limit=1)
        fleet.members[0].refuse = Quota(DEPLOYMENTS, 1)
        fleet.upgrade()
        fleet.run(TURN_SECONDS + 1800)
        assert fleet.moved() == [False, True, True]

    def test_one_whose_spec_cannot_be_read_loses_its_place(self) -> None:
        fleet = Fleet.serving(2, limit=1)
        fleet.upgrade()
        fleet.run(5)
        [waits] = [each for each in fleet.members if each.status.candidate and each.status.candidate.state is QUEUED]
        unplanned: UnplannedDeployment = Unplanned(
            waits.observe().resource.metadata, waits.status, Reason.SPEC_INVALID, "spec: no"
        )
        status = plan(unplanned, fleet.now).status
        assert status.candidate is None
        assert status.stable == waits.status.stable

    @pytest.mark.slow
    def test_a_person_who_changes_a_spec_goes_first(self) -> None:
        fleet = Fleet.serving(6, limit=1)
        fleet.upgrade()
        fleet.run(5)
        last = fleet.members[-1]
        last.spec, last.generation = pinned(BETTER), 2
        fleet.due[last.uid] = fleet.now
        while last.status.stable is None or last.status.stable.artifact_digest != BETTER:
            fleet.run(10)
        assert sum(fleet.moved()) <= 2

    def test_a_first_revision_does_not_wait(self) -> None:
        fleet = Fleet.serving(3, limit=1)
        fleet.upgrade()
        fleet.run(5)
        new = ServingCluster(uid="uid-new", settings=fleet.members[0].settings, now=fleet.now)
        new.others = [member.raw() for member in fleet.members]
        new.reconcile()
        assert new.status.candidate is not None
        assert new.status.candidate.state is RevisionState.STARTING

    def test_it_starts_as_soon_as_its_record_can_be_seen_by_others(self) -> None:
        """Not in the same pass, which others may overlap; but those after it do not overlap, so it need not wait."""
        cluster = serving()
        cluster.settings = SETTINGS.model_copy(update={"max_concurrent_rollouts": 1})
        cluster.spec = pinned(BETTER)
        for seconds, state in ((0, QUEUED), (RECORD_SECONDS, STARTING)):
            cluster.now += timedelta(seconds=seconds)
            cluster.reconcile()
            assert cluster.status.candidate is not None
            assert cluster.status.candidate.state is state

    def test_a_newer_target_takes_the_turn_or_the_place_of_the_one_before(self) -> None:
        cluster = serving()
        cluster.settings = SETTINGS.model_copy(update={"max_concurrent_rollouts": 1})
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        queued = cluster.status.candidate
        assert queued is not None
        assert (queued.state, queued.reason) == (QUEUED, Reason.ROLLOUT_QUEUED)
        cluster.now += timedelta(seconds=5)
        cluster.others = [_active(cluster)]
        cluster.spec = pinned("f" * 64)
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.revision != queued.revision
        assert cluster.status.candidate.since == queued.since
        cluster.others = []
        cluster.reconcile()
        assert cluster.status.candidate.state is RevisionState.STARTING
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        assert (cluster.status.candidate.revision, cluster.status.candidate.state) == (queued.revision, STARTING)


class TestAnnouncedGap:
    """A gap in service that is announced for later (strategy InPlace)."""

    @pytest.mark.slow
    def test_it_takes_no_turn_until_it_begins(self) -> None:
        """Its notice may be hours; meanwhile everything serves, and others are rolled out."""
        fleet = Fleet.serving(3, limit=1)
        slow = fleet.members[0]
        slow.spec = pinned(BETTER, strategy={"type": "InPlace", "notice": "2h"})
        fleet.upgrade()
        fleet.run(1800)
        assert slow.status.candidate is not None
        assert (slow.status.candidate.state, slow.status.candidate.reason) == (
            RevisionState.STOPPING,
            Reason.GAP_ANNOUNCED,
        )
        assert fleet.moved() == [False, True, True]

    @pytest.mark.parametrize("late", [False, True])
    def test_it_takes_its_turn_then_and_before_those_in_line(self, late: bool) -> None:
        cluster = serving()
        cluster.settings = SETTINGS.model_copy(update={"max_concurrent_rollouts": 1})
        cluster.spec = pinned(BETTER, strategy={"type": "InPlace", "notice": "2h"})
        for seconds in (0, 2):
            cluster.now += timedelta(seconds=seconds)
            cluster.reconcile()
        announced = cluster.status.candidate
        assert announced is not None
        assert (announced.state, announced.reason) == (RevisionState.STOPPING, Reason.GAP_ANNOUNCED)
        cluster.now += timedelta(hours=2, seconds=1)
        here = contender_of(cluster.raw())
        assert here is not None
        assert here.waits(cluster.now)
        assert not here.takes_turn(cluster.now)
        line = [here, contender("older", QUEUED, 9000, patient=False)]
        assert next_in_line(line, 1, cluster.now) == [here]
        assert not (find_turn(line, "older", 1, cluster.now) or Turn(9)).has_come
        if late:
            cluster.others = [_active(cluster)]
            made = cluster.reconcile()
            assert made.requeue_after == LOOK_SECONDS
            assert cluster.held() == 1
            assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
            assert condition(cluster.status, "ServiceGap") == ("False", Reason.GAP_ANNOUNCED)
            said = next(each.message for each in cluster.status.conditions if each.type == "ServiceGap")
            assert_says(said, "notice period is over", "still serves", "Waiting for its turn", "another")
            cluster.now += timedelta(hours=1)
            cluster.others = []
        cluster.reconcile()
        assert condition(cluster.status, "ServiceGap") == ("True", Reason.GAP_IN_SERVICE)
        begun = contender_of(cluster.raw())
        assert begun is not None
        assert begun.takes_turn(cluster.now)
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.gap_starts_at == timestamp(cluster.now)
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY

    def test_another_target_waits_for_the_turn_of_an_overdue_gap(self) -> None:
        cluster = serving()
        cluster.settings = SETTINGS.model_copy(update={"max_concurrent_rollouts": 1})
        cluster.spec = pinned(CRASHING, strategy={"type": "InPlace", "notice": "2h"})
        for seconds in (0, 2):
            cluster.now += timedelta(seconds=seconds)
            cluster.reconcile()
        cluster.now += timedelta(hours=2, seconds=1)
        cluster.others = [_active(cluster)]
        cluster.spec = pinned(BETTER, strategy={"type": "InPlace", "notice": "2h"})
        cluster.reconcile()
        assert condition(cluster.status, "ServiceGap") == ("False", Reason.GAP_ANNOUNCED)
        assert cluster.held() == 1
        cluster.others = []
        cluster.settle()
        assert cluster.status.stable is not None
        assert cluster.status.stable.artifact_digest == BETTER

    def test_another_strategy_puts_it_in_line(self) -> None:
        cluster = serving()
        cluster.settings = SETTINGS.model_copy(update={"max_concurrent_rollouts": 1})
        cluster.spec = pinned(BETTER, strategy={"type": "InPlace", "notice": "2h"})
        for seconds in (0, 2):
            cluster.now += timedelta(seconds=seconds)
            cluster.reconcile()
        cluster.others = [_active(cluster)]
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert (cluster.status.candidate.state, cluster.status.candidate.reason) == (QUEUED, Reason.ROLLOUT_QUEUED)


def _active(like: ServingCluster) -> Object:
    """Another endpoint, which is being rolled out."""
    raw = like.raw()
    raw["metadata"] |= {"uid": "uid-of-another", "name": "another"}
    raw["status"]["candidate"] |= {"state": "Verifying", "since": timestamp(like.now)}
    return raw


@pytest.mark.slow
@settings(max_examples=share(2), deadline=None)
@example(1, ["hangs", "no node", "refused"])
@example(2, ["refused", "hangs", "hangs"])
@given(st.integers(1, 2), st.lists(st.sampled_from(["fine", "no node", "hangs", "refused"]), min_size=3, max_size=3))
def test_whatever_holds_some_up_the_others_are_moved(limit: int, fates: list[str]) -> None:
    fleet = Fleet.serving(4, limit=limit)
    for member, fate in zip(fleet.members, fates, strict=False):
        if fate == "no node":
            member.room = 1
        elif fate == "hangs":
            member.loading.add(GOOD)
        elif fate == "refused":
            member.refuse = Quota(DEPLOYMENTS, 1)
    fleet.upgrade()
    fleet.run(3 * TURN_SECONDS + 1800)
    assert fleet.moved() == [fate == "fine" for fate in (*fates, "fine")]
