"""A replica that takes over, and whose cache lags behind what the one before has written: nobody starts too many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune_operator.adapterdeployment.turns import Line, may_start
from finetune_operator.controller import INDEXES, Controller
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import PAGE, ApiError, Change, Page, Selection
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import NextTurn, Reconciler
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.support.streams import StreamServer
from tests.unit.test_operator_controller import SETTINGS, endpoint

pytestmark = pytest.mark.unit


@dataclass
class Lagging(StreamServer):
    """AdapterDeployments of an API server whose watches show nothing."""

    ready: threading.Event = field(default_factory=threading.Event)
    """Until then, a second LIST takes its time."""
    refusals: list[ApiError] = field(default_factory=list)
    """Of the LISTs after the first one."""

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        if selection.resource != ADAPTERDEPLOYMENTS:
            yield Page([], self.version)
            return
        if self.lists and limit > 1:
            self.ready.wait(120)
            if self.refusals:
                raise self.refusals.pop(0)
        yield from super().pages(selection, limit)

    def watch(self, selection: Selection, version: int, seconds: int) -> Iterator[Change]:
        time.sleep(0.1)
        yield from ()


class Noting(Reconciler):
    """Notes who is in line in each pass."""

    def __init__(self, cache: Cache) -> None:
        kind: Any = SimpleNamespace(resource=ADAPTERDEPLOYMENTS, contends=may_start)
        super().__init__(cast(Any, None), cache, {ADAPTERDEPLOYMENTS.kind: kind})
        self.notes: list[tuple[str, list[str]]] = []

    def _pass(self, key: Key, kind: Any, resource: Object) -> NextTurn:
        line = self._cache.indexed(Line.ROLLOUTS)
        self.notes.append((key.name, [each["metadata"]["name"] for each in line]))
        return NextTurn()

    def turns_of(self, name: str) -> list[list[str]]:
        return [line for whose, line in self.notes if whose == name]


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("refusals", [[], [ApiError(403, "Forbidden", "not now")]])
def test_the_line_is_read_before_anybody_in_it_starts(refusals: list[ApiError]) -> None:
    """Its first passes come at once, while its streams may still lag: two would be rolled out where one may be."""
    server, cache = Lagging(refusals=refusals), Cache(INDEXES)
    server.put(endpoint("waits", 1, "Waiting", 60))
    server.put(endpoint("rests", 1, "", 60))
    reconciler, settings = Noting(cache), SETTINGS.model_copy(update={"max_concurrent_rollouts": 1, "workers": 2})
    controller = Controller(cast(Any, server), cache, reconciler, settings)
    controller.start()
    server.put(endpoint("started", 1, "Starting", 1))  # the last write of the one that led
    controller.lead()
    try:
        until(lambda: reconciler.turns_of("rests"))
        assert not reconciler.turns_of("waits")
        server.ready.set()
        until(lambda: reconciler.turns_of("waits"))
    finally:
        server.ready.set()
        controller.stop()
    assert reconciler.turns_of("waits")[0] == ["started", "waits"]
