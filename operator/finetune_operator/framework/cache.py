"""Custom resources and their children, as lists, watch streams and the operator's own writes show them.

The cache may lag, and nothing relies on it being complete: children have deterministic names, a create that meets an
existing object checks its owner, and status writes are conditional on the resource version.

Three sources may disagree, and who is right is decided here. Events and answers to writes are compared by resource
version; a deletion leaves a tombstone, so that an answer which arrives late does not bring its object back. What was
read from the API server (a LIST, a GET) counts more than all that the cache knew before it was asked for: also when its
version is lower, because etcd was restored from a backup.
"""

import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    ENDPOINT_SLICES,
    HTTP_ROUTES,
    INGRESSES,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.framework.ownership import Key, owner_key
from finetune_operator.framework.stripped import pack, unpack

CHILDREN: Final = (
    *(JOBS, PODS, DEPLOYMENTS, ENDPOINT_SLICES, SERVICES, NETWORK_POLICIES, CONFIG_MAPS),
    *(CONTROLLER_REVISIONS, DISRUPTION_BUDGETS),
)
"""The kinds of children that are watched. An EndpointSlice has its Service's labels."""
ROUTES: Final = (HTTP_ROUTES, INGRESSES)
"""Kinds of children that are watched where the admin lets endpoints have them. A cluster may lack the first: it comes
with CRDs of its own, which somebody may install or delete at any time."""
_TOMBSTONES: Final = 10_000
V = TypeVar("V", bound=Hashable)
_Place = tuple[str, str, str]
"""Kind, namespace and name."""

Indexes = Mapping[str, Sequence[Callable[[Object], Hashable]]]
"""By kind: the properties by which its custom resources can be looked up; None is no property."""
Owners = Mapping[Resource, Collection[str]]
"""By kind of child: the kinds of custom resources whose children are kept."""


@dataclass(slots=True)
class _Stored:
    """One object."""

    uid: str
    version: int
    moment: int
    """When it was last changed or confirmed; see ``Cache.moment``."""
    packed: bytes


@dataclass(frozen=True, slots=True)
class _Tombstone:
    """A deletion."""

    version: int
    moment: int


