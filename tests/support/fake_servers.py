"""The test plays scheduler and kubelet for serving pods: what happens to one depends on the artifact it is to serve.

The API server and the controllers of Deployments, ReplicaSets and endpoints are real.
"""

from __future__ import annotations

import contextlib
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import NotFoundException

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_operator.framework.client import ApiError, StreamClient
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import Object, Resource
from finetune_operator.resources.deployment import SERVER
from tests.support.played_kubelet import PlayedKubelet
from tests.support.played_pods import NEVER_READY, UNSCHEDULABLE, pod_status, served

NODE = "servers"
"""Where the pods run. The controller of endpoints wants a Node of the name to exist."""
_BINDINGS = Resource("v1", "Binding", "bindings")
_LATE = frozenset({Reason.DEADLINE_EXCEEDED, Reason.IMAGE_PULL_FAILED})
"""What a pod fails by once it has had its node for long: it has had it for a day."""
_REPORTED = {"image": "example/image", "imageID": ""}


class FakeServers(PlayedKubelet):
    """Runs the serving pods of one namespace in a thread of its own. Use as a context manager."""

    def __init__(self, api: StreamClient, pods: client.CoreV1Api, namespace: str) -> None:
        super().__init__(api, namespace, f"{meta.LABEL_ROLE}={SERVER}")
        self.fates: dict[str, Reason | None] = {}
        """Why new pods with an artifact fail, by its digest; others become ready, and so do those whose cause goes."""
        self.loading: set[str] = set()
        """Digests of artifacts whose servers never finish loading."""
        self.homeless: set[str] = set()
        """Digests of artifacts whose pods find no node."""
        self._pods = pods
        self._failed: dict[str, Reason] = {}
        """What keeps pods from being ready, by their uid."""
        self._addresses = (f"10.9.{number // 200}.{number % 200 + 1}" for number in itertools.count())

    def _step(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            self._end(pod)
        elif "containerStatuses" not in pod["status"] or self._recovers(pod):
            self._begin(pod)

    def _recovers(self, pod: Object) -> bool:
        """Whether what kept a pod from being ready has gone."""
        failed = self._failed.get(pod["metadata"]["uid"])
        return failed is not None and self.fates.get(served(pod["spec"])) is not failed

    def _end(self, pod: Object) -> None:
        with contextlib.suppress(NotFoundException):  # one that no node had is gone by itself
            self._pods.delete_namespaced_pod(pod["metadata"]["name"], self._namespace, grace_period_seconds=0)

    def _begin(self, pod: Object) -> None:
        digest = served(pod["spec"])
        if digest in self.loading:
            return
        if digest in self.homeless:
            self._refuse(pod)
            return
        fate = self.fates.get(digest)
        name, address = pod["metadata"]["name"], pod["status"].get("podIP") or next(self._addresses)
        status = _complete(fate) | {"podIP": address}
        try:
            if not pod["spec"].get("nodeName"):
                self._api.create(_BINDINGS, _binding(self._namespace, name))
            self._write(pod, status)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        self._failed.pop(pod["metadata"]["uid"], None)
        if fate in NEVER_READY:
            self._failed[pod["metadata"]["uid"]] = fate

    def _refuse(self, pod: Object) -> None:
        """What the scheduler says of a pod that no node has room for."""
        if not pod["spec"].get("nodeName") and not pod["status"].get("conditions"):
            self._write(pod, UNSCHEDULABLE)


def _binding(namespace: str, pod: str) -> Object:
    target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
    metadata = {"name": pod, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}


def _complete(fate: Reason | None) -> Object:
    """``pod_status`` with all that the API server insists on."""
    status = pod_status(fate)
    ready = fate not in NEVER_READY
    containers: dict[str, Any] = {
        kind: [_REPORTED | {"ready": ready} | each for each in status.get(kind, [])]
        for kind in ("initContainerStatuses", "containerStatuses")
    }
    age = timedelta(days=1) if fate in _LATE else timedelta()
    now = timestamp(datetime.now(UTC) - age)
    conditions = [
        {"type": kind, "status": value, "lastTransitionTime": now}
        for kind, value in (("PodScheduled", "True"), ("Ready", str(ready)))
    ]
    return containers | {"phase": "Running", "startTime": now, "conditions": conditions}
