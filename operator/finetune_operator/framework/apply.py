"""Applies the actions of a plan. Repeating one that succeeded changes nothing, so a crash between two costs nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

from finetune_api import meta
from finetune_operator.framework.actions import Action, Apply, Create, Delete, Patch
from finetune_operator.framework.cache import CHILDREN, ROUTES, Cache
from finetune_operator.framework.client import ApiError, KubeClient
from finetune_operator.framework.objects import CONFIG_MAPS, Object, Resource
from finetune_operator.framework.ownership import Owner


class NameTaken(Exception):  # noqa: N818 - reported in the status, not an error of the operator
    """An object of the plan has the name of one that its owner does not own."""

    def __init__(self, resource: Resource, name: str, *, outlived: bool = False) -> None:
        super().__init__(f"{resource.kind} {name}")
        self.resource = resource
        self.name = name
        self.outlived = outlived
        """Whether it belongs to a deleted resource of the owner's name; the garbage collector deletes it."""


def apply_action(client: KubeClient, cache: Cache, owner: Owner, action: Action) -> None:
    """Apply one action and record its result in the cache; raises ApiError or NameTaken."""
    match action:
        case Create(resource, body):
            _record(cache, resource, _create(client, owner, resource, body))
        case Apply(resource, body):
            known = cache.get(resource, owner.namespace, body["metadata"]["name"])
            _refuse_conflict(owner, resource, known)
            with _made_anew_is_a_conflict(resource, body["metadata"]["name"]):
                _record(cache, resource, client.apply(resource, _of_that(known, body), meta.MANAGED_BY))
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
        raise ApiError(409, "Conflict", f"{resource.kind} {name} has just been deleted")
    _refuse_conflict(owner, resource, existing)
    labelled = body["metadata"]["labels"].items() <= (existing["metadata"].get("labels") or {}).items()
    if labelled and (resource != CONFIG_MAPS or existing.get("data") == body["data"]):
        return existing
    return _restore(client, resource, body, existing)


def _restore(client: KubeClient, resource: Resource, body: Object, existing: Object) -> Object:
    """Give the owner's object back the labels by which it is found: somebody took them off.

    A ConfigMap is made anew, with what it is to hold: most are immutable, and whoever may create one may name any
    owner in it.
    """
    metadata = existing["metadata"]
    if resource == CONFIG_MAPS:
        client.delete(resource, metadata["namespace"], metadata["name"], metadata["uid"])
        return client.create(resource, body)
    identity = {name: metadata[name] for name in ("uid", "resourceVersion")}
    change = {"metadata": identity | {"labels": body["metadata"]["labels"]}}
    return client.patch(resource, metadata["namespace"], metadata["name"], change)


def _patch(client: KubeClient, cache: Cache, owner: Owner, resource: Resource, name: str, body: Object) -> Object:
    known = cache.get(resource, owner.namespace, name)
    try:
        with _made_anew_is_a_conflict(resource, name):
            return client.patch(resource, owner.namespace, name, _of_that(known, body))
    except ApiError as error:
        stale = cache.get(resource, owner.namespace, name)
        if error.status == 404 and stale is not None:
            cache.forget(resource, stale)
        raise


def _of_that(known: Object | None, body: Object) -> Object:
    """A change of the object that is known, and of no other one of its name: somebody may have deleted it meanwhile and
    made one of their own."""
    if known is None:
        return body
    return body | {"metadata": {"uid": known["metadata"]["uid"]} | (body.get("metadata") or {})}


@contextmanager
def _made_anew_is_a_conflict(resource: Resource, name: str) -> Iterator[None]:
    """To the API server, a change of another object than the one with the uid is an attempt to change the uid, and so
    invalid. It says nothing against the change: the next try sees what is there."""
    try:
        yield
    except ApiError as error:
        if error.status == 422 and "metadata.uid" in error.message:
            raise ApiError(409, "Conflict", f"{resource.kind} {name} was deleted and made anew meanwhile") from error
        raise


def _refuse_conflict(owner: Owner, resource: Resource, existing: Object | None) -> None:
    if existing is not None and not owner.owns(existing):
        raise NameTaken(resource, existing["metadata"]["name"], outlived=owner.outlived(existing))


def _record(cache: Cache, resource: Resource, result: Object) -> None:
    """The next pass sees this write, if it is of what the cache keeps up to date."""
    if resource in (*CHILDREN, *ROUTES):
        cache.record(resource, result)
