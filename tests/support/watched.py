"""Objects of the API server as they are now, without asking for them again and again.

The nodes and servers that tests play look at their pods twenty times a second. A LIST each time costs test and API
server more than all that happens to the pods, so the objects are listed once and then kept up to date by a watch.
"""

from __future__ import annotations

import threading

from finetune_operator.framework.client import ApiError, Selection, StreamClient
from finetune_operator.framework.objects import Object

_SECONDS = 60
"""How long a watch lasts; the next one begins with a LIST."""


class Watched:
    """The objects of a selection. Use as a context manager; the watch is left to end with its objects."""

    def __init__(self, client: StreamClient, selection: Selection) -> None:
        self._client = client
        self._selection = selection
        self._found: dict[str, Object] = {}
        """By uid."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._trouble: BaseException | None = None

    def __enter__(self) -> Watched:
        version = self._list()
        threading.Thread(target=self._follow, args=(version,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def all(self) -> list[Object]:
        """The objects as they are now. Raises what ended the watch."""
        if self._trouble is not None:
            raise self._trouble
        with self._lock:
            return list(self._found.values())

    def written(self, stored: Object) -> None:
        """Take over the answer to a write, which the watch may show only later."""
        with self._lock:
            uid = stored["metadata"]["uid"]
            if known := self._found.get(uid):
                self._found[uid] = _newer(stored, known)

    def _follow(self, version: int) -> None:
        try:
            while not self._stop.is_set():
                self._watch(version)
                version = self._list()
        except BaseException as error:  # noqa: BLE001 - told to whoever asks next
            self._trouble = error

    def _list(self) -> int:
        pages = list(self._client.pages(self._selection))
        listed = {found["metadata"]["uid"]: found for page in pages for found in page.items}
        with self._lock:
            self._found = {uid: _newer(found, self._found.get(uid)) for uid, found in listed.items()}
        return pages[0].version

    def _watch(self, version: int) -> None:
        """Until it ends, is too old for the API server, or nobody asks any more."""
        try:
            for change in self._client.watch(self._selection, version, _SECONDS):
                if self._stop.is_set():
                    return
                self._seen(change.type, change.object)
        except ApiError as error:
            if not error.expired:
                raise

    def _seen(self, kind: str, found: Object) -> None:
        if kind == "BOOKMARK":
            return
        uid = found["metadata"]["uid"]
        with self._lock:
            if kind == "DELETED":
                self._found.pop(uid, None)
            else:
                self._found[uid] = _newer(found, self._found.get(uid))


def _newer(found: Object, known: Object | None) -> Object:
    """The later state of an object: the answer to a write may come before or after what the watch shows."""
    return found if known is None or _version(found) >= _version(known) else known


def _version(found: Object) -> int:
    return int(found["metadata"]["resourceVersion"])
