"""Custom resources, their Jobs, pods, Deployments and endpoints, as watch streams and the operator's writes show them.

The cache may lag, and nothing relies on it being complete: children have deterministic names, a create that meets an
existing object checks its owner, status writes are conditional on the resource version, and a periodic LIST
(``replace``) finds what a stream missed.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Final

from finetune_operator.framework.objects import DEPLOYMENTS, ENDPOINT_SLICES, JOBS, PODS, Object, Resource
from finetune_operator.framework.ownership import Key, owner_key

CHILDREN: Final = (JOBS, PODS, DEPLOYMENTS, ENDPOINT_SLICES)
"""The kinds of children that are watched; others are read when needed. An EndpointSlice has its Service's labels."""
_TOMBSTONES: Final = 10_000
_Place = tuple[str, str, str]
"""Kind, namespace and name."""

Indexes = Mapping[str, Callable[[Object], Hashable]]
"""By kind: the property by which its custom resources can be looked up."""


class Cache:
    """Objects by kind, namespace and name, children by owner, custom resources by the property that ``indexes`` gives.

    Safe for any number of threads.
    """

    def __init__(self, indexes: Indexes | None = None) -> None:
        self._indexes = indexes or {}
        self._lock = threading.Lock()
        self._objects: dict[_Place, Object] = {}
        self._groups: dict[Hashable, set[_Place]] = defaultdict(set)
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def record(self, resource: Resource, found: Object) -> bool:
        """Record an object; False if that is no news: the version is known or older, or the object was deleted."""
        metadata = found["metadata"]
        metadata.pop("managedFields", None)
        place = (resource.kind, metadata["namespace"], metadata["name"])
        with self._lock:
            known = self._objects.get(place)
            if metadata["uid"] in self._deleted or (known is not None and _version(known) >= _version(found)):
                return False
            if known is not None:
                self._remove(place)
            self._objects[place] = found
            for group in self._groups_of(place, found):
                self._groups[group].add(place)
            return True

    def forget(self, resource: Resource, gone: Object) -> bool:
        """Remove a deleted object; False if it was unknown. A newer one of the same name stays."""
        metadata = gone["metadata"]
        place = (resource.kind, metadata["namespace"], metadata["name"])
        with self._lock:
            self._deleted[metadata["uid"]] = None
            if len(self._deleted) > _TOMBSTONES:
                self._deleted.popitem(last=False)
            known = self._objects.get(place)
            if known is None or known["metadata"]["uid"] != metadata["uid"]:
                return False
            self._remove(place)
            return True

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object, which callers must not change."""
        with self._lock:
            return self._objects.get((resource.kind, namespace, name))

    def all(self, resource: Resource) -> list[Object]:
        """All objects of a kind."""
        with self._lock:
            return [self._objects[place] for place in self._groups.get(resource.kind, ())]

    def children(self, owner: Key, resource: Resource) -> list[Object]:
        """An owner's children of a kind, by labels. Callers check the owner reference."""
        with self._lock:
            places = sorted(self._groups.get((owner, resource.kind), ()))
            return [self._objects[place] for place in places]

    def versions(self, resource: Resource) -> dict[str, Object]:
        """All objects of a kind by uid, for ``replace`` after a LIST."""
        return {found["metadata"]["uid"]: found for found in self.all(resource)}

    def replace(self, resource: Resource, before: dict[str, Object], listed: Iterable[Object]) -> None:
        """Record a LIST, and remove what was in the cache ``before`` it and is missing in it."""
        present = set()
        for found in listed:
            present.add(found["metadata"]["uid"])
            self.record(resource, found)
        for uid, gone in before.items():
            if uid not in present:
                self.forget(resource, gone)

    def indexed(self, value: Hashable) -> list[Object]:
        """The custom resources of all namespaces with a value of an indexed property."""
        with self._lock:
            return [self._objects[place] for place in self._groups.get(value, ())]

    def _remove(self, place: _Place) -> None:
        for group in self._groups_of(place, self._objects.pop(place)):
            self._groups[group].discard(place)
            if not self._groups[group]:
                del self._groups[group]

    def _groups_of(self, place: _Place, found: Object) -> tuple[Hashable, Hashable]:
        """What an object is found by: its kind, and its kind's indexed property or its owner."""
        kind = place[0]
        index = self._indexes.get(kind)
        return kind, index(found) if index else (owner_key(found), kind)


def _version(found: Object) -> int:
    """Resource versions grow (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions)."""
    return int(found["metadata"]["resourceVersion"])
