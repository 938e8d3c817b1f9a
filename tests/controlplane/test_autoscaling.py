"""A real HorizontalPodAutoscaler, as the guide writes it, scales an AdapterDeployment; nobody fights with it."""

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
from tests.support.serving import GOOD

pytestmark = pytest.mark.controlplane


def test_the_autoscaler_of_the_guide_scales_an_endpoint(serving: Serving) -> None:
    """Up to its least number of pods, for which it needs no metric; then it asks for the metric of the guide."""
    guide = REPOSITORY / "docs" / "how-to" / "scale.md"
    (text,) = (block for block in blocks(guide, "yaml") if "kind: HorizontalPodAutoscaler" in block)
    wanted = yaml.safe_load(text)
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
