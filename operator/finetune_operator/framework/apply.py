"""Carries out actions. Repeating one that succeeded changes nothing: a crash in between costs nothing."""

from typing import assert_never

from finetune_api import meta
from finetune_operator.framework.actions import Action, Apply, Create, Delete, Patch
from finetune_operator.framework.cache import CHILDREN, Cache
from finetune_operator.framework.client import ApiError, KubeClient
from finetune_operator.framework.objects import Object, Resource
from finetune_operator.framework.ownership import Owner


class NameTaken(Exception):  # noqa: N818 - a finding for the status, not an error of ours
    """An object that the plan needs has the name of one that our owner does not own."""

    def __init__(self, resource: Resource, name: str, *, outlived: bool = False) -> None:
        super().__init__(f"{resource.kind} {name}")
        self.resource = resource
        self.name = name
        self.outlived = outlived
        """It is what an earlier resource of our owner's name left, and goes by itself."""


def apply_action(client: KubeClient, cache: Cache, owner: Owner, action: Action) -> None:
    """Carry out one action and note its result in the cache; raises ApiError or NameTaken."""
    match action:
        case Create(resource, body):
            _record(cache, resource, _create(client, owner, resource, body))
        case Apply(resource, body):
            _refuse_conflict(owner, resource, cache.get(resource, owner.namespace, body["metadata"]["name"]))
            _record(cache, resource, client.apply(resource, body, meta.MANAGED_BY))
        case Patch(resource, name, body):
            _record(cache, resource, _patch(client, cache, owner, resource, name, body))
        case Delete(resource, name, uid):
            client.delete(resource, owner.namespace, name, uid)
        case _:
            assert_never(action)


def _create(client: KubeClient, owner: Owner, resource: Resource, body: Object) -> Object:
    try:
        return client.create(resource, body)
    except ApiError as error:
        if not error.already_exists:
            raise
    name = body["metadata"]["name"]
    existing = client.get(resource, owner.namespace, name)
    if existing is None:
        raise ApiError(409, "Conflict", f"{resource.kind} {name} was deleted just now")
    _refuse_conflict(owner, resource, existing)
    if not body["metadata"]["labels"].items() <= (existing["metadata"].get("labels") or {}).items():
        raise NameTaken(resource, name)  # ours, but without the labels by which we find it
    return existing


def _patch(client: KubeClient, cache: Cache, owner: Owner, resource: Resource, name: str, body: Object) -> Object:
    try:
        return client.patch(resource, owner.namespace, name, body)
    except ApiError as error:
        stale = cache.get(resource, owner.namespace, name)
        if error.status == 404 and stale is not None:
            cache.forget(resource, stale)
        raise


def _refuse_conflict(owner: Owner, resource: Resource, existing: Object | None) -> None:
    if existing is not None and not owner.owns(existing):
        raise NameTaken(resource, existing["metadata"]["name"], outlived=owner.outlived(existing))


def _record(cache: Cache, resource: Resource, result: Object) -> None:
    """Read our own writes, for the kinds that the cache keeps up to date."""
    if resource in CHILDREN:
        cache.record(resource, result)
