"""Thousands of custom resources that have reached their end, with their children, in an API server's etcd.

One FineTuneJob runs through, on a control plane of its own with a test's kubelet; the others are copies of it and of
all that it has left behind, with their own names and uids. AdapterDeployments are made by the operator's own plan, each
on a cluster in memory, because the revision in their children's names is a hash of their own name too. The copies are
written to etcd directly: through the API server, 70,000 objects with a status each would take longer than the rest.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kubernetes import client, config

from finetune_api import meta
from finetune_api.base import ObjectMeta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import Phase
from finetune_operator.adapterdeployment.revision import revision_of
from finetune_operator.adapterdeployment.target import find_target
from finetune_operator.adapterdeployment.verification import verify_request
from finetune_operator.blockers import Blocker
from finetune_operator.finetunejob.observe import spec_hash
from finetune_operator.framework.client import HttpKubeClient, KubeClient, StreamClient
from finetune_operator.framework.objects import ENDPOINT_SLICES, JOBS, PODS, SERVICES, Object, Resource
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS
from finetune_operator.resources.deployment import fetch_request
from finetune_operator.settings import Settings
from hack.cluster.controlplane import ControlPlane
from hack.platform.kubectl import wait_for

NAMESPACE = "default"
TEMPLATE = "template-job"
MOST_OPERATIONS, MOST_BYTES = 100, 700_000
"""Of one transaction: etcd takes 128 and 1.5 MB, a third of it for base64."""
Found = tuple[Resource, Object]


def api_of(plane: ControlPlane) -> HttpKubeClient:
    """A client of a control plane, as its administrator."""
    configuration = client.Configuration()
    config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    return HttpKubeClient(configuration, 8)


def finished_job(api: StreamClient, job: Object) -> list[Found]:
    """Run a FineTuneJob to its end; it, its Jobs and their pods, as the API server shows them."""
    from tests.support.fake_node import FakeNode

    def ended() -> Object | None:
        found = api.get(FINETUNEJOBS, NAMESPACE, TEMPLATE)
        return found if found and (found.get("status") or {}).get("phase") == Phase.SUCCEEDED else None

    with FakeNode(api, NAMESPACE, address="127.0.0.1"):
        api.create(FINETUNEJOBS, job)
        found = [(FINETUNEJOBS, wait_for("the template to succeed", ended, 300))]
        wait_for("its Jobs to complete", lambda: _all_complete(api.select(JOBS, NAMESPACE)), 120)
    for resource in (JOBS, PODS):
        children = api.select(resource, NAMESPACE, f"{meta.LABEL_OWNER_NAME}={TEMPLATE}")
        found += [(resource, {"apiVersion": resource.api_version, "kind": resource.kind} | each) for each in children]
    return found


def job_copies(template: list[Found], count: int) -> Iterator[Found]:
    """Copies of a FineTuneJob and its children, with other names, uids and outputs, and the hash of such a spec: with
    the template's, the operator would have to write each status once."""
    texts = [(resource, json.dumps(found)) for resource, found in template]
    uids = [found["metadata"]["uid"] for _, found in template]
    [job] = (found for resource, found in template if resource == FINETUNEJOBS)
    for number in range(count):
        new = {uid: str(uuid.uuid4()) for uid in uids} | {TEMPLATE: f"job-{number:05}"}
        spec = FineTuneJobSpec.model_validate(_renamed(json.dumps(job["spec"]), new))
        new[job["status"]["run"]["specHash"]] = spec_hash(spec)
        for resource, text in texts:
            yield resource, _renamed(text, new)


