"""When objects of the local cluster changed, to a fraction of a second: their own timestamps are whole seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client, config, watch

from finetune_api import meta
from hack.cluster.console import ClusterError
from hack.platform.kubectl import Kubectl, Object

Seen = tuple[float, str, Object]
"""When an object was seen (seconds since 1970), its kind, and the object."""


@dataclass
class Watched:
    """What was seen of a namespace so far, the oldest first."""

    seen: list[Seen] = field(default_factory=list)

    def first(self, kind: str, fits: Callable[[Object], Any], since: float = 0.0) -> tuple[float, Object]:
        """The first time, since then, at which an object of a kind fitted. Raises ClusterError if none did."""
        for at, found, each in list(self.seen):
            if found == kind and at >= since and fits(each):
                return at, each
        raise ClusterError(f"no {kind} was seen as expected")


@contextmanager
def watched(kubectl: Kubectl) -> Iterator[Watched]:
    """Watch pods, Jobs, Services and AdapterDeployments of a namespace."""
    config.load_kube_config(str(kubectl.kubeconfig))
    found, stop = Watched(), threading.Event()
    core, batch, custom = client.CoreV1Api(), client.BatchV1Api(), client.CustomObjectsApi()
    ours = (meta.GROUP, meta.VERSION, kubectl.namespace, meta.ADAPTERDEPLOYMENTS)
    calls: Mapping[str, tuple[Callable[..., Any], Sequence[str]]] = {
        "pod": (core.list_namespaced_pod, (kubectl.namespace,)),
        "job": (batch.list_namespaced_job, (kubectl.namespace,)),
        "service": (core.list_namespaced_service, (kubectl.namespace,)),
        "adep": (custom.list_namespaced_custom_object, ours),
    }

    def follow(kind: str, call: Callable[..., Any], arguments: Sequence[str]) -> None:
        while not stop.is_set():
            for event in watch.Watch().stream(call, *arguments, timeout_seconds=30):
                found.seen.append((time.time(), kind, event["raw_object"]))

    threads = [
        threading.Thread(target=follow, args=(kind, *call), daemon=True, name=f"watch-{kind}")
        for kind, call in calls.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join(1)
