"""The local cluster keeps what a real one promises: names, node ports, policies, messages, logs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hack.cluster.console import ClusterError
from hack.cluster.layout import CLUSTER_DOMAIN, KUBERNETES_SERVICE_IP, node_address
from hack.platform.kubectl import Kubectl, wait_for
from tests.support.restricted import CONNECT, LOOKUP, message_of, python_pod, restricted_namespace, serve, service

pytestmark = pytest.mark.cluster

WRITE = """
import os
try:
    open('/opt/file', 'w')
except OSError as error:
    open('/dev/termination-log', 'w').write(f'{os.getuid()} {error.strerror}')
"""


@pytest.fixture
def namespace() -> Iterator[Kubectl]:
    with restricted_namespace("local") as kubectl:
        yield kubectl


def test_a_restricted_pod_resolves_names_of_the_cluster(namespace: Kubectl) -> None:
    namespace.apply(service("web"))
    address = namespace.get("service", "web")["spec"]["clusterIP"]
    names = {
        "kubernetes": (f"kubernetes.default.svc.{CLUSTER_DOMAIN}", KUBERNETES_SERVICE_IP),
        "short": ("web", address),
        "other-namespace": (f"web.{namespace.namespace}", address),
    }
    namespace.apply(*(python_pod(key, LOOKUP, name) for key, (name, _) in names.items()))
    assert {key: message_of(namespace, key) for key in names} == {key: value for key, (_, value) in names.items()}


def test_the_root_file_system_of_a_restricted_pod_is_read_only(namespace: Kubectl) -> None:
    namespace.apply(python_pod("writer", WRITE))
    assert message_of(namespace, "writer") == "65532 Read-only file system"


def test_an_unrestricted_pod_is_not_admitted(namespace: Kubectl) -> None:
    open_pod = python_pod("root", "print()")
    del open_pod["spec"]["securityContext"]
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        namespace.apply(open_pod)


def test_a_node_port_leads_to_the_pod(namespace: Kubectl) -> None:
    serve(namespace, "NodePort")
    port = namespace.get("service", "web")["spec"]["ports"][0]["nodePort"]

    def answer() -> bytes | None:
        try:
            with socket.create_connection((node_address(), port), timeout=10) as client:
                client.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                return client.recv(64)
        except OSError:
            return None

    assert wait_for("the node port", answer, 240, interval=0.2).startswith(b"HTTP/1.0 200")


def test_a_network_policy_lets_in_whom_it_names_and_refuses_others(namespace: Kubectl) -> None:
    serve(namespace)
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}
    namespace.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "friends-only"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [rule]},
        },
        python_pod("friend", CONNECT, "http://web", "answered"),
        python_pod("stranger", CONNECT, "http://web", "refused"),
    )
    assert message_of(namespace, "friend") == "answered"
    assert message_of(namespace, "stranger") == "refused"


def test_logs_come_back(namespace: Kubectl) -> None:
    namespace.apply(python_pod("speaker", "print('said on standard output')"))
    message_of(namespace, "speaker")
    assert namespace("logs", "speaker") == "said on standard output\n"
