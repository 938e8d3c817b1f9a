"""What the guide on scaling says to apply scales an AdapterDeployment; nobody fights with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from finetune_api.serving_status import ServingPhase
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from hack.cluster.layout import REPOSITORY
from tests.controlplane.conftest import wait
from tests.controlplane.serving import NAME, Serving
from tests.support.pages import blocks
from tests.support.played_pods import GOOD

pytestmark = pytest.mark.controlplane


def in_the_guide(kind: str) -> str:
    """The guide's YAML with an object of a kind."""
    guide = REPOSITORY / "docs" / "how-to" / "scale.md"
    (text,) = (block for block in blocks(guide, "yaml") if f"kind: {kind}" in block)
    return text


def test_the_autoscaler_of_the_guide_scales_an_endpoint(serving: Serving) -> None:
    """Up to its least number of pods, for which it needs no metric; then it asks for the metric of the guide."""
    wanted = yaml.safe_load(in_the_guide("HorizontalPodAutoscaler"))
    least = wanted["spec"]["minReplicas"]
    wanted["spec"]["scaleTargetRef"]["name"] = NAME
    serving.start()
    serving.serve(GOOD)
    kubectl, namespace = serving.team.plane.kubectl, serving.team.namespace

    kubectl("apply", "--namespace", namespace, "-f", "-", stdin=json.dumps(wanted))

    wait(lambda: serving.status().ready_replicas == least, f"{least} pods")
    assert serving.until(ServingPhase.READY).replicas == least

    def conditions() -> dict[str, Any]:
        found = json.loads(kubectl("get", "hpa", "transactions", "--namespace", namespace, "-o", "json"))
        return {each["type"]: each for each in found["status"].get("conditions", [])}

    active = wait(lambda: conditions().get("ScalingActive"), "the autoscaler to ask for the metric")
    assert conditions()["AbleToScale"]["status"] == "True"
    assert active["reason"] == "FailedGetExternalMetric"
    assert "finetune_endpoint_waiting_requests" in active["message"]
    found = serving.get(ADAPTERDEPLOYMENTS, NAME)
    assert found is not None
    assert found["spec"]["replicas"] == least


def test_the_hours_of_the_guide_stop_an_endpoint_and_start_it_again(serving: Serving) -> None:
    """Their account may do what their commands do, and no more; restricted namespaces take their pods."""
    wanted = list(yaml.safe_load_all(in_the_guide("CronJob").replace("transactions", NAME)))
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