def serving_copies(api: KubeClient, settings: Settings, count: int) -> Iterator[Found]:
    """AdapterDeployments that serve, with their children. Their Services are created: they need an address."""
    from tests.support.played_pods import GOOD
    from tests.support.serving import ServingCluster
    from tests.support.serving_specs import pinned

    cluster = ServingCluster(spec=pinned(GOOD), settings=settings, namespace=NAMESPACE)
    cluster.settle()
    observed = cluster.observe()
    target = find_target(observed)
    assert not isinstance(target, Blocker)
    before = [target.revision, fetch_request(observed.owner, target.serving, settings, target.revision).name]
    before.append(verify_request(observed, target).name)
    pods = [(PODS, pod) for pods in cluster.pods.values() for pod in pods]
    slices = [
        (ENDPOINT_SLICES, _endpoint_slice(cluster.objects[SERVICES][name], each))
        for name, each in cluster.slices.items()
    ]
    children = [(resource, each) for resource, found in cluster.objects.items() for each in found.values()]
    status = cluster.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    raw = {
        "metadata": {"name": "demo", "namespace": NAMESPACE, "uid": "uid-of-demo", "generation": 1},
        "spec": cluster.spec,
    }
    for number in range(count):
        metadata = ObjectMeta(name=f"endpoint-{number:04}", namespace=NAMESPACE, uid=str(uuid.uuid4()))
        own = replace(observed, resource=observed.resource.model_copy(update={"metadata": metadata}))
        revision = revision_of(own, target.serving)
        fetch = fetch_request(own.owner, target.serving, settings, revision).name
        asked = replace(target, record=replace(target.record, revision=revision))
        verify = verify_request(own, asked).name
        new = dict(zip(before, (revision, fetch, verify), strict=True))
        new |= {"uid-of-demo": metadata.uid, "demo": metadata.name}
        yield ADAPTERDEPLOYMENTS, _renamed(json.dumps(raw | {"status": status}), new)
        uids: dict[str, str] = {}
        for resource, child in children:
            mine = _renamed(json.dumps(child), new)
            if resource == SERVICES:
                mine = api.create(SERVICES, mine)
            else:
                mine["metadata"]["uid"] = str(uuid.uuid4())
            uids[child["metadata"]["uid"]] = mine["metadata"]["uid"]
            if resource != SERVICES:
                yield resource, mine
        for resource, child in (*pods, *slices):
            mine = _renamed(json.dumps(child), new)
            for reference in mine["metadata"]["ownerReferences"]:
                reference["uid"] = uids.get(reference["uid"], reference["uid"])
            yield resource, mine


def _renamed(text: str, new: dict[str, str]) -> Object:
    """The object of a JSON text with each of the words replaced; where one begins with another, the longer one is."""
    words = re.compile("|".join(map(re.escape, sorted(new, key=len, reverse=True))))
    renamed: Object = json.loads(words.sub(lambda match: new[match[0]], text))
    return renamed


def _endpoint_slice(service: Object, found: Object) -> Object:
    """As the controller of endpoints makes it: with the labels of its Service."""
    metadata = {"name": f"{service['metadata']['name']}-x", "labels": service["metadata"]["labels"]}
    endpoints = [each | {"addresses": ["192.0.2.1"]} for each in found["endpoints"]]
    return {"addressType": "IPv4", "endpoints": endpoints, "metadata": found["metadata"] | metadata}


def store(plane: ControlPlane, found: Iterable[Found]) -> int:
    """Write objects to etcd; the number."""
    batch: list[dict[str, object]] = []
    size = count = 0
    for resource, each in found:
        complete = _complete(resource, each)
        key, value = _key(resource, complete), json.dumps(complete)
        if batch and (len(batch) == MOST_OPERATIONS or size + len(value) > MOST_BYTES):
            _commit(plane, batch)
            batch, size = [], 0
        put = {name: base64.b64encode(text.encode()).decode() for name, text in (("key", key), ("value", value))}
        batch.append({"requestPut": put})
        size += len(value)
        count += 1
    if batch:
        _commit(plane, batch)
    return count


def _commit(plane: ControlPlane, batch: list[dict[str, object]]) -> None:
    body = json.dumps({"success": batch}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{plane.ports.etcd}/v3/kv/txn", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _key(resource: Resource, found: Object) -> str:
    """Where the API server keeps an object."""
    group = f"{meta.GROUP}/" if resource.api_version == meta.API_VERSION else ""
    return f"/registry/{group}{resource.plural}/{found['metadata']['namespace']}/{found['metadata']['name']}"


def _complete(resource: Resource, found: Object) -> Object:
    """What every stored object has."""
    metadata = {"namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"} | found["metadata"]
    metadata.setdefault("uid", str(uuid.uuid4()))
    metadata.pop("resourceVersion", None)
    return {"apiVersion": resource.api_version, "kind": resource.kind} | found | {"metadata": metadata}


def _all_complete(jobs: list[Object]) -> bool:
    return all(any(c["type"] == "Complete" for c in (job["status"].get("conditions") or [])) for job in jobs)
