"""Restricted pods that run one Python program, in a namespace that admits no others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hack.cluster.images import build_images
from hack.cluster.provider import provider
from hack.platform import local
from hack.platform.kubectl import Kubectl, wait_for

Object = dict[str, Any]

FAIR_SHARE = "75m"
"""What a pod asks for: without a request it would get next to nothing of a CPU on which the demo trains. With more, two
revisions of two servers each would not fit beside that training: a rollout waited until it was over."""


@contextmanager
def restricted_namespace(prefix: str) -> Iterator[Kubectl]:
    """A namespace of its own for a test, ready for pods."""
    kubectl = local.kubectl().within(f"{prefix}-{uuid.uuid4().hex[:8]}")
    kubectl("create", "namespace", kubectl.namespace)
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=110s")
    try:
        yield kubectl
    finally:
        kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def python_image() -> str:
    """Python, without any package of ours."""
    return build_images(provider().images(), ["base"])["base"]


def pod(name: str, image: str, *command: str) -> Object:
    """A pod as restricted as the operator's, with a scratch volume at /tmp."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "resources": {"requests": {"cpu": FAIR_SHARE}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
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
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }


def python_pod(name: str, code: str, *arguments: str) -> Object:
    """A restricted pod that runs a Python program; it answers with :func:`message_of`."""
    return pod(name, python_image(), "python", "-c", code, *arguments)


def ended(kubectl: Kubectl, name: str, seconds: float = 300) -> Object:
    """Wait for the end of a pod's only container: its exit code and termination message."""

    def state() -> Object | None:
        statuses = kubectl.get("pod", name)["status"].get("containerStatuses", [{}])
        found: Object | None = statuses[0].get("state", {}).get("terminated")
        return found

    return wait_for(f"pod {name} to end", state, seconds, interval=0.3)


def message_of(kubectl: Kubectl, name: str) -> str:
    """The termination message of a pod's container, once it has ended."""
    return str(ended(kubectl, name).get("message", ""))


PORT = 8080
_SERVER = f"import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port={PORT})"


def service(name: str, kind: str = "ClusterIP") -> Object:
    """A Service on port 80 for the pod of the same name."""
    spec = {"type": kind, "selector": {"app": name}, "ports": [{"port": 80, "targetPort": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def serve(kubectl: Kubectl, kind: str = "ClusterIP") -> None:
    """A web server behind a Service, both called ``web``, ready."""
    kubectl.apply(python_pod("web", _SERVER), service("web", kind))
    kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=240s", timeout=260)


LOOKUP = """
import socket, sys, time
end = time.monotonic() + 120
answers = set()
while not answers and time.monotonic() < end:
    try:
        answers = {info[4][0] for info in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}
    except socket.gaierror:
        time.sleep(0.2)  # the Service is a moment old
open('/dev/termination-log', 'w').write(' '.join(answers))
"""

CONNECT = """
import sys, time, urllib.request
end = time.monotonic() + 240
while time.monotonic() < end:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=5)
        answer = 'answered'
    except OSError:
        answer = 'refused'
    if answer == sys.argv[2]:
        break
    time.sleep(0.2)
open('/dev/termination-log', 'w').write(answer)
"""
