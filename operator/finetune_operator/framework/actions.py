"""What a plan consists of. Pure functions make plans from what was observed; ``apply.py`` applies their actions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from finetune_api.reasons import Reason
from finetune_operator.framework.objects import Object, Resource


@dataclass(frozen=True)
class Create:
    """Create an object once. If it exists, that is success where the owner owns it, and NameTaken where it does not.

    The owner's object gets labels back that were taken off it, and a ConfigMap what it is to hold.
    """

    resource: Resource
    object: Object


@dataclass(frozen=True)
class Apply:
    """Server-side apply of the fields that the operator owns (field manager ``finetune-operator``)."""

    resource: Resource
    object: Object


@dataclass(frozen=True)
class Patch:
    """Merge patch of a few fields, e.g. a Job's ``spec.suspend``."""

    resource: Resource
    name: str
    body: Object


@dataclass(frozen=True)
class Delete:
    """Delete the observed object (background propagation); a newer one of its name stays. Already gone is success."""

    resource: Resource
    name: str
    uid: str


Action = Create | Apply | Patch | Delete


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event on the custom resource; written after the status, on transitions only."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str


S = TypeVar("S")


@dataclass(frozen=True)
class Plan(Generic[S]):
    """What to do, what to report, and when to reconcile again without an event."""

    status: S
    """The whole new status; written once, and only if it differs."""
    actions: tuple[Action, ...] = ()
    """In order; all are applied before the status is written, so that a crash in between only repeats them."""
    events: tuple[Event, ...] = ()
    """Written after the status write succeeded."""
    requeue_after: float | None = None
    """Seconds after which to reconcile again; None waits for an event or the resync."""
    blocked: bool = False
    """Something stands in the way, and no event shows for certain when it is gone: look again, ever more rarely
    (``waiting_room.py``)."""
    defer_status: bool = False
    """True: write neither status nor events in this turn, but in a turn of its own, which yields to all other keys. In
    a burst, every resource gets its first Job before any gets its status, whose write costs the API server twice what
    ConfigMap and Job cost together (docs/benchmarks.md)."""
    optional: Mapping[str, tuple[Action, ...]] = field(default_factory=dict)
    """What the resource can do without, by a word for what it is: applied after all others. If one fails, nothing else
    does but what is left of the same word; the status says so, and it is tried again later (``unmet.py``)."""
    first: frozenset[str] = frozenset()
    """Words of those that go before all other actions and are tried in every pass: they take clients away from a
    revision that fails, which nothing else may delay."""
