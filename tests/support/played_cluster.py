"""A cluster in memory: the API server, the controllers of Deployments and of endpoints, and the kubelet."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_operator.adapterdeployment.pod_problems import is_ready
from finetune_operator.framework.actions import Action, Apply, Create, Delete, Patch
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, SERVICES, Object, Resource
from finetune_operator.framework.ownership import controller_uid
from tests.support.copies import copied
from tests.support.played_pods import FATES, NEVER_READY, UNSCHEDULABLE, pod_status, served, server_pod

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class PlayedCluster:
    """Objects, their pods and the time."""

    now: datetime = START
    objects: dict[Resource, dict[str, Object]] = field(default_factory=dict)
    pods: dict[str, list[Object]] = field(default_factory=dict)
    """Pods by the name of their Deployment or Job."""
    slices: dict[str, Object] = field(default_factory=dict)
    """EndpointSlices by the name of their Service."""
    room: int = 1000
    """So many pods find a node."""
    loading: set[str] = field(default_factory=set)
    """Digests of artifacts whose servers never finish loading."""
    _sequence: int = 0
    _writes: int = 0
    """Actions that have changed an object."""

    def apply_action(self, action: Action) -> None:
        """What the API server does with an action."""
        kind = self.objects.setdefault(action.resource, {})
        before = dict(kind)
        match action:
            case Create(_, body):
                name = body["metadata"]["name"]
                assert name not in kind, f"{name} is created twice"
                kind[name] = self._stored(body)
            case Apply(_, body):
                name = body["metadata"]["name"]
                kind[name] = self._updated(kind[name], body)
            case Patch(_, name, body):
                kind[name] = self._updated(kind[name], body)
            case Delete(_, name, uid):
                assert kind[name]["metadata"]["uid"] == uid
                del kind[name]
                self.pods.pop(name, None)
        self._writes += kind != before

    def _stored(self, body: Object) -> Object:
        self._sequence += 1
        stored = copied(body)
        stored["metadata"] |= {
            "uid": f"uid-{self._sequence}",
            "generation": 1,
            "creationTimestamp": timestamp(self.now),
        }
        return stored

    def _updated(self, live: Object, body: Object) -> Object:
        merged: Object = _merge(live, body)
        if merged.get("spec") != live.get("spec"):
            merged["metadata"]["generation"] = live["metadata"]["generation"] + 1
        return merged

    def run_deployments(self) -> None:
        """Deployments alone: a verification takes its time."""
        for name, deployment in self.objects.get(DEPLOYMENTS, {}).items():
            self._run_deployment(name, deployment)

    def run_endpoints(self) -> None:
        """The controller of endpoints: each Service's are the pods that it selects."""
        pods = [pod for name in self.objects.get(DEPLOYMENTS, {}) for pod in self.pods.get(name, [])]
        services = self.objects.get(SERVICES, {})
        self.slices = {name: self._endpoints(name, service, pods) for name, service in services.items()}

    def _endpoints(self, name: str, service: Object, pods: list[Object]) -> Object:
        known, owner = self.slices.get(name), {"uid": service["metadata"]["uid"], "controller": True}
        metadata = {"creationTimestamp": timestamp(self.now), "ownerReferences": [owner]}
        if known is not None and controller_uid(known) == owner["uid"]:
            metadata = known["metadata"]
        selected = [pod for pod in pods if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        endpoints = [
            {"targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}, "conditions": {"ready": is_ready(pod)}}
            for pod in selected
        ]
        return {"metadata": metadata, "endpoints": endpoints}

    def _run_deployment(self, name: str, deployment: Object) -> None:
        digest, wanted = served(deployment["spec"]["template"]["spec"]), deployment["spec"]["replicas"]
        labels, pods = deployment["spec"]["template"]["metadata"]["labels"], self.pods.get(name, [])[:wanted]
        self.pods[name] = pods
        for number in range(len(pods), wanted):
            pods.append(server_pod(name, f"{name}-{number}", labels, copied(UNSCHEDULABLE)))
            pods[-1]["metadata"]["creationTimestamp"] = timestamp(self.now)
        for pod in pods:
            waits = "startTime" not in pod["status"] and self.held() < self.room
            if waits or (pod["metadata"].pop("loads", False) and digest not in self.loading):
                pod["status"] = self._started(digest)
            if "startTime" in pod["status"] and digest in self.loading and not is_ready(pod):
                pod["metadata"]["loads"] = True
        ready = sum(map(is_ready, pods))
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": wanted,
            "updatedReplicas": wanted,
            "readyReplicas": ready,
            "availableReplicas": ready,
        }

    def _started(self, digest: str) -> Object:
        """The status of a pod that has a node."""
        fate = FATES[digest]
        ready = fate not in NEVER_READY and digest not in self.loading
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": timestamp(self.now)}
        self._sequence += 1
        running = {"phase": "Running", "podIP": f"10.0.0.{self._sequence}", "startTime": timestamp(self.now)}
        return pod_status(fate) | running | {"conditions": [condition]}

    def held(self) -> int:
        """Serving pods that have a node."""
        return sum(map(self.held_by, self.objects.get(DEPLOYMENTS, {})))

    def held_by(self, deployment: str) -> int:
        """Pods of a Deployment that have a node."""
        return sum("startTime" in pod["status"] for pod in self.pods.get(deployment, []))


def _merge(live: Any, body: Any) -> Any:
    if isinstance(live, dict) and isinstance(body, dict):
        # Selectors are replaced as a whole.
        return live | {k: copied(v) if k == "selector" else _merge(live.get(k), v) for k, v in body.items()}
    return copied(body)
