"""One custom resource, brought one step closer to what it asks for: observe, plan, apply, status, events.

Level triggered: what to do follows from the observed state, never from the event. Actions come before the status
and are idempotent, so the next reconciliation makes up for a crash at any point. The queue retries calls that fail;
when they keep failing, the status says so.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from finetune_api.base import ObjectMeta
from finetune_operator.framework.actions import Action, Event, Plan
from finetune_operator.framework.api_failures import ApiFailures
from finetune_operator.framework.apply import NameTaken, apply_action
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError, KubeClient
from finetune_operator.framework.events import event_object
from finetune_operator.framework.objects import EVENTS, Object, Resource
from finetune_operator.framework.ownership import Key, Owner
from finetune_operator.framework.reading import StatusUnreadable, parse_status
from finetune_operator.framework.stored_status import status_patch, unreadable_event, unreadable_patch
from finetune_operator.framework.unmet import Problem, Unmet

logger = logging.getLogger(__name__)

REFUSALS: Final = frozenset({400, 403, 422})
"""Statuses with which the API server, an admission webhook, a policy or a quota refuses an object."""
CONTENDING_SECONDS: Final = 1.0
"""After which a pass is tried again that has to wait: for the end of another one, or until it can see what another
replica has written. Its thread is for others meanwhile."""

O = TypeVar("O")  # noqa: E741 - what was observed
S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Kind(Generic[O, S]):
    """How one kind of custom resource is reconciled."""

    resource: Resource
    status: type[S]
    undecidable: Callable[[S], str]
    """What a newer version has written into the status that decides what to do next, and that this version does not
    know; empty if there is no such thing. It is treated like a status that cannot be read."""
    observe: Callable[[Object, datetime], O]
    """Read what the plan needs; may call the API, changes nothing."""
    plan: Callable[[O, datetime], Plan[S]]
    """Pure."""
    with_conflict: Callable[[O, NameTaken], O]
    """What was observed, with a conflicting object that an action met. Its plan has no actions."""
    with_refusal: Callable[[O, str], O]
    """What was observed, with the API server's message for an action that it refused. Its plan has no actions."""
    with_unmet: Callable[[O, Mapping[str, str]], O]
    """What was observed, with what was said of optional actions that failed, by their words."""
    without_api: Callable[[Object, str], O]
    """What the resource itself shows, with the API's last error, once calls have failed for a while. Its plan has no
    actions."""
    contends: Callable[[Object], bool] = lambda _: False
    """Whether a pass over the resource may take what others of its kind wait for too. No two such passes overlap: each
    sees the status that the one before has written."""


class NextTurn(NamedTuple):
    """When a custom resource is reconciled again without an event."""

    after: float | None = None
    """Seconds; None waits for an event or the resync."""
    low_priority: bool = False
    """Whether all other keys go first."""
    blocked: bool = False
    """Whether something stands in the way."""


