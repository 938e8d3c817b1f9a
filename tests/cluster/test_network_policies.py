"""The chart's NetworkPolicies on a real node: who reaches a stage pod, and what the operator reaches."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from finetune_api import meta
from hack.cluster import toolchain
from hack.cluster.console import ClusterError, run
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, Object, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

OTHER_PORT = 9401
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
SERVE = "import socket, sys; server = socket.create_server(('', int(sys.argv[1])))\nwhile True: server.accept()"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"


def pod(name: str, labels: dict[str, str], *ports: int) -> Object:
    """A restricted pod that listens on some ports."""
    containers = [
        {
            "name": f"port-{port}",
            "image": local.images()["data"],
            "command": ["python", "-c", SERVE, str(port)],
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "50m"}},  # each exec shares it, beside a demo that trains
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        for port in ports
    ]
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": containers, "securityContext": security, "terminationGracePeriodSeconds": 0},
    }


@pytest.fixture(scope="module")
def stage(cluster: Kubectl) -> Iterator[Kubectl]:
    """A namespace with the chart's runner policies, a pod labelled as a stage, and a stranger beside it."""
    name = "policies"
    kubectl = cluster.within(name)
    local.prepare_namespace(cluster, name)
    release = (local.RELEASE, str(local.CHART), "--namespace", local.NAMESPACE)
    peers = json.dumps([{"podSelector": {"matchLabels": PROMETHEUS}}])
    values = ("--set", f"runner.namespaces={{{name}}}", "--set-json", f"runner.networkPolicy.metricsFrom={peers}")
    choice = (*values, "--show-only", "templates/runner.yaml")
    rendered = run([toolchain.program("helm"), "template", *release, *choice])
    policies = [each for each in yaml.safe_load_all(rendered) if each["kind"] == "NetworkPolicy"]
    labels = {meta.LABEL_MANAGED_BY: meta.MANAGED_BY, meta.LABEL_ROLE: "stage"}
    training = labels | {meta.LABEL_STAGE: "train"}
    kubectl.apply(
        *policies,
        pod("stage", labels, meta.METRICS_PORT, OTHER_PORT),
        pod("stranger", {}, OTHER_PORT),
        pod("prometheus", PROMETHEUS, OTHER_PORT),
        *(pod(name, training, OTHER_PORT) for name in ("trainer", "trainer-2")),
    )
    names = ("pod/stage", "pod/stranger", "pod/prometheus", "pod/trainer", "pod/trainer-2")
    kubectl("wait", "--for=condition=Ready", *names, "--timeout=600s", timeout=620)
    yield kubectl
    cluster("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize(
    ("source", "target", "port", "reached"),
    [
        ("operator", "stage", meta.METRICS_PORT, True),
        ("operator", "stage", OTHER_PORT, False),
        ("operator", "stranger", OTHER_PORT, False),
        ("operator", "store", object_store.PORT, False),
        ("prometheus", "stage", meta.METRICS_PORT, True),
        ("prometheus", "stage", OTHER_PORT, False),
        ("stranger", "stage", meta.METRICS_PORT, False),
        ("stranger", "stage", OTHER_PORT, False),
        ("stranger", "store", object_store.PORT, True),
        ("stage", "store", object_store.PORT, True),
        ("stage", "stranger", OTHER_PORT, True),
        ("trainer", "trainer-2", OTHER_PORT, True),
        ("stage", "trainer", OTHER_PORT, False),
        ("stranger", "trainer", OTHER_PORT, False),
    ],
)
def test_who_reaches_what(cluster: Kubectl, stage: Kubectl, source: str, target: str, port: int, reached: bool) -> None:
    address = (
        f"{object_store.NAME}.{object_store.NAMESPACE}.svc"
        if target == "store"
        else stage.get("pod", target)["status"]["podIP"]
    )
    place, name = (
        (cluster.within(local.NAMESPACE), f"deployment/{local.RELEASE}") if source == "operator" else (stage, source)
    )

    def connects() -> bool:
        try:
            place("exec", name, "--", "python", "-c", CONNECT, address, str(port))
        except ClusterError as error:
            if not any(cause in str(error) for cause in ("TimeoutError", "ConnectionRefusedError")):
                raise  # the probe itself failed
            return False
        return True

    # Policies take a moment to reach the node's packet filter.
    wait_for(f"{source} → {target}:{port} {reached}", lambda: connects() == reached, timeout=600)
