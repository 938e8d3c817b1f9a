"""Everything that Kopf is told: which streams to watch, how to log in, what is healthy. Handlers only pass things on.

Only ``on.event`` handlers: they write nothing to the objects, need no finalizer and have no state that could be lost.
What they lack, retries, the work queue has (docs/decisions/0003-level-triggered-kopf.md).
"""

from collections.abc import Mapping
from typing import Any, Final

import kopf

from finetune_api import meta
from finetune_operator.controller import CHILD_SELECTOR, Controller
from finetune_operator.framework.cache import CHILDREN
from finetune_operator.framework.objects import Resource
from finetune_operator.kinds import CUSTOM_RESOURCES

MAX_QUEUE_AGE: Final = 300.0
"""Seconds that a key may wait for its turn before the operator counts as stuck."""


class _NoDiffBase(kopf.DiffBaseStorage):
    """Kopf copies each object on each event to find out what changed, which nobody here asks for."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def configure(settings: kopf.OperatorSettings) -> None:
    """Kopf's settings: nothing is written to objects, and only our own children are streamed."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{meta.GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=meta.GROUP)
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.scanning.disabled = True
    for resource in CHILDREN:
        group = resource.api_version.rpartition("/")[0]
        settings.watching.label_selectors[group, resource.plural] = CHILD_SELECTOR


def register(registry: kopf.OperatorRegistry, controller: Controller) -> None:
    """Connect Kopf's streams and probes with the controller."""

    @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def start(**_: Any) -> None:
        controller.start()

    @kopf.on.cleanup(registry=registry)
    def stop(**_: Any) -> None:
        controller.stop()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.probe(registry=registry)
    def queue_age_seconds(**_: Any) -> float:
        age = controller.queue.age()
        if age > MAX_QUEUE_AGE:
            raise RuntimeError(f"a resource has been waiting for {age:.0f} s")
        return age

    @kopf.on.probe(registry=registry)
    def event_age_seconds(**_: Any) -> float:
        return controller.event_age()

    for resource in (*CUSTOM_RESOURCES, *CHILDREN):
        _watch(registry, controller, resource)


def _watch(registry: kopf.OperatorRegistry, controller: Controller, resource: Resource) -> None:
    group, _, version = resource.api_version.rpartition("/")

    @kopf.on.event(group, version, resource.plural, registry=registry, id=f"watch-{resource.plural}")
    async def enqueue(event: Mapping[str, Any], **_: Any) -> None:
        controller.seen(resource, event["type"] == "DELETED", dict(event["object"]))
