"""Everything that Kopf is told: which streams to watch, how to log in, what is healthy. Handlers only pass things on.

Only ``on.event`` handlers: they write nothing to the objects, need no finalizer and have no state that could be lost.
Retries, which they lack, are the work queue's (docs/decisions/0003-level-triggered-kopf.md).

One event, followed through the operator: the pod that trains has ended, and Kopf's stream shows it to ``enqueue``.

1. ``Controller.seen`` records the pod in ``framework/cache.py``, reads the name of its FineTuneJob from its labels
   (``framework/ownership.py``) and adds that key to ``framework/workqueue.py``. Nothing blocks Kopf's event loop.
2. A worker thread of the controller takes the key and gives it to ``framework/reconcile.py``, which knows the rest of
   the way for either kind: observe, plan, apply, write the status, write events.
3. ``finetunejob/observe.py`` reads the FineTuneJob, its Jobs and their pods from the cache, and a few objects from the
   API. ``outcome/job.py`` reads in the pod's termination message what became of the training.
4. ``finetunejob/plan.py``, a pure function, records that in the run's ledger, finds the next step (``pipeline.py``),
   checks money (``cost.py``) and what stands in the way (``blockers.py``), and returns a plan: the ConfigMap and the
   Job of the export (``resources/``), the new status, the events, and when to look again.
5. ``framework/apply.py`` creates the objects. The cache takes in what the API server answered, so that the next pass
   sees it even if the stream is slow.
6. The reconciler writes the status, if it differs, as a patch that holds for this resource version only; then the
   events. The status comes back on the stream and is no news, but AdapterDeployments that serve this FineTuneJob get a
   turn.

A crash between any two of these steps costs nothing: the next pass observes what is there and makes the same plan. An
AdapterDeployment takes the same way through ``adapterdeployment/``.
"""

from collections.abc import Mapping
from typing import Any, Final

import kopf

from finetune_api import meta
from finetune_operator.controller import CHILD_SELECTOR, Controller
from finetune_operator.framework.cache import CHILDREN
from finetune_operator.framework.objects import Resource
from finetune_operator.kinds import CUSTOM_RESOURCES

MAX_STANDSTILL: Final = 300.0
"""Seconds without the end of any reconciliation, while there is one to do, before the operator is restarted. A long
queue that moves is no reason: its length is a metric."""


class _NoDiffBase(kopf.DiffBaseStorage):
    """Kopf would copy each object on each event to find out what changed; nothing here needs that."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def configure(settings: kopf.OperatorSettings) -> None:
    """Kopf's settings: it writes nothing to objects, and streams only the children that the operator labels."""
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
    """Connect Kopf's streams and probes to the controller."""

    @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def start(**_: Any) -> None:
        controller.start()

    @kopf.on.cleanup(registry=registry)
    def stop(**_: Any) -> None:
        controller.stop()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.probe(registry=registry, errors=kopf.ErrorsMode.PERMANENT)  # else Kopf tries again, and gives no answer
    def standstill_seconds(**_: Any) -> float:
        standstill = controller.queue.state().standstill
        if standstill > MAX_STANDSTILL:
            raise RuntimeError(f"no reconciliation has ended for {standstill:.0f} s, although some are due")
        return standstill

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
