"""What the cache keeps of an object: enough for every verdict, and little of it."""

from __future__ import annotations

import copy
import json

import pytest

from finetune_api import meta
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, ENDPOINT_SLICES, JOBS, PODS, Object, Resource
from finetune_operator.framework.stripped import pack, strip, unpack
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.resources.drift import has_content
from finetune_operator.resources.stage_job import input_config_map, stage_job
from tests.unit.test_operator_objects import request

pytestmark = pytest.mark.unit

NOISE = {
    "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
    "selfLink": "/apis",
    "finalizers": ["batch.kubernetes.io/job-tracking"],
}
ENDED = {"terminated": {"exitCode": 0, "message": "{}", "containerID": "containerd://1"}}


def finished() -> tuple[Object, Object]:
    """A Job and its pod as the API server shows them."""
    job = stage_job(request())
    job["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"} | NOISE
    job["status"] = {"succeeded": 1, "ready": 0, "uncountedTerminatedPods": {}, "conditions": [{"type": "Complete"}]}
    spec = job["spec"]["template"]["spec"]
    pod = {"metadata": dict(job["metadata"]), "spec": spec, "status": {"phase": "Succeeded", "podIPs": [{"ip": "::"}]}}
    pod["status"]["containerStatuses"] = [{"name": "stage", "state": ENDED, "imageID": "sha256:1", "started": False}]
    return job, pod


def test_what_a_verdict_needs_of_a_job_and_its_pod() -> None:
    job, pod = finished()
    template = {"metadata": job["spec"]["template"]["metadata"], "spec": {}}
    assert strip(JOBS, job)["spec"] == {"template": template}
    assert strip(JOBS, job)["status"] == {"succeeded": 1, "conditions": [{"type": "Complete"}]}
    assert strip(PODS, pod)["status"] == {
        "phase": "Succeeded",
        "containerStatuses": [{"name": "stage", "state": ENDED, "started": False}],
    }
    assert strip(PODS, pod)["spec"] == {"terminationGracePeriodSeconds": 60, "containers": [{"name": "stage"}]}


@pytest.mark.parametrize("resource", [JOBS, PODS, DEPLOYMENTS, ENDPOINT_SLICES, FINETUNEJOBS])
def test_metadata_are_kept_as_far_as_they_are_read(resource: Resource) -> None:
    """And what is given stays as it is."""
    found = finished()[0]
    found["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "yes"}
    before = copy.deepcopy(found)
    metadata = strip(resource, found)["metadata"]
    assert metadata == {name: value for name, value in found["metadata"].items() if name not in NOISE} | {
        "annotations": {"mine": "yes"}
    }
    assert metadata["labels"][meta.LABEL_OWNER_NAME]
    assert found == before


def test_what_is_compared_with_what_is_wanted_stays_whole() -> None:
    found = {"metadata": {"name": "d"}, "spec": {"template": {"spec": {"any": ["thing"]}}}, "status": {"replicas": 1}}
    assert strip(DEPLOYMENTS, found) == found


def test_of_an_input_hashes_are_kept() -> None:
    """They tell whether it is still what the operator wrote."""
    wanted = input_config_map(request())
    kept = strip(CONFIG_MAPS, wanted)
    assert kept.keys() == {"metadata", "immutable", "data"}
    assert len(kept["data"]["input.json"]) == 64, "a shorter one can be met on purpose"
    assert has_content(kept, wanted)
    other = wanted | {"data": {"input.json": wanted["data"]["input.json"].replace("s3", "s4")}}
    assert not has_content(strip(CONFIG_MAPS, other), wanted)
    assert not has_content(strip(CONFIG_MAPS, {"metadata": wanted["metadata"]}), wanted)


def test_endpoints_are_kept_without_addresses() -> None:
    endpoint = {"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": "p"}}
    found = {"metadata": {"name": "s"}, "endpoints": [endpoint], "ports": []}
    assert strip(ENDPOINT_SLICES, found)["endpoints"] == [{"conditions": {"ready": True}, "targetRef": {"name": "p"}}]
    assert strip(ENDPOINT_SLICES, {"metadata": {"name": "s"}, "endpoints": None})["endpoints"] is None


def test_a_pair_of_job_and_pod_takes_a_fifth() -> None:
    for resource, found in zip((JOBS, PODS), finished(), strict=True):
        packed = pack(resource, found)
        assert unpack(packed) == strip(resource, found)
        assert len(packed) < len(json.dumps(found)) / 5
