"""The local cluster keeps what a real one promises: names, node ports, policies, messages; and `up` heals it."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.cluster import kernel, toolchain
from hack.cluster.images import build_images
from hack.cluster.layout import CLUSTER_DOMAIN, KUBERNETES_SERVICE_IP, node_address
from hack.cluster.native import NativeCluster
from hack.cluster.node import processes_with
from hack.cluster.provider import provider
from hack.platform.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
PORT = 8080
SERVER = f"import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port={PORT})"
CLIENTS = {"controller-manager", "scheduler", "kubelet", "kube-proxy", "kube-router"}
PARTS = ("etcd", "apiserver", "controller-manager", "scheduler", "containerd", "kubelet", "kube-proxy", "kube-router")


@pytest.fixture(scope="module")
def image() -> str:
    """Python, without any package of ours."""
    return build_images(provider().images(), ["base"])["base"]


@pytest.fixture
def namespace() -> Iterator[Kubectl]:
    """A namespace that refuses pods that are not restricted."""
    kubectl = Kubectl(toolchain.program("kubectl"), provider().kubeconfig, f"local-{uuid.uuid4().hex[:8]}")
    kubectl("create", "namespace", kubectl.namespace)
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def pod(name: str, image: str, code: str, *arguments: str) -> Object:
    """A restricted pod that runs one Python program."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", code, *arguments],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


def service(name: str, kind: str) -> Object:
    spec = {"type": kind, "selector": {"app": name}, "ports": [{"port": 80, "targetPort": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def message_of(kubectl: Kubectl, name: str) -> str:
    """The termination message of a pod's container, once it has ended."""

    def ended() -> Object | None:
        statuses = kubectl.get("pod", name)["status"].get("containerStatuses", [{}])
        found: Object | None = statuses[0].get("state", {}).get("terminated")
        return found

    return str(wait_for(f"pod {name} to end", ended, 90, interval=0.3).get("message", ""))


def serve(kubectl: Kubectl, image: str, kind: str = "ClusterIP") -> None:
    """A web server behind a Service, both called ``web``."""
    kubectl.apply(pod("web", image, SERVER), service("web", kind))
    kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")


LOOKUP = """
import socket, sys, time
end = time.monotonic() + 30
answers = set()
while not answers and time.monotonic() < end:
    try:
        answers = {info[4][0] for info in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}
    except socket.gaierror:
        time.sleep(0.2)  # the Service is a moment old
open('/dev/termination-log', 'w').write(' '.join(answers))
"""

WRITE = """
import os
try:
    open('/opt/file', 'w')
except OSError as error:
    open('/dev/termination-log', 'w').write(f'{os.getuid()} {error.strerror}')
"""

CONNECT = """
import sys, time, urllib.request
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=2)
        answer = 'answered'
    except OSError as error:
        answer = 'refused'
    if answer == sys.argv[2]:
        break
    time.sleep(0.2)
open('/dev/termination-log', 'w').write(answer)
"""


def test_a_restricted_pod_resolves_names_of_the_cluster(namespace: Kubectl, image: str) -> None:
    namespace.apply(service("web", "ClusterIP"))
    address = namespace.get("service", "web")["spec"]["clusterIP"]
    names = {
        "kubernetes": (f"kubernetes.default.svc.{CLUSTER_DOMAIN}", KUBERNETES_SERVICE_IP),
        "short": ("web", address),
        "other-namespace": (f"web.{namespace.namespace}", address),
    }
    namespace.apply(*(pod(key, image, LOOKUP, name) for key, (name, _) in names.items()))
    assert {key: message_of(namespace, key) for key in names} == {key: value for key, (_, value) in names.items()}


def test_the_root_file_system_of_a_restricted_pod_is_read_only(namespace: Kubectl, image: str) -> None:
    namespace.apply(pod("writer", image, WRITE))
    assert message_of(namespace, "writer") == "65532 Read-only file system"


def test_an_unrestricted_pod_is_not_admitted(namespace: Kubectl, image: str) -> None:
    open_pod = pod("root", image, "print()")
    del open_pod["spec"]["securityContext"]
    with pytest.raises(Exception, match="violates PodSecurity"):
        namespace.apply(open_pod)


def test_a_node_port_leads_to_the_pod(namespace: Kubectl, image: str) -> None:
    serve(namespace, image, "NodePort")
    port = namespace.get("service", "web")["spec"]["ports"][0]["nodePort"]

    def answer() -> bytes | None:
        try:
            with socket.create_connection((node_address(), port), timeout=2) as client:
                client.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                return client.recv(64)
        except OSError:
            return None

    assert wait_for("the node port", answer, 20, interval=0.2).startswith(b"HTTP/1.0 200")


def test_a_network_policy_lets_in_whom_it_names_and_refuses_others(namespace: Kubectl, image: str) -> None:
    serve(namespace, image)
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}
    namespace.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "friends-only"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [rule]},
        },
        pod("friend", image, CONNECT, "http://web", "answered"),
        pod("stranger", image, CONNECT, "http://web", "refused"),
    )
    assert message_of(namespace, "friend") == "answered"
    assert message_of(namespace, "stranger") == "refused"


