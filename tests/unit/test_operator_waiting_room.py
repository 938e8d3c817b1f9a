"""The waiting room, with a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.framework.waiting_room import LONGEST_LOOK, PACE, WAIT_LIMIT, WAIT_START, WaitingRoom
from tests.support.clock import Clock

pytestmark = pytest.mark.unit


@pytest.fixture
def room(clock: Clock) -> WaitingRoom[str]:
    """A room without jitter."""
    return WaitingRoom(clock, lambda: 0.0)


def look(room: WaitingRoom[str], clock: Clock, seconds: float) -> str | None:
    """The key that is looked at so much later."""
    clock.now += seconds
    return room.next()


def test_waits_double_up_to_a_limit(room: WaitingRoom[str], clock: Clock) -> None:
    waits = [room.enter("a")]
    while waits[-1] < WAIT_LIMIT:
        assert look(room, clock, waits[-1] - 0.01) is None
        assert look(room, clock, 0.01) == "a"
        waits.append(room.enter("a"))
    assert waits[:4] == [WAIT_START * factor for factor in (1, 2, 4, 8)]
    assert waits[-1] == WAIT_LIMIT
    assert WAIT_LIMIT / 60 >= 5, "minutes"


def test_jitter_only_delays(clock: Clock) -> None:
    room: WaitingRoom[str] = WaitingRoom(clock, lambda: 1.0)
    assert WAIT_START < room.enter("a") <= WAIT_START * 1.5


def test_who_has_left_begins_anew(room: WaitingRoom[str]) -> None:
    for _ in range(3):
        room.enter("a")
    room.leave("a")
    assert "a" not in room
    assert room.enter("a") == WAIT_START
    assert "a" in room


def test_one_at_a_time_and_apart_while_the_way_is_blocked(room: WaitingRoom[str], clock: Clock) -> None:
    for key in "abc":
        room.enter(key)
    assert look(room, clock, WAIT_START) == "a"
    assert look(room, clock, PACE * 2) is None, "a is being looked at"
    room.enter("a")
    assert look(room, clock, PACE - 0.01) is None
    assert look(room, clock, 0.01) == "b"
    room.failed("b")
    assert look(room, clock, PACE - 0.01) is None, "what failed is no sign of a clear way"
    assert look(room, clock, 0.01) == "c"


def test_when_the_way_is_clear_the_next_follows_at_once(room: WaitingRoom[str], clock: Clock) -> None:
    for key in "abc":
        room.enter(key)
    clock.now += WAIT_START
    seen = []
    while (first := room.next()) is not None:
        seen.append(first)
        room.leave(first)
    assert seen == ["a", "b", "c"]


def test_turns_that_events_give_do_not_open_the_room(room: WaitingRoom[str], clock: Clock) -> None:
    for key in "ab":
        room.enter(key)
    assert look(room, clock, WAIT_START) == "a"
    room.enter("a")
    room.leave("somebody who never waited")
    assert room.next() is None
    clock.now += PACE
    assert room.next() == "b"
    room.enter("a")  # an event gave it a turn meanwhile
    room.leave("c")
    assert room.next() is None, "b is still being looked at"


def test_who_came_last_need_not_wait_for_a_crowd(room: WaitingRoom[int], clock: Clock) -> None:
    for key in range(50):
        for _ in range(3):
            room.enter(key)
    clock.now += WAIT_LIMIT
    room.enter(99)
    room.wake(lambda _: True)
    clock.now += PACE
    assert room.next() == 99


def test_waking_is_for_those_who_are_meant(room: WaitingRoom[str], clock: Clock) -> None:
    for key in ("x/1", "y/1", "y/2"):
        room.enter(key)
    clock.now += PACE
    room.wake(lambda key: key.startswith("y/"))
    assert room.next() == "y/1"
    room.leave("y/1")
    assert room.next() == "y/2"
    room.enter("y/2")
    clock.now += PACE
    assert room.next() is None


def test_a_look_that_nobody_reports_on_ends(room: WaitingRoom[str], clock: Clock) -> None:
    for key in "ab":
        room.enter(key)
    assert look(room, clock, WAIT_START) == "a"
    assert look(room, clock, LONGEST_LOOK) in ("a", "b")


@settings(max_examples=20)
@given(st.integers(1, 100), st.integers(10, 60))
def test_however_many_wait_a_second_has_one_look(keys: int, seconds: int) -> None:
    clock = Clock()
    room: WaitingRoom[int] = WaitingRoom(clock, lambda: 0.5)
    for key in range(keys):
        room.enter(key)
    looks = 0
    for _ in range(seconds * 2):
        clock.now += 0.5
        room.wake(lambda _: True)  # a quota that changes all the time
        while (first := room.next()) is not None:
            looks += 1
            room.enter(first)
    assert looks <= seconds / PACE + 1