class Cache:
    """Objects by kind, namespace and name, children by owner, custom resources by what ``indexes`` give.

    Safe for any number of threads. Objects are given out as copies.
    """

    def __init__(self, indexes: Indexes | None = None, owners: Owners | None = None) -> None:
        self._indexes = indexes or {}
        self._owners = owners or {}
        self._lock = threading.Lock()
        self._entries: dict[_Place, _Stored] = {}
        self._groups: dict[Hashable, set[_Place]] = defaultdict(set)
        self._deleted: OrderedDict[str, _Tombstone] = OrderedDict()
        self._moment = 0
        self._lacking: set[str] = set()

    def lacks(self, resource: Resource) -> bool:
        """Whether the API server is known not to have a kind."""
        with self._lock:
            return resource.kind in self._lacking

    def record_kind(self, resource: Resource, *, exists: bool) -> None:
        """Record whether the API server has a kind."""
        with self._lock:
            (self._lacking.discard if exists else self._lacking.add)(resource.kind)

    def moment(self) -> int:
        """A point in time between two changes of the cache. Taken before a LIST or GET, it says what came before."""
        with self._lock:
            return self._moment

    def record(self, resource: Resource, found: Object, asked: int | None = None) -> bool:
        """Record an object; False if that is no news.

        Args:
            resource: its kind.
            found: the object, which stays as it is.
            asked: for what was read from the API server: the moment before it was asked for. All that was known before
                gives way to it. Without: an event, or the answer to a write. It gives way to newer versions, and to a
                deletion that is not older.
        """
        if not self._keeps(resource, found):
            return False
        metadata = found["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        place = _place(resource, found)
        with self._lock:
            known, deleted = self._entries.get(place), self._deleted.get(uid)
            self._moment += 1
            if deleted is not None and deleted.version >= version and not _before(deleted, asked):
                return False
            if known is not None and (known.uid, known.version) == (uid, version):
                known.moment = self._moment  # confirmed
                return False
            if known is not None and known.version >= version and not _before(known, asked):
                return False
            if known is not None:
                self._remove(place)
            self._deleted.pop(uid, None)
            self._entries[place] = _Stored(uid, version, self._moment, pack(resource, found))
            for group in self._groups_of(place, found):
                self._groups[group].add(place)
            return True

    def forget(self, resource: Resource, gone: Object) -> bool:
        """Remove an object that was deleted or lost our label, at its version; False if it was unknown.

        A newer one of the same name stays, and so does a newer version: its label came back.
        """
        uid, version = gone["metadata"]["uid"], int(gone["metadata"]["resourceVersion"])
        place = _place(resource, gone)
        with self._lock:
            self._moment += 1
            known = self._entries.get(place)
            if known is not None and known.uid == uid and known.version > version:
                return False
            self._bury(uid, version)
            if known is None or known.uid != uid:
                return False
            self._remove(place)
            return True

    def sweep(self, resource: Resource, namespace: str | None, asked: int) -> list[Object]:
        """Remove what a LIST that is complete did not show, and return it. ``asked``: the moment before the LIST."""
        with self._lock:
            self._moment += 1
            gone = [
                place
                for place in self._groups.get(resource.kind, ())
                if namespace in (None, place[1]) and _before(self._entries[place], asked)
            ]
            found = [unpack(self._entries[place].packed) for place in gone]
            for place in gone:
                entry = self._entries[place]
                self._bury(entry.uid, entry.version)
                self._remove(place)
            return found

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object."""
        with self._lock:
            entry = self._entries.get((resource.kind, namespace, name))
        return unpack(entry.packed) if entry is not None else None

    def names(self, resource: Resource) -> list[Key]:
        """Kind, namespace and name of all objects of a kind."""
        return self._named(resource.kind)

    def all(self, resource: Resource) -> Iterator[Object]:
        """All objects of a kind, one after the other: together they may be large."""
        return self._unpacked(resource.kind)

    def children(self, owner: Key, resource: Resource) -> list[Object]:
        """An owner's children of a kind, by labels and sorted by name. Callers check the owner reference."""
        return list(self._unpacked((owner, resource.kind)))

    def indexed(self, value: Hashable) -> list[Object]:
        """The custom resources of all namespaces with a value of an indexed property."""
        return list(self._unpacked(value))

    def indexed_names(self, value: Hashable) -> list[Key]:
        """Kind, namespace and name of the same: of thousands, if need be."""
        return self._named(value)

    def sizes(self, kind: type[V]) -> dict[V, int]:
        """How many custom resources have which value of an indexed property of this type."""
        with self._lock:
            return {value: len(places) for value, places in self._groups.items() if isinstance(value, kind)}

    def _named(self, group: Hashable) -> list[Key]:
        with self._lock:
            return [Key(*place) for place in self._groups.get(group, ())]

    def _unpacked(self, group: Hashable) -> Iterator[Object]:
        with self._lock:
            packed = [self._entries[place].packed for place in sorted(self._groups.get(group, ()))]
        return map(unpack, packed)

    def _keeps(self, resource: Resource, found: Object) -> bool:
        owners = self._owners.get(resource)
        if owners is None:
            return True
        owner = owner_key(found)
        return owner is not None and owner.kind in owners

    def _bury(self, uid: str, version: int) -> None:
        self._deleted[uid] = _Tombstone(version, self._moment)
        if len(self._deleted) > _TOMBSTONES:
            self._deleted.popitem(last=False)

    def _remove(self, place: _Place) -> None:
        for group in self._groups_of(place, unpack(self._entries.pop(place).packed)):
            self._groups[group].discard(place)
            if not self._groups[group]:
                del self._groups[group]

    def _groups_of(self, place: _Place, found: Object) -> list[Hashable]:
        """What an object is found by: its kind, and its kind's indexed properties or its owner."""
        kind = place[0]
        if kind not in self._indexes:
            return [kind, (owner_key(found), kind)]
        values = (index(found) for index in self._indexes[kind])
        return [kind, *(value for value in values if value is not None)]


def _place(resource: Resource, found: Object) -> _Place:
    metadata = found["metadata"]
    return resource.kind, sys.intern(metadata["namespace"]), metadata["name"]


def _before(known: _Stored | _Tombstone, asked: int | None) -> bool:
    """Whether what is known is from before the API server was asked."""
    return asked is not None and known.moment <= asked