class Reconciler:
    """Reconciles keys of all kinds. Threads may share it as long as no two work on the same key."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        kinds: Mapping[str, Kind[Any, Any]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._cache = cache
        self._kinds = kinds
        self._clock = clock
        self._api_failures = ApiFailures()
        self._unmet = Unmet()
        self._contending = threading.Lock()
        self._may_contend = threading.Event()
        self._may_contend.set()

    def hold_contenders(self) -> None:
        """Let no pass begin that contends, until ``admit_contenders``: it is tried again and again. Others go on."""
        self._may_contend.clear()

    def admit_contenders(self) -> None:
        """The cache has all that was written by who worked before."""
        self._may_contend.set()

    def reconcile(self, key: Key) -> NextTurn:
        """One pass; returns when the next one is due. Raises ApiError."""
        kind = self._kinds[key.kind]
        resource = self._cache.get(kind.resource, key.namespace, key.name)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            self._api_failures.clear(key)
            self._unmet.forget(key)
            return NextTurn()  # owner references delete the children; data in the store stays
        if not kind.contends(resource):
            return self._pass(key, kind, resource)
        if not self._may_contend.is_set() or not self._contending.acquire(blocking=False):
            return NextTurn(CONTENDING_SECONDS)
        try:
            return self._pass(key, kind, resource)
        finally:
            self._contending.release()

    def _pass(self, key: Key, kind: Kind[O, S], resource: Object) -> NextTurn:
        now = self._clock()
        owner = Owner.of(kind.resource, ObjectMeta.model_validate(resource["metadata"]))
        if problem := _unreadable(kind, resource):
            self._report_unreadable(owner, resource, problem, now)
            return NextTurn()
        try:
            plan = self._observe_and_apply(kind, owner, resource, now)
        except ApiError as error:
            if self._api_failures.persists(key, now):
                self._report_failing(kind, owner, resource, error, now)
            raise
        if plan.defer_status:
            self._api_failures.clear(key)
            return NextTurn(after=0.0, low_priority=True)
        try:
            self._report(kind, owner, resource, plan, now)
        except ApiError as error:
            # One field that the server refuses, e.g. by an older CRD, would keep the conditions from being told too.
            if self._api_failures.persists(key, now) and error.status in REFUSALS:
                self._report_failing(kind, owner, resource, error, now)
            raise
        self._api_failures.clear(key)
        looks = [each for each in (plan.requeue_after, self._unmet.due_after(key, now)) if each is not None]
        return NextTurn(min(looks, default=None), blocked=plan.blocked)

    def _observe_and_apply(self, kind: Kind[O, S], owner: Owner, resource: Object, now: datetime) -> Plan[S]:
        """Observe, plan and apply; returns the plan whose status then holds."""
        observed = kind.observe(resource, now)
        plan = kind.plan(observed, now)
        failed = {word: self._apply_optional(owner, word, plan.optional[word], now, first=True) for word in plan.first}
        try:
            for action in plan.actions:
                apply_action(self._client, self._cache, owner, action)
        except NameTaken as taken:
            observed = kind.with_conflict(observed, taken)
            plan = kind.plan(observed, now)
        except ApiError as error:
            if error.status not in REFUSALS:
                raise
            observed = kind.with_refusal(observed, error.message)
            plan = kind.plan(observed, now)
        rest = {word: actions for word, actions in plan.optional.items() if word not in failed}
        failed |= {word: self._apply_optional(owner, word, actions, now) for word, actions in rest.items()}
        self._unmet.keep(owner.key, plan.optional)
        said = {word: text for word, text in failed.items() if text}
        return kind.plan(kind.with_unmet(observed, said), now) if said else plan

    def _apply_optional(
        self, owner: Owner, word: str, actions: tuple[Action, ...], now: datetime, *, first: bool = False
    ) -> str:
        """Apply what the resource can do without; returns what stands in the way, empty if nothing does, or if that
        may pass. What goes ``first`` is never held back: an error that may pass is raised, so that the queue retries
        before anything else is done or said."""
        held = None if first else self._unmet.held(owner.key, word, actions, now)
        if held is not None:
            return held
        try:
            for action in actions:
                apply_action(self._client, self._cache, owner, action)
        except NameTaken as taken:
            said = f"{taken} already exists and does not belong to this {owner.resource.kind}"
            return self._unmet.record(owner.key, word, actions, Problem(said, soon=first), now)
        except ApiError as error:
            passes = error.passes or error.conflict
            problem = Problem(error.message or str(error), passes, soon=passes or first)
            told = self._unmet.record(owner.key, word, actions, problem, now)
            if first and not told:
                raise
            return told
        self._unmet.clear(owner.key, word)
        return ""

    def _report(self, kind: Kind[O, S], owner: Owner, resource: Object, plan: Plan[S], now: datetime) -> None:
        version = self._write_status(kind, resource, plan.status)
        self._write_events(owner, plan.events, version, now)

    def _report_unreadable(self, owner: Owner, resource: Object, problem: str, now: datetime) -> None:
        """Say so in the conditions; everything else is left to a version that can read it."""
        stored, metadata = resource.get("status") or {}, ObjectMeta.model_validate(resource["metadata"])
        change = unreadable_patch(stored, problem, metadata, owner.resource.kind, now)
        version = self._patch_status(owner.resource, resource, change)
        self._write_events(owner, unreadable_event(stored, problem), version, now)

    def _report_failing(self, kind: Kind[O, S], owner: Owner, resource: Object, error: ApiError, now: datetime) -> None:
        """Report the failing call in the status. If that fails too, the queue retries everything."""
        try:
            self._report(kind, owner, resource, kind.plan(kind.without_api(resource, str(error)), now), now)
        except ApiError as second:
            logger.warning("%s: cannot report the failure in the status: %s", "/".join(owner.key), second)

    def _write_status(self, kind: Kind[O, S], resource: Object, status: S) -> str:
        stored = resource.get("status") or {}
        change = status_patch(stored, parse_status(kind.status, stored), status)
        return self._patch_status(kind.resource, resource, change)

    def _patch_status(self, kind: Resource, resource: Object, change: Object) -> str:
        """Write what has changed, if the resource is still at the observed version; returns that version."""
        metadata = resource["metadata"]
        version: str = metadata["resourceVersion"]
        if not change:
            return version
        body = {"metadata": {"resourceVersion": version}, "status": change}
        try:
            written = self._client.patch_status(kind, metadata["namespace"], metadata["name"], body)
        except ApiError as error:
            if error.conflict or error.status == 404:
                self._refresh(kind, resource)
            raise
        self._cache.record(kind, written)
        return version

    def _refresh(self, resource: Resource, outdated: Object) -> None:
        metadata, asked = outdated["metadata"], self._cache.moment()
        current = self._client.get(resource, metadata["namespace"], metadata["name"])
        if current is None:
            self._cache.forget(resource, outdated)
        else:
            self._cache.record(resource, current, asked)

    def _write_events(self, owner: Owner, events: tuple[Event, ...], version: str, now: datetime) -> None:
        for event in events:
            try:
                self._client.create(EVENTS, event_object(owner, event, version, now))
            except ApiError as error:
                if not error.already_exists:
                    logger.warning(
                        "cannot write event %s of %s/%s: %s", event.reason, owner.namespace, owner.name, error
                    )


def _unreadable(kind: Kind[O, S], resource: Object) -> str:
    """Why this version cannot work with the resource's status; empty if it can."""
    try:
        return kind.undecidable(parse_status(kind.status, resource.get("status") or {}))
    except StatusUnreadable as unreadable:
        return str(unreadable)
