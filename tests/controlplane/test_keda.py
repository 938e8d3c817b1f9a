"""What the guide on scaling gives to KEDA: its CRDs take it on a real API server, its triggers have no parameters but
those that KEDA reads, and a real Prometheus answers their queries. KEDA itself does not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from hack.cluster.console import ClusterError
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from hack.cluster.module_files import KEDA
from tests.controlplane.conftest import Team, wait
from tests.support.pages import blocks
from tests.support.played_pods import GOOD
from tests.support.queues import queue
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane

GUIDE = REPOSITORY / "docs" / "how-to" / "scale.md"
ENDPOINT, NAMESPACE = "transactions", "team-a"
"""Of the guide."""
WAITING = 17


def objects(kind: str) -> list[dict[str, Any]]:
    """The guide's objects of one of KEDA's kinds."""
    found = [yaml.safe_load(block) for block in blocks(GUIDE, "yaml") if f"kind: {kind}" in block]
    assert found
    return found


def with_token(scaled: dict[str, Any]) -> dict[str, Any]:
    """The ScaledObject with what the guide adds to its trigger for a Prometheus that asks for a token."""
    [addition] = [yaml.safe_load(block) for block in blocks(GUIDE, "yaml") if "authenticationRef" in block]
    [trigger] = scaled["spec"]["triggers"]
    changed = trigger | addition | {"metadata": trigger["metadata"] | addition["metadata"]}
    return scaled | {"spec": scaled["spec"] | {"triggers": [changed]}}


SCALED = objects("ScaledObject")
EVERY_SCALED = [*SCALED, with_token(SCALED[0])]
TRIGGERS = [trigger for scaled in EVERY_SCALED for trigger in scaled["spec"]["triggers"]]
[AUTHENTICATION] = objects("TriggerAuthentication")


@pytest.fixture(scope="module")
def keda(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The API server knows KEDA's kinds."""
    crds = [argument for path in KEDA.paths()[:2] for argument in ("--filename", str(path))]
    plane.kubectl("apply", "--server-side", *crds)
    wait(lambda: "triggerauth" in plane.kubectl("api-resources", "--api-group=keda.sh"), "KEDA's kinds")
    yield plane
    plane.kubectl("delete", *crds)


def apply(team: Team, wanted: dict[str, Any]) -> None:
    """Raises ClusterError where the API server refuses it, or does not know one of its fields."""
    options = ("--server-side", "--validate=strict", "--namespace", team.namespace)
    team.plane.kubectl("apply", *options, "--filename", "-", stdin=json.dumps(wanted))


def parameters(trigger: str) -> dict[str, dict[str, Any]]:
    """Those of a type of trigger, as KEDA's own list of them says."""
    [scaler] = [each for each in json.loads(KEDA.paths()[2].read_text())["scalers"] if each["type"] == trigger]
    return {each["name"]: each for each in scaler["parameters"]}


def faults(trigger: dict[str, Any]) -> list[str]:
    """What KEDA would refuse or ignore in a trigger's parameters, which the CRD leaves open."""
    known, written = parameters(trigger["type"]), trigger["metadata"]
    unread = [name for name in written if not known.get(name, {}).get("metadataVariableReadable")]
    absent = [
        name
        for name, each in known.items()
        if not each.get("optional") and "default" not in each and name not in written
    ]
    wrong = [name for name in written if written[name] not in known.get(name, {}).get("allowedValue", [written[name]])]
    return [*(f"{name}: unknown" for name in unread), *(f"{name}: missing" for name in absent), *wrong]


def test_the_api_server_takes_what_the_guide_says(team: Team, keda: ControlPlane) -> None:
    """And the endpoint that it names has what KEDA scales and reads."""
    for wanted in [*EVERY_SCALED, AUTHENTICATION]:
        apply(team, wanted)
    team.api.create(ADAPTERDEPLOYMENTS, _endpoint(team.namespace))
    for scaled in EVERY_SCALED:
        target = scaled["spec"]["scaleTargetRef"]
        group, version = target["apiVersion"].split("/")
        kind = f"{target['kind'].lower()}.{version}.{group}"
        found = keda.kubectl(
            "get", kind, target["name"], "--subresource=scale", "--namespace", team.namespace, "-o", "json"
        )
        assert json.loads(found)["kind"] == "Scale"
        assert json.loads(found)["spec"]["replicas"] == 1


def _endpoint(namespace: str) -> dict[str, Any]:
    metadata = {"name": ENDPOINT, "namespace": namespace}
    kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "AdapterDeployment"}
    return kind | {"metadata": metadata, "spec": pinned(GOOD)}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("minReplicaCount", "minReplicas", ".spec.minReplicas: field not declared in schema"),
        ('threshold: "4"', "threshold: 4", ".threshold: expected string"),
    ],
)
def test_what_is_wrong_in_a_scaled_object_is_seen(
    team: Team, keda: ControlPlane, old: str, new: str, complaint: str
) -> None:
    text = next(block for block in blocks(GUIDE, "yaml") if "kind: ScaledObject" in block)
    assert old in text
    with pytest.raises(ClusterError) as error:
        apply(team, yaml.safe_load(text.replace(old, new)))
    assert complaint in str(error.value)


def test_keda_reads_every_parameter_of_the_triggers() -> None:
    assert {trigger["type"]: faults(trigger) for trigger in TRIGGERS} == {"cron": [], "prometheus": []}


def test_wrong_parameters_are_seen() -> None:
    [trigger] = SCALED[0]["spec"]["triggers"]
    written = trigger["metadata"]
    renamed = {"address" if name == "serverAddress" else name: value for name, value in written.items()}
    assert faults(trigger | {"metadata": renamed}) == ["address: unknown", "serverAddress: missing"]
    assert faults(trigger | {"metadata": written | {"authModes": "token"}}) == ["authModes"]
    with_secret = written | {"bearerToken": "x"}
    assert faults(trigger | {"metadata": with_secret}) == ["bearerToken: unknown"], "it comes from Secrets only"


def test_the_token_comes_from_an_object_of_the_guide() -> None:
    [trigger] = EVERY_SCALED[-1]["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": AUTHENTICATION["metadata"]["name"]}
    [secret] = AUTHENTICATION["spec"]["secretTargetRef"]
    assert parameters(trigger["type"])[secret["parameter"]]["triggerAuthenticationVariableReadable"]


def test_prometheus_answers_the_queries(tmp_path: Path) -> None:
    """With one number, as KEDA insists, for the endpoint and namespace of the guide; with none where no pod runs."""
    queries = {trigger["metadata"]["query"] for trigger in TRIGGERS if trigger["type"] == "prometheus"}
    with queue(tmp_path, NAMESPACE, ENDPOINT) as waiting:
        waiting.has(WAITING)
        for query in queries:
            wait(lambda asked=query: waiting.prometheus.value(asked) == WAITING, query)  # type: ignore[misc]
            assert len(waiting.prometheus.ask("query", query=query)["result"]) == 1
            assert waiting.prometheus.value(query.replace(ENDPOINT, "other")) is None
