"""What the guide on scaling says to apply scales an AdapterDeployment; nobody fights with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.serving_status import ServingPhase
from finetune_operator.framework.objects import DEPLOYMENTS, Object
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from tests.controlplane.conftest import wait
from tests.controlplane.serving import NAME, Serving
from tests.support.external_metrics import Rules, stand_in
from tests.support.pages import blocks
from tests.support.played_pods import BETTER, GOOD
from tests.support.prometheus import Prometheus
from tests.support.prometheus_adapter import is_built, prometheus_adapter
from tests.support.queues import queue

pytestmark = pytest.mark.controlplane

Metrics = Callable[[ControlPlane, Prometheus, Rules, str], AbstractContextManager[None]]
ADAPTER = pytest.mark.skipif(not is_built(), reason="prometheus-adapter is not built: `make prometheus-adapter`")
GUIDE = REPOSITORY / "docs" / "how-to" / "scale.md"
WAITING, PODS = 20, 5
"""Requests, and pods for them: four requests a pod, as the guide says."""


def in_the_guide(part: str) -> str:
    """The guide's YAML with a part, for the endpoint of the tests."""
    (text,) = (block for block in blocks(GUIDE, "yaml") if part in block)
    return text.replace("transactions", NAME)


def resource(serving: Serving) -> Object:
    """The AdapterDeployment."""
    found = serving.get(ADAPTERDEPLOYMENTS, NAME)
    assert found is not None
    return found


def writers_of_replicas(found: Object) -> list[tuple[str, str]]:
    """Who has written ``spec.replicas``, with the subresource."""
    return [
        (each["manager"], each.get("subresource", ""))
        for each in found["metadata"]["managedFields"]
        if "f:replicas" in each["fieldsV1"].get("f:spec", {})
    ]


def until_pods(serving: Serving, count: int) -> None:
    def asked() -> tuple[int, int]:
        return resource(serving)["spec"]["replicas"], serving.status().ready_replicas

    wait(lambda: asked() == (count, count), f"{count} pods", describe=lambda: str(asked()))


@pytest.mark.parametrize("metrics", [stand_in, pytest.param(prometheus_adapter, marks=ADAPTER)])
def test_the_autoscaler_of_the_guide_follows_the_queue(serving: Serving, tmp_path: Path, metrics: Metrics) -> None:
    """To its least number of pods without a metric, then up and down by the guide's metric of a real Prometheus. A
    rollout keeps its number."""
    wanted = yaml.safe_load(in_the_guide("kind: HorizontalPodAutoscaler"))
    rules = yaml.safe_load(in_the_guide("seriesQuery"))["rules"]["external"]
    wanted["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    least = wanted["spec"]["minReplicas"]
    serving.start()
    old = serving.serve(GOOD)
    assert resource(serving)["spec"]["replicas"] == 1
    kubectl, namespace = serving.team.plane.kubectl, serving.team.namespace

    kubectl("apply", "--namespace", namespace, "-f", "-", stdin=json.dumps(wanted))

    until_pods(serving, least)

    def active() -> dict[str, Any]:
        found = json.loads(kubectl("get", "hpa", NAME, "--namespace", namespace, "-o", "json"))
        conditions = {each["type"]: each for each in found["status"].get("conditions", [])}
        assert conditions.get("AbleToScale", {"status": "True"})["status"] == "True"
        scaling: dict[str, Any] = conditions.get("ScalingActive", {})
        return scaling

    wait(lambda: active().get("reason") == "FailedGetExternalMetric", "the autoscaler to ask for the metric")
    assert "finetune_endpoint_waiting_requests" in active()["message"]

    with (
        queue(tmp_path, namespace, NAME) as waiting,
        metrics(serving.team.plane, waiting.prometheus, rules, namespace),
    ):
        wait(lambda: active().get("reason") == "ValidMetricFound", "the metric", describe=lambda: str(active()))
        assert resource(serving)["spec"]["replicas"] == least, "nobody waits"
        waiting.has(WAITING)
        until_pods(serving, PODS)

        serving.update(BETTER)
        wait(lambda: serving.is_updated(old), "the rollout", describe=lambda: str(serving.status()))
        assert serving.until(ServingPhase.READY).ready_replicas == PODS
        [deployment] = serving.children(DEPLOYMENTS).values()
        assert deployment["spec"]["replicas"] == PODS

        waiting.has(0)
        until_pods(serving, least)
    found = resource(serving)
    assert writers_of_replicas(found) == [("kube-controller-manager", "scale")]
    changes = ("to the least number", "up", "the rollout", "down")
    assert found["metadata"]["generation"] == 1 + len(changes), "nobody else has changed the spec"


def test_the_hours_of_the_guide_stop_an_endpoint_and_start_it_again(serving: Serving) -> None:
    """Their account may do what their commands do, and no more; restricted namespaces take their pods."""
    wanted = list(yaml.safe_load_all(in_the_guide("kind: CronJob")))
    serving.start()
    serving.serve(GOOD)
    serving.until(ServingPhase.READY)
    kubectl, namespace = serving.team.plane.kubectl, serving.team.namespace
    kubectl(
        "apply",
        "--namespace",
        namespace,
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}),
    )
    account = f"--as=system:serviceaccount:{namespace}:{NAME}-hours"
    pods = {
        each["metadata"]["name"]: each["spec"]["jobTemplate"]["spec"]["template"]
        for each in wanted
        if each["kind"] == "CronJob"
    }
    for name, replicas in ((f"{NAME}-evening", 0), (f"{NAME}-morning", 2)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **pods[name]}
        told = kubectl("apply", "--namespace", namespace, "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        assert "would violate PodSecurity" not in told
        [container] = pods[name]["spec"]["containers"]
        program, *arguments = container["command"]
        assert program == "kubectl"
        kubectl(*arguments, "--namespace", namespace, account)
        wait(lambda wanted=replicas: serving.status().ready_replicas == wanted, f"{replicas} pods")  # type: ignore[misc]
    rights = kubectl("auth", "can-i", "--list", "--namespace", namespace, account)
    assert [line.split()[0] for line in rights.splitlines() if "finetune.dev" in line] == [
        "adapterdeployments.finetune.dev/scale",
        "adapterdeployments.finetune.dev",
    ]
