"""The test plays kubelet for serving pods: what happens to a pod depends on the artifact that it was to serve.

The API server and the controllers of Deployments and ReplicaSets are real.
"""

from __future__ import annotations

import threading
from typing import Any

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_operator.actions import PODS, Object
from finetune_operator.kube import ApiError, KubeClient
from finetune_operator.resources.deployment import SERVER
from tests.support.serving import pod_status, served

_REPORTED = {"image": "example/image", "imageID": ""}


class FakeServers:
    """Runs the serving pods of one namespace in a thread of its own. Use as a context manager."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.fates: dict[str, Reason | None] = {}
        """Why pods with an artifact fail, by its digest; others become ready."""
        self.loading: set[str] = set()
        """Digests of artifacts whose servers never finish loading."""
        self._client = client
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.trouble: BaseException | None = None

    def __enter__(self) -> FakeServers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        if self.trouble is not None:
            raise self.trouble

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.05):
                for pod in self._client.select(PODS, self._namespace, f"{meta.LABEL_ROLE}={SERVER}"):
                    if "containerStatuses" not in pod["status"]:
                        self._begin(pod)
        except BaseException as error:  # noqa: BLE001 - told to the test when it leaves the context
            self.trouble = error

    def _begin(self, pod: Object) -> None:
        digest = served(pod["spec"])
        if digest in self.loading:
            return
        fate = self.fates.get(digest)
        try:
            self._client.patch_status(PODS, self._namespace, pod["metadata"]["name"], {"status": _complete(fate)})
        except ApiError as error:
            if error.status not in (404, 409):
                raise


def _complete(fate: Reason | None) -> Object:
    """``pod_status`` with all that the API server insists on."""
    status = pod_status(fate)
    ready = fate not in (Reason.ARTIFACT_CORRUPT, Reason.CANDIDATE_FAILED)
    containers: dict[str, Any] = {
        kind: [_REPORTED | {"ready": ready} | each for each in status.get(kind, [])]
        for kind in ("initContainerStatuses", "containerStatuses")
    }
    condition = {"type": "Ready", "status": str(ready)}
    return containers | {"phase": "Running", "conditions": [condition]}
