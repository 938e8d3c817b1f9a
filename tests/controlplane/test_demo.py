"""The demo goes on after a failure and an edit: on a real API server, where the test plays the operator."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane
from hack.demo.examples import example
from hack.demo.follow import apply, follow_deployment, follow_job
from hack.platform.kubectl import Kubectl
from tests.controlplane.conftest import wait

pytestmark = pytest.mark.controlplane

EARLIER, DIGEST = "1" * 64, "2" * 64


@pytest.fixture
def namespace(plane: ControlPlane) -> Iterator[Kubectl]:
    """A namespace of its own, as the demo sees it."""
    name = f"demo-{uuid.uuid4().hex[:8]}"
    plane.kubectl("create", "namespace", name)
    yield Kubectl(toolchain.program("kubectl"), plane.kubeconfig, name)
    plane.kubectl("delete", "namespace", name, "--wait=false")


def report(kubectl: Kubectl, kind: str, name: str, **status: Any) -> None:
    """Write a status for the present generation, as the operator does."""
    generation = kubectl.get(kind, name)["metadata"]["generation"]
    patch = json.dumps({"status": {"observedGeneration": generation, **status}})
    kubectl("patch", kind, name, "--subresource=status", "--type=merge", "--patch", patch)


def published(digest: str) -> dict[str, Any]:
    """The status of a FineTuneJob that has published."""
    return {"phase": "Succeeded", "artifact": {"digest": digest, "uri": f"s3://artifacts/{digest}", "format": "INT8"}}


def served(digest: str) -> dict[str, Any]:
    """The status of an AdapterDeployment that serves."""
    revision = {
        "revision": "r",
        "state": "Serving",
        "artifactDigest": digest,
        "artifactUri": f"s3://artifacts/{digest}",
    }
    return {"phase": "Ready", "stable": revision | {"deployment": "demo-r", "since": "2026-01-01T00:00:00Z"}}


def test_a_failed_job_is_tried_again_and_one_that_runs_is_left_alone(
    namespace: Kubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    name = apply(namespace, example("finetunejob"), FineTuneJob)
    report(namespace, "ftj", name, phase="Failed")
    apply(namespace, example("finetunejob"), FineTuneJob)
    tried = namespace.get("ftj", name)
    assert tried["spec"]["rerun"]
    assert tried["metadata"]["generation"] == 2
    shown = capsys.readouterr().out
    assert f"FineTuneJob {name} failed" in shown
    assert f"spec.rerun={tried['spec']['rerun']}" in shown

    for phase in ("Running", "Succeeded"):
        report(namespace, "ftj", name, phase=phase)
        apply(namespace, example("finetunejob"), FineTuneJob)
        assert namespace.get("ftj", name)["metadata"]["generation"] == 2, "nothing to do again, nothing is changed"


def test_what_an_earlier_spec_came_to_is_no_answer(namespace: Kubectl) -> None:
    job = apply(namespace, example("finetunejob"), FineTuneJob)
    deployment = apply(namespace, example("adapterdeployment"), AdapterDeployment)
    report(namespace, "ftj", job, **published(EARLIER))
    report(namespace, "adep", deployment, **served(EARLIER))
    for kind, name, change in (("ftj", job, {"rerun": "again"}), ("adep", deployment, {"replicas": 2})):
        namespace("patch", kind, name, "--type=merge", "--patch", json.dumps({"spec": change}))

    answers: list[str] = []

    def demo() -> None:
        _, artifact = follow_job(namespace, job)
        answers.append(artifact.digest)
        stable = follow_deployment(namespace, deployment, artifact.digest).status.stable
        answers.append(stable.artifact_digest if stable else "")

    following = threading.Thread(target=demo, daemon=True)
    following.start()
    following.join(2.5)
    assert answers == []
    report(namespace, "ftj", job, **published(DIGEST))
    report(namespace, "adep", deployment, **served(EARLIER))
    wait(lambda: answers, "the job's end to be seen")
    following.join(2.5)
    assert answers == [DIGEST], "the job is done, but the endpoint serves what there was before"
    report(namespace, "adep", deployment, **served(DIGEST))
    following.join(180)
    assert answers == [DIGEST, DIGEST]
