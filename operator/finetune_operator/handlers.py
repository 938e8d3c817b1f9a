"""Everything that Kopf is told: how to log in, what to do at start and end, what is healthy. It runs the process.

It watches nothing: the informers do (docs/decisions/0017-informers-of-our-own.md).

One event, followed through the operator: the pod that trains has ended, and a watch stream shows it.

1. The informer of pods (``framework/informer.py``) passes it to ``Controller.seen``, which records the pod in
   ``framework/cache.py``, reads the name of its FineTuneJob from its labels (``framework/ownership.py``) and adds that
   key to ``framework/workqueue.py``.
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

from collections.abc import Callable
from typing import Any, Final

import kopf

from finetune_operator.controller import Controller
from finetune_operator.framework.lease import Elector

MAX_STANDSTILL: Final = 300.0
"""Seconds without the end of any reconciliation, while there is one to do, before the operator is restarted. A long
queue that moves is no reason: its length is a metric."""
MAX_SYNC_AGE: Final = 1800.0
"""Seconds without a word about a kind. Informers go on by themselves, so a restart is the last resort: it helps if this
process lost its credentials or its network, and not if the API server is down."""
MAX_RESYNC_DELAY: Final = 600.0
"""Seconds by which a resync may be late."""


def configure(settings: kopf.OperatorSettings) -> None:
    """Kopf's settings: no peers, no events, no look at what the cluster offers."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.scanning.disabled = True


def register(
    registry: kopf.OperatorRegistry,
    controller: Controller,
    elector: Elector | None,
    lost: Callable[[], None],
    ended: Callable[[], None],
) -> None:
    """Connect Kopf to the controller: start, end and probes.

    ``lost`` is called when another replica must take over, and ``ended`` when everything has come to its end. It must
    set Kopf's stop flag: Kopf would wait for that five seconds more.
    """

    @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def start(**_: Any) -> None:
        controller.start()
        if elector is None:
            controller.lead()
        else:
            elector.start(controller.lead, lost)

    @kopf.on.cleanup(registry=registry)
    def stop(**_: Any) -> None:
        all_done = controller.stop()
        if elector is not None:
            elector.stop(release=all_done)
        ended()

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
    def sync_age_seconds(**_: Any) -> dict[str, float]:
        ages = controller.sync_ages()
        if late := [kind for kind, age in ages.items() if age > MAX_SYNC_AGE]:
            raise RuntimeError(f"the API server has said nothing for {MAX_SYNC_AGE:.0f} s about {', '.join(late)}")
        return ages

    @kopf.on.probe(registry=registry)
    def resync_delay_seconds(**_: Any) -> float:
        delay = controller.resync_delay()
        if delay > MAX_RESYNC_DELAY:
            raise RuntimeError(f"the resync is {delay:.0f} s late")
        return delay
