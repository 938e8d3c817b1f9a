"""The real reconciler over an endpoint in memory, whose API server may fail: what is applied, tried again and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api import meta
from finetune_api.serving_status import AdapterDeploymentStatus
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.framework.actions import Action, Apply, Create, Delete, Patch
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import EVENTS, Object, Resource
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import NextTurn, Reconciler
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.support.serving import ServingCluster


@dataclass
class Reconciled:
    """One operator, and a client that writes into the cluster in memory."""

    cluster: ServingCluster
    fails: Callable[[Resource], ApiError | None] = lambda _: None
    """What the API server answers to a write of a kind, if it does not take it."""
    told: list[Object] = field(default_factory=list)
    """Events, oldest first."""
    tried: list[Action] = field(default_factory=list)
    """Writes that were tried, whatever came of them."""
    _cache: Cache = field(default_factory=Cache)
    _version: int = 0

    def __post_init__(self) -> None:
        kind = adapter_deployment_kind(self, self._cache, self.cluster.settings)
        observed = replace(kind, observe=lambda _raw, _now: self.cluster.observe())
        self._reconciler = Reconciler(
            self, self._cache, {meta.ADAPTERDEPLOYMENT: observed}, clock=lambda: self.cluster.now
        )

    def turn(self) -> NextTurn:
        """One pass. Raises ApiError, after which the work queue retries."""
        self._version += 1
        raw = self.cluster.raw()
        raw["metadata"] |= {"resourceVersion": str(self._version)}
        self._cache.record(ADAPTERDEPLOYMENTS, raw | {"kind": meta.ADAPTERDEPLOYMENT}, self._cache.moment())
        turn = self._reconciler.reconcile(Key(meta.ADAPTERDEPLOYMENT, self.cluster.namespace, "demo"))
        self.cluster.run_controllers()
        return turn

    def writes(self, resource: Resource) -> int:
        """Tried so far."""
        return sum(each.resource == resource for each in self.tried)

    # The KubeClient.

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self.cluster.objects.get(resource, {}).get(name)

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        return [*self.cluster.objects.get(resource, {}).values()]

    def create(self, resource: Resource, body: Object) -> Object:
        if resource == EVENTS:
            self.told.append(body)
            return body
        return self._written(Create(resource, body), body["metadata"]["name"])

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        return self._written(Apply(resource, body), body["metadata"]["name"])

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._written(Patch(resource, name, body), name)

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        self._version += 1
        merged = _merged(self.cluster.raw()["status"], body["status"])
        self.cluster.status = AdapterDeploymentStatus.model_validate(merged)
        raw = self.cluster.raw()
        raw["metadata"] |= {"resourceVersion": str(self._version)}
        return raw

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._taken(Delete(resource, name, uid))

    def _written(self, action: Action, name: str) -> Object:
        self._taken(action)
        return self._versioned(self.cluster.objects[action.resource][name])

    def _taken(self, action: Action) -> None:
        self.tried.append(action)
        if error := self.fails(action.resource):
            raise error
        self.cluster.apply_action(action)

    def _versioned(self, found: Object) -> Object:
        self._version += 1
        return found | {"metadata": found["metadata"] | {"resourceVersion": str(self._version)}}


def _merged(stored: Any, change: Any) -> Any:
    """A JSON merge patch, applied."""
    if not isinstance(change, dict):
        return change
    kept = stored if isinstance(stored, dict) else {}
    rest = {name: value for name, value in kept.items() if name not in change}
    return rest | {name: _merged(kept.get(name), value) for name, value in change.items() if value is not None}
