"""An API server's lists and watches in memory, with the faults that a real one has rarely: for tests of informers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune_operator.framework.client import PAGE, ApiError, Change, Page, Selection
from finetune_operator.framework.objects import Object


@dataclass
class StreamServer:
    """Objects of one kind, and what happened to them. A watch ends when it has shown what there is to show."""

    version: int = 1
    objects: dict[str, Object] = field(default_factory=dict)
    history: list[tuple[int, Change]] = field(default_factory=list)
    compacted: int = 0
    """Watches from earlier versions are refused with 410."""
    faults: list[Exception] = field(default_factory=list)
    """Raised by the next calls, in order."""
    lists: int = 0
    """Whole LISTs so far."""
    largest: int = 0
    """Objects in the largest page that was asked for."""

    def put(self, found: Object) -> None:
        """Create an object or change it; it gets the next version."""
        self.version += 1
        name = found["metadata"]["name"]
        stored = copy.deepcopy(found)
        stored["metadata"]["resourceVersion"] = str(self.version)
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.objects[name] = stored
        self.history.append((self.version, Change(kind, stored)))

    def remove(self, name: str) -> None:
        """Delete an object."""
        self.version += 1
        gone = copy.deepcopy(self.objects.pop(name))
        gone["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, Change("DELETED", gone)))

    def compact(self) -> None:
        """Forget what happened so far."""
        self.compacted = self.version
        self.history.clear()

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        self._fail()
        found = copy.deepcopy(list(self.objects.values()))
        if limit > 1:
            self.lists += 1
        version = self.version
        for start in range(0, max(1, len(found)), limit):
            page = found[start : start + limit]
            self.largest = max(self.largest, len(page))
            yield Page(page, version)

    def watch(self, selection: Selection, version: int, seconds: int) -> Iterator[Change]:
        self._fail()
        if version < self.compacted:
            raise ApiError(410, "Expired", "too old resource version")
        for moment, change in list(self.history):
            if moment > version:
                yield copy.deepcopy(change)
        yield Change("BOOKMARK", {"metadata": {"resourceVersion": str(max(version, self.version))}})

    def _fail(self) -> None:
        if self.faults:
            raise self.faults.pop(0)
