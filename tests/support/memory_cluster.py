"""A cluster in memory for FineTuneJobs: the API's object semantics, and a Job controller and kubelet of a few lines.

For walks of many random steps, where a real API server would be too slow; what the API server itself does is tested
against a real one (tests/controlplane). Watch events are delivered when the walk says so: the operator's cache may lag
behind by any number of events.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import meta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.freeze import made
from finetune_api.job_status import FineTuneJobStatus
from finetune_api.stages import StageInput
from finetune_operator.framework.cache import CHILDREN, Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, PODS, SERVICE_ACCOUNTS, Object, Resource
from finetune_operator.kinds import FINETUNEJOBS
from tests.support.copies import copied
from tests.support.fake_node import Ending, Store

NAMESPACE = "team"
START = datetime(2026, 1, 1, tzinfo=UTC)


class Crash(BaseException):
    """The operator's process ends here."""


@dataclass
class MemoryCluster:
    """Objects, and the KubeClient that reads and writes them."""

    store: Store = field(default_factory=Store)
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    stream: list[tuple[Resource, bool, Object]] = field(default_factory=list)
    """Watch events that were not delivered yet: resource, whether it is gone, object."""
    now: datetime = START
    crash_in: int = 0
    """Writes until the process ends; 0: it does not."""
    overlaps: list[str] = field(default_factory=list)
    """Moments at which two pods could run at the same time."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # The KubeClient.

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return copied(self.objects.get((resource.kind, name)))

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        return [copied(found) for (kind, _), found in self.objects.items() if kind == resource.kind]

    def create(self, resource: Resource, body: Object) -> Object:
        name = body["metadata"]["name"]
        if (resource.kind, name) in self.objects:
            raise ApiError(409, "AlreadyExists", f"{name} exists")
        stored = copied(body)
        stored["metadata"] |= {"uid": f"uid-{next(self._numbers)}", "creationTimestamp": timestamp(self.now)}
        stored["metadata"] |= {"generation": 1}
        stored.setdefault("status", {})
        return self._written(self._put(resource, stored))

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        raise AssertionError("FineTuneJobs apply nothing")

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._patch(resource, name, body)

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._patch(resource, name, body)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        found = self.objects.get((resource.kind, name))
        if found is not None and found["metadata"]["uid"] == uid:
            self.remove(resource, name)
            self._written(found)

    # What people and the rest of the cluster do.

    def remove(self, resource: Resource, name: str) -> None:
        """An object goes, and what it owns with it. An ended pod is counted by its Job first: a finalizer holds it."""
        if resource == PODS:
            self._count(self.objects[PODS.kind, name])
        gone = self.objects.pop((resource.kind, name))
        self.stream.append((resource, True, gone))
        for pod in self._owned_pods(gone["metadata"]["uid"]):
            self.remove(PODS, pod["metadata"]["name"])

    def change_spec(self, name: str, **spec: Any) -> None:
        """Somebody edits a FineTuneJob; refused as the API server does while a stage is at work."""
        found = self.objects[FINETUNEJOBS.kind, name]
        changed = copied(found)
        changed["spec"] |= spec
        before, after = (made(FineTuneJobSpec.model_validate(each["spec"])) for each in (found, changed))
        if before != after and FineTuneJobStatus.model_validate(found["status"]).at_work:
            return
        changed["metadata"]["generation"] += 1
        self._put(FINETUNEJOBS, changed)

    def controllers(self) -> None:
        """The Job controller: a pod for each Job that should have one, the Job's end when the pod has ended."""
        for job in [found for (kind, _), found in self.objects.items() if kind == JOBS.kind]:
            self._control(copied(job))
        pods = [found for (kind, _), found in self.objects.items() if kind == PODS.kind]
        running = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        if len(running) > 1:
            self.overlaps.append(", ".join(running))

    def kubelet(self, ending: Ending | None = None) -> None:
        """Every pod goes one step on: it starts, or it ends (as its stage does, or as given)."""
        for pod in self.pods():
            if pod["status"]["phase"] == "Pending":
                self._put(PODS, pod | {"status": {"phase": "Running", "podIP": ""}})
            elif pod["status"]["phase"] == "Running":
                given = self.objects.get((CONFIG_MAPS.kind, pod["spec"]["volumes"][1]["configMap"]["name"]))
                if given is not None:
                    parsed = StageInput.model_validate_json(given["data"]["input.json"], extra="ignore")
                    self._end(pod, ending or self.store.run(parsed))

    def version(self) -> list[str]:
        """Changes with every write to any object."""
        return [found["metadata"]["resourceVersion"] for found in self.objects.values()]

    def pods(self) -> list[Object]:
        """All pods."""
        return self.select(PODS, NAMESPACE)

    def _count(self, pod: Object) -> None:
        uids = {owner["uid"] for owner in pod["metadata"]["ownerReferences"]}
        jobs = [found for (kind, _), found in self.objects.items() if kind == JOBS.kind]
        for job in jobs if pod["status"]["phase"] in ("Succeeded", "Failed") else ():
            if job["metadata"]["uid"] in uids:
                self._control(copied(job))

    def _control(self, job: Object) -> None:
        conditions = {each["type"] for each in job["status"].get("conditions", [])}
        if conditions & {"Complete", "Failed"}:
            return
        pods = self._owned_pods(job["metadata"]["uid"])
        active = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        ended = {pod["status"]["phase"] for pod in pods} & {"Succeeded", "Failed"}
        if ended:
            kind = "Complete" if "Succeeded" in ended else "Failed"
            self._job_status(job, {"conditions": [{"type": kind, "status": "True", "reason": "", "message": kind}]})
        elif job["spec"].get("suspend"):
            for pod in active:
                self.remove(PODS, pod["metadata"]["name"])
        elif not active:
            self._new_pod(job)
            self._job_status(job, {"active": 1, "startTime": timestamp(self.now)})

    def _new_pod(self, job: Object) -> None:
        owner = {"uid": job["metadata"]["uid"], "controller": True, "kind": "Job", "name": job["metadata"]["name"]}
        metadata = {
            "name": f"{job['metadata']['name']}-{next(self._numbers)}",
            "namespace": NAMESPACE,
            "uid": f"uid-{next(self._numbers)}",
            "creationTimestamp": timestamp(self.now),
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [owner],
        }
        pod = {"metadata": metadata, "spec": job["spec"]["template"]["spec"], "status": {"phase": "Pending"}}
        self._put(PODS, pod)

    def _end(self, pod: Object, ending: Ending) -> None:
        message = ending.result.model_dump_json(by_alias=True) if ending.result else ""
        ended = {"exitCode": ending.exit_code, "reason": ending.reason, "message": message}
        phase = "Failed" if ending.exit_code else "Succeeded"
        statuses = [{"name": "stage", "state": {"terminated": ended}}]
        self._put(PODS, pod | {"status": {"phase": phase, "containerStatuses": statuses}})

    def _job_status(self, job: Object, status: Object) -> None:
        self._put(JOBS, job | {"status": job["status"] | status})

    def _owned_pods(self, uid: str) -> list[Object]:
        pods = [found for (kind, _), found in self.objects.items() if kind == PODS.kind]
        return [copied(pod) for pod in pods if pod["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _put(self, resource: Resource, found: Object) -> Object:
        found = copied(found)
        found["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[resource.kind, found["metadata"]["name"]] = found
        self.stream.append((resource, False, copied(found)))
        self.now += timedelta(milliseconds=100)
        return copied(found)

    def _patch(self, resource: Resource, name: str, body: Object) -> Object:
        found = self.objects.get((resource.kind, name))
        if found is None:
            raise ApiError(404, "NotFound", f"{name} not found")
        expected = body.get("metadata", {}).get("resourceVersion")
        if expected is not None and expected != found["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        changed = copied(found)
        for part in ("spec", "status"):
            changed[part] = merged(changed.get(part) or {}, body.get(part) or {})
        annotations = body.get("metadata", {}).get("annotations") or {}
        changed["metadata"]["annotations"] = merged(changed["metadata"].get("annotations") or {}, annotations)
        return self._written(self._put(resource, changed))

    def _written(self, result: Object) -> Object:
        """A write of the operator has arrived; its answer may not."""
        if self.crash_in:
            self.crash_in -= 1
            if self.crash_in == 0:
                raise Crash
        return result


def merged(value: Object, patch: Object) -> Object:
    """A JSON merge patch applied (RFC 7386)."""
    result = dict(value)
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        elif isinstance(change, dict):
            before = result.get(key)
            result[key] = merged(before if isinstance(before, dict) else {}, change)
        else:
            result[key] = change
    return result


def read_all(cache: Cache, cluster: MemoryCluster) -> None:
    """A LIST of everything that an operator watches, as its informers do it."""
    for resource in (FINETUNEJOBS, *CHILDREN):
        asked = cache.moment()
        for found in cluster.select(resource, None):
            cache.record(resource, found, asked)
        cache.sweep(resource, None, asked)


def fine_tune_job(name: str = "walk") -> Object:
    """A FineTuneJob as people write it."""
    spec = {
        "profile": "small",
        "model": {"uri": "s3://models/base"},
        "dataset": {"sources": [{"uri": "s3://data/rows.csv"}]},
        "output": {"uri": "s3://artifacts/team", "name": name},
    }
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": meta.API_VERSION, "kind": meta.FINETUNEJOB, "metadata": metadata, "spec": spec}


def runner() -> Object:
    """The ServiceAccount of stage pods."""
    return {"metadata": {"name": "finetune-runner", "namespace": NAMESPACE}, "kind": SERVICE_ACCOUNTS.kind}
