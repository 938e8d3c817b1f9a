"""Paths, addresses and ports of the local cluster."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL_SOURCES = Path(__file__).resolve().parent / "tools"

FREE_PORTS = range(20000, 30000)
"""Tests that run beside each other take a part of them each."""
NODE_NAME = "finetune-node"
CLUSTER_DOMAIN = "cluster.local"
SERVICE_SUBNET = "10.96.0.0/16"
KUBERNETES_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
POD_SUBNET = "10.244.0.0/24"
BRIDGE = "ftcni0"
IMAGE_PREFIX = "localhost/finetune-operator"


def cache_directory() -> Path:
    """The project's cache, outside any checkout, so that clones share binaries, images and the cluster."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home.absolute() / "finetune-operator"


def cluster_directory() -> Path:
    """The cluster's folder; set ``FINETUNE_CLUSTER_DIR`` to move it."""
    return Path(os.environ.get("FINETUNE_CLUSTER_DIR") or cache_directory() / "cluster").absolute()


@dataclass(frozen=True)
class Ports:
    """Not the Kubernetes defaults, so that this cluster can run beside another one."""

    apiserver: int = 16443
    etcd: int = 12379
    etcd_peer: int = 12380
    controller_manager: int = 11257
    scheduler: int = 11259
    kubelet: int = 11250
    kubelet_health: int = 11248
    proxy_health: int = 11256
    proxy_metrics: int = 11249
    router_health: int = 11244
    router_metrics: int = 11245

    @classmethod
    def free(cls) -> Ports:
        """Currently free control plane ports, for test instances side by side."""
        return cls(*free_ports(5))


def free_ports(count: int) -> list[int]:
    """Currently free ports on the loopback interface.

    They are below the kernel's range for outgoing connections, which could otherwise take one before we do.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(FREE_PORTS, len(FREE_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            break
    return ports


def free_port() -> int:
    """One of ``free_ports``."""
    return free_ports(1)[0]


def node_address() -> str:
    """The machine's address on its default route (found without sending a packet).

    A loopback address would suffice for the API server alone, but not for `kubernetes.default` inside pods.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