def test_logs_come_back(namespace: Kubectl, image: str) -> None:
    namespace.apply(pod("speaker", image, "print('said on standard output')"))
    message_of(namespace, "speaker")
    assert namespace("logs", "speaker") == "said on standard output\n"


@pytest.fixture
def native() -> NativeCluster:
    cluster = provider()
    if not isinstance(cluster, NativeCluster):
        pytest.skip("kind's node looks after its own processes")
    return cluster


@pytest.mark.parametrize("part", PARTS)
def test_up_heals_a_killed_part_and_leaves_the_others_alone(
    native: NativeCluster, namespace: Kubectl, image: str, part: str
) -> None:
    serve(namespace, image)
    before = {daemon.name: daemon.record() for daemon in native.daemons()}
    victim = before[part]
    assert victim is not None
    os.kill(victim.identity.pid, signal.SIGKILL)
    wait_for(f"{part} to end", lambda: not victim.identity.alive(), 10, interval=0.05)

    native.up()

    after = {daemon.name: daemon.record() for daemon in native.daemons()}
    assert None not in after.values()
    restarted = {name for name, record in after.items() if record != before[name]}
    assert restarted == ({part} | CLIENTS if part in ("etcd", "apiserver") else {part})
    web = namespace.get("pod", "web")["status"]["containerStatuses"][0]
    assert web["restartCount"] == 0, "a running container must not notice"
    namespace.apply(pod("caller", image, CONNECT, "http://web", "answered"))
    assert message_of(namespace, "caller") == "answered"


def test_several_parts_at_once_as_after_a_crash(native: NativeCluster, namespace: Kubectl, image: str) -> None:
    for part in native.daemons():
        record = part.record()
        assert record is not None
        os.kill(record.identity.pid, signal.SIGKILL)
    native.up()
    namespace.apply(pod("caller", image, LOOKUP, "kubernetes.default"))
    assert message_of(namespace, "caller") == KUBERNETES_SERVICE_IP


def test_up_after_the_machine_was_switched_off(native: NativeCluster, namespace: Kubectl, image: str) -> None:
    """No process, mount, bridge or firewall rule is left, and nothing was said good-bye to."""
    serve(namespace, image)
    for part in native.daemons():
        if record := part.record():
            os.kill(record.identity.pid, signal.SIGKILL)
    for shim in processes_with(str(native.node.containerd_socket)):
        os.kill(shim.pid, signal.SIGKILL)
    kernel.remove_cgroups()
    kernel.unmount_below(native.directory)
    kernel.remove_network()
    kernel.restore_settings(native.directory / "sysctl.json")
    (native.directory / "boot-id").write_text("the boot before")

    native.up()

    namespace.apply(pod("caller", image, LOOKUP, "kubernetes.default"))
    assert message_of(namespace, "caller") == KUBERNETES_SERVICE_IP
    wait_for("the pod of before to be given up", lambda: namespace.get("pod", "web")["status"]["phase"] == "Failed", 60)


def test_status_names_every_part(native: NativeCluster) -> None:
    table = native.status()
    assert all(part in table for part in PARTS)
    assert "dead" not in table
    assert "stopped" not in table


def test_what_is_changed_on_the_machine_is_remembered(native: NativeCluster) -> None:
    memory = native.directory / "sysctl.json"
    assert Path(memory).exists(), "down could not restore what up did not remember"
    for name, value in kernel.WANTED.items():
        assert int(Path("/proc/sys", *name.split(".")).read_text()) >= int(value)
