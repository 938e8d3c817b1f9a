"""The work queue, with a clock of the test's own."""

from __future__ import annotations

import threading
import time

import pytest

from finetune_operator.framework.workqueue import BACKOFF_LIMIT, BACKOFF_START, PATIENCE, QUIET, QueueState, WorkQueue
from tests.support.clock import Clock

pytestmark = pytest.mark.unit


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    """A queue without jitter."""
    return WorkQueue(clock, lambda: 0.0)


def drain(queue: WorkQueue[str]) -> list[str]:
    """All keys that are due, each done at once."""
    keys = []
    while (key := queue.poll()) is not None:
        keys.append(key)
        queue.done(key)
    return keys


def test_a_key_waits_once_however_often_it_is_added(queue: WorkQueue[str]) -> None:
    for key in "abaab":
        queue.add(key)
    assert drain(queue) == ["a", "b"]


def test_one_worker_a_key_and_another_turn_afterwards(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.poll() == "a"
    queue.add("a")
    assert queue.poll() is None, "it is in work"
    queue.done("a")
    assert drain(queue) == ["a"]


@pytest.mark.parametrize(
    ("again_after", "added", "due"),
    [(None, None, None), (5.0, None, 5.0), (5.0, 1.0, 1.0), (5.0, 9.0, 5.0), (0.0, None, 0.0)],
)
def test_the_next_turn_is_the_earliest_planned(
    queue: WorkQueue[str], clock: Clock, again_after: float | None, added: float | None, due: float | None
) -> None:
    queue.add("a")
    queue.poll()
    if added is not None:
        queue.add("a", added)
    queue.done("a", again_after)
    if due is None:
        clock.now += 1000
        assert queue.poll() is None
        return
    if due:
        clock.now += due - 0.01
        assert queue.poll() is None
        clock.now += 0.01
    assert queue.poll() == "a"


def test_an_event_brings_a_planned_turn_forward(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a", 60)
    queue.add("a")
    assert drain(queue) == ["a"]
    clock.now += 100
    assert drain(queue) == [], "the later turn is the same turn"


def test_failures_back_off_to_a_limit_and_success_forgets_them(queue: WorkQueue[str], clock: Clock) -> None:
    delays = []
    for _ in range(14):
        queue.add("a")
        queue.poll()
        delays.append(queue.failed("a"))
        clock.now += delays[-1]
    assert delays[:4] == [BACKOFF_START * factor for factor in (1, 2, 4, 8)]
    assert delays[-1] == BACKOFF_LIMIT
    assert drain(queue) == ["a"]
    queue.add("a")
    queue.poll()
    assert queue.failed("a") == BACKOFF_START


def test_the_server_may_ask_for_more_patience(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.poll()
    assert queue.failed("a", not_before=7.0) == 7.0


def test_jitter_only_delays(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock, lambda: 1.0)
    queue.add("a")
    queue.poll()
    assert BACKOFF_START < queue.failed("a") <= BACKOFF_START * 1.5


def yield_to_others(queue: WorkQueue[str], key: str) -> None:
    """A key whose first turn is over and whose second can wait."""
    queue.add(key)
    assert queue.poll() == key
    queue.done(key, again_after=0.0, low_priority=True)


def test_a_key_of_low_priority_lets_all_others_go_first(queue: WorkQueue[str], clock: Clock) -> None:
    for key in "abc":
        yield_to_others(queue, key)
        clock.now += QUIET / 2
        assert queue.poll() is None, "another key had its turn just now"
    clock.now += QUIET / 2
    assert drain(queue) == ["a", "b", "c"]


def test_no_event_brings_a_key_of_low_priority_forward(queue: WorkQueue[str], clock: Clock) -> None:
    yield_to_others(queue, "a")
    queue.add("a")
    assert queue.poll() is None
    queue.add("b")
    queue.poll()
    queue.add("b")  # while it is in work
    queue.done("b", again_after=0.0, low_priority=True)
    assert queue.poll() is None
    clock.now += QUIET
    assert drain(queue) == ["a", "b"]
    queue.add("a")
    assert drain(queue) == ["a"], "that was for one turn only"


def test_a_busy_queue_does_not_make_a_key_wait_for_ever(queue: WorkQueue[str], clock: Clock) -> None:
    yield_to_others(queue, "a")
    waited = 0.0
    while waited < PATIENCE:
        queue.add("b")
        assert drain(queue) == ["b"]
        clock.now += QUIET / 2
        waited += QUIET / 2
    queue.add("b")
    assert drain(queue) == ["b", "a"]


def test_take_wakes_for_a_key_of_low_priority() -> None:
    queue: WorkQueue[str] = WorkQueue()
    yield_to_others(queue, "a")
    started = time.monotonic()
    assert queue.take() == "a"
    assert time.monotonic() - started >= QUIET * 0.9


def test_its_state_tells_waiting_from_work(queue: WorkQueue[str], clock: Clock) -> None:
    assert queue.state() == QueueState()
    queue.add("later", 50)
    queue.add("now")
    clock.now += 30
    assert queue.state() == QueueState(waiting=1, longest_wait=30, longest_unreconciled=30, standstill=30)
    queue.poll()
    assert queue.state() == QueueState(working=1, longest_unreconciled=30)
    queue.done("now")
    assert queue.state() == QueueState()


def test_a_key_that_fails_is_unreconciled_all_the_time(queue: WorkQueue[str], clock: Clock) -> None:
    """Also between two attempts, and however often it is added meanwhile; success ends it."""
    queue.add("broken")
    for _ in range(3):
        assert queue.poll() == "broken"
        queue.failed("broken", not_before=10.0)
        queue.add("broken", 10.0)
        clock.now += 10
    assert queue.state().longest_unreconciled == 30
    queue.poll()
    queue.add("broken")
    queue.done("broken")
    assert queue.state().longest_unreconciled == 0


def test_a_long_queue_that_moves_does_not_stand_still(queue: WorkQueue[str], clock: Clock) -> None:
    """What liveness asks: an operator that works through 1,000 keys is well, one that finishes none is not."""
    for number in range(1000):
        queue.add(f"key {number}")
    for _ in range(500):
        key = queue.poll()
        assert key is not None
        clock.now += 1
        queue.done(key)
    assert queue.state() == QueueState(waiting=500, longest_wait=500, longest_unreconciled=500)
    queue.poll()
    clock.now += 301
    assert queue.state().standstill == 301


def test_an_idle_queue_does_not_stand_still(queue: WorkQueue[str], clock: Clock) -> None:
    clock.now += 5000
    queue.add("first for hours")
    clock.now += 1
    assert queue.state().standstill == 1


def test_each_key_is_worked_on_by_one_thread_at_a_time() -> None:
    queue: WorkQueue[int] = WorkQueue()
    busy: set[int] = set()
    guard = threading.Lock()
    clashes: list[int] = []
    turns = 0

    def work() -> None:
        nonlocal turns
        while (key := queue.take()) is not None:
            with guard:
                clashes.extend({key} & busy)
                busy.add(key)
                turns += 1
            with guard:
                busy.discard(key)
            queue.done(key)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for round_ in range(300):
        queue.add(round_ % 5)
    while queue.state().waiting:
        pass
    queue.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert clashes == []
    assert turns >= 5
