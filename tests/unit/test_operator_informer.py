"""What an informer finds: what its stream shows, what it misses, and what a server with another past has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError, Selection
from finetune_operator.framework.informer import PAGE, Informer
from finetune_operator.framework.objects import JOBS, Object, Resource
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import FINETUNEJOBS
from tests.support.streams import StreamServer

pytestmark = pytest.mark.unit

LONG = 3600.0


def job(name: str) -> Object:
    return {"metadata": Owner(FINETUNEJOBS, "team", "ft", "owner").metadata(name) | {"uid": f"uid-{name}"}}


@dataclass
class Followed:
    """An informer of Jobs, and what it said."""

    server: StreamServer = field(default_factory=StreamServer)
    cache: Cache = field(default_factory=Cache)
    told: list[str] = field(default_factory=list)
    """Names of the objects that gave a turn."""
    stopping: threading.Event = field(default_factory=threading.Event)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        selection = Selection(JOBS, None)
        self.informer = Informer(
            cast(Any, self.server),
            self.cache,
            selection,
            changed=self.changed,
            seen=self.seen,
            turn=self.turn,
        )

    def changed(self, _: Resource, found: Object) -> None:
        self.told.append(found["metadata"]["name"])

    def seen(self, resource: Resource, gone: bool, found: Object) -> None:
        if self.cache.forget(resource, found) if gone else self.cache.record(resource, found):
            self.changed(resource, found)

    def step(self) -> list[str]:
        """One watch, after a LIST where there is reason for one; what it told, sorted."""
        self.told.clear()
        self.informer.step(self.stopping, LONG)
        return sorted(self.told)

    def known(self) -> list[str]:
        return sorted(found["metadata"]["name"] for found in self.cache.all(JOBS))


@pytest.fixture
def followed() -> Followed:
    """Two Jobs exist, and were read."""
    made = Followed()
    made.server.put(job("a"))
    made.server.put(job("b"))
    assert made.step() == ["a", "b"]
    return made


def test_a_watch_goes_on_where_the_list_ended(followed: Followed) -> None:
    followed.server.put(job("c"))
    followed.server.remove("a")
    assert followed.step() == ["a", "c"]
    assert followed.step() == []
    assert (followed.known(), followed.server.lists) == (["b", "c"], 1)


@pytest.mark.parametrize("gone", [["a"], ["a", "b"]])
def test_what_was_deleted_before_a_watch_starts_anew_is_found_at_once(followed: Followed, gone: list[str]) -> None:
    """No event shows it, not even that of another object where it was the last."""
    for name in gone:
        followed.server.remove(name)
    followed.server.compact()
    with pytest.raises(ApiError):
        followed.step()
    run_until(followed, lambda: followed.server.lists == 2 and followed.known() == sorted({"a", "b"} - set(gone)))
    assert sorted(followed.told) == gone


def test_a_restored_etcd_is_seen_at_once(followed: Followed) -> None:
    """Its versions are lower: a watch from the version of before would show nothing until they have grown past it."""
    followed.server.version = 1
    followed.server.history.clear()
    followed.server.objects = {}
    followed.server.put(job("old"))
    assert followed.step() == ["a", "b", "old"]
    assert followed.known() == ["old"]


def test_a_version_that_falls_within_a_watch_ends_it(followed: Followed) -> None:
    followed.server.put(job("c"))
    followed.server.history.append((followed.server.version + 1, followed.server.history[0][1]))
    followed.step()
    assert followed.server.lists == 1
    followed.step()
    assert followed.server.lists == 2


def test_everything_is_read_again_from_time_to_time() -> None:
    followed = Followed()
    for _ in range(3):
        followed.informer.step(followed.stopping, 0)
    assert followed.server.lists == 3


def test_a_large_list_is_read_page_by_page() -> None:
    followed = Followed()
    for number in range(2 * PAGE + 1):
        followed.server.put(job(f"{number:04}"))
    assert len(followed.step()) == 2 * PAGE + 1
    assert followed.server.largest == PAGE


def test_a_list_that_breaks_off_removes_nothing() -> None:
    followed = Followed()
    followed.server.put(job("a"))
    followed.step()
    followed.server.remove("a")
    followed.server.compact()
    followed.server.faults = [ApiError(500, "InternalError", "broken")]
    with pytest.raises(ApiError):
        followed.step()
    assert followed.known() == ["a"]


@pytest.mark.parametrize(
    "fault", [ApiError(0, "ReadTimeoutError", "silent"), ApiError(403, "Forbidden", "no"), ValueError("not JSON")]
)
def test_the_thread_survives_any_error(followed: Followed, fault: Exception) -> None:
    followed.server.faults = [fault, fault]
    followed.server.put(job("c"))
    run_until(followed, lambda: followed.known() == ["a", "b", "c"])


def test_its_age_is_that_of_the_last_word(followed: Followed) -> None:
    followed.informer._heard -= 100
    assert followed.informer.age() >= 100
    followed.step()
    assert followed.informer.age() < 10


def run_until(followed: Followed, reached: Callable[[], bool]) -> None:
    """Run the informer's own loop until then."""
    thread = threading.Thread(target=followed.informer.run, args=(followed.stopping, LONG), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    try:
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        followed.stopping.set()
        thread.join(60)
    assert not thread.is_alive()


def test_informers_read_everything_one_after_the_other(followed: Followed) -> None:
    """Whole pages are large, so that LISTs side by side would take much memory."""
    other = Followed(turn=followed.turn)
    with followed.turn:
        thread = threading.Thread(target=other.informer.list, args=(LONG,), daemon=True)
        thread.start()
        thread.join(0.2)
        assert (thread.is_alive(), other.server.lists) == (True, 0)
    thread.join(60)
    assert other.server.lists == 1
