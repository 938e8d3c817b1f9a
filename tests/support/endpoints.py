"""An AdapterDeployment on the local cluster, in a team's namespace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from finetune_api import meta
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from hack.cluster.console import ClusterError
from hack.platform import object_store
from hack.platform.kubectl import Kubectl, Object, wait_for

NAME: Final = "demo"


@dataclass(frozen=True)
class Endpoint:
    """One AdapterDeployment in a team's namespace, on a runtime of the operator's."""

    team: Kubectl
    runtime: str = "tgi-cpu"
    name: str = NAME

    def serve(self, uri: str, **spec: Any) -> None:
        """Ask for an artifact to be served."""
        self.serve_from(self.artifact(uri), **spec)

    @staticmethod
    def artifact(uri: str) -> Object:
        """An artifact of the cluster's store, as a source."""
        storage = {"endpoint": object_store.ENDPOINT, "secretRef": {"name": "s3-credentials"}}
        return {"artifact": {"uri": uri, "storage": storage}}

    def serve_from(self, source: Object, **spec: Any) -> None:
        """Ask for a source to be served."""
        self.team.apply(
            {
                "apiVersion": meta.API_VERSION,
                "kind": meta.ADAPTERDEPLOYMENT,
                "metadata": {"name": self.name},
                "spec": {"source": source, "runtime": self.runtime} | spec,
            }
        )

    def until(self, phase: ServingPhase, timeout: float = 1200) -> AdapterDeploymentStatus:
        """Wait until the present spec has come to a phase; the status. Raises ClusterError after ``timeout`` seconds,
        or when what it asks for has failed instead."""

        def reached() -> AdapterDeploymentStatus | None:
            status = self.status()
            if status is None or status.phase is phase:
                return status
            if (candidate := status.candidate) and candidate.state is RevisionState.FAILED:
                raise ClusterError(f"{self.name} is {status.phase}, not {phase}: {candidate.message}")
            return None

        return wait_for(f"{self.name} to be {phase}", reached, timeout)

    def status(self) -> AdapterDeploymentStatus | None:
        """The status; None while it does not describe the present spec."""
        found = self.team.get("adep", self.name)
        status = AdapterDeploymentStatus.model_validate(found.get("status") or {})
        return status if status.observed_generation == found["metadata"]["generation"] else None
