"""The native cluster: a real Kubernetes with this machine as its only node."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import buildkit, configuration, dns, kernel, neighbours, packages, toolchain
from .console import ClusterError, step
from .controlplane import ControlPlane
from .layout import NODE_NAME, POD_SUBNET, cluster_directory, node_address
from .node import Node
from .nodestore import NodeImages
from .processes import Daemon, start_in_order, stop_all, tail

# All except those for a cloud or several nodes; a single node has a fixed pod subnet.
CONTROLLERS = ("*", "-node-ipam-controller", "-node-route-controller", "-service-lb-controller")
LONGEST_SOCKET_PATH = 100  # the kernel accepts 107 bytes; parts append to it
KEPT_BY_DOWN = ("containerd", "buildkit", "images")  # slow to fill again


@dataclass(frozen=True)
class NativeCluster:
    """The cluster in ``directory``: state, logs, sockets, credentials."""

    directory: Path

    @classmethod
    def default(cls) -> NativeCluster:
        return cls(cluster_directory())

    @property
    def plane(self) -> ControlPlane:
        return ControlPlane(self.directory, address=node_address(), controllers=CONTROLLERS, scheduler=True)

    @property
    def node(self) -> Node:
        return Node(self.directory, self.plane)

    @property
    def kubeconfig(self) -> Path:
        return self.plane.kubeconfig

    def images(self) -> NodeImages:
        """The store in which images are built and kept.

        Raises:
            ClusterError: containerd or BuildKit is not running.
        """
        if dead := [part.name for part in self.node.runtime() if part.record() is None]:
            raise ClusterError(f"not running: {', '.join(dead)}; run `make cluster-up` first")
        return NodeImages(self.node)

    def daemons(self) -> list[Daemon]:
        """All parts, in start order."""
        return [*self.plane.daemons(), *self.node.runtime(), *self.node.agents()]

    def up(self) -> None:
        """Start or repair the cluster: parts that run correctly are left alone.

        Raises:
            ClusterError: not Linux, not root, another cluster's node, or a part did not start (includes its log's end).
        """
        _require_root_on_linux()
        neighbours.refuse_foreign_node(self.directory)
        if len(str(self.node.containerd_socket)) > LONGEST_SOCKET_PATH:
            raise ClusterError(
                f"{self.directory} is too long for socket paths: set FINETUNE_CLUSTER_DIR to a shorter path"
            )
        packages.install()
        toolchain.build(toolchain.CLUSTER)
        self.directory.mkdir(parents=True, exist_ok=True)
        with toolchain.locked(self.directory / "lock"):
            with step("start etcd, API server, controller manager and scheduler"):
                fresh = self.plane.start()
            kernel.apply_settings(self.directory / "sysctl.json")
            kernel.masquerade_pods()
            self.node.write_configuration()
            with step("start containerd and BuildKit"):
                start_in_order(self.node.runtime())
            self._build_system_images()
            self.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=self._objects())
            if fresh:  # restarted clients do not wait for a back-off of up to a minute
                stop_all(self.node.agents())
                self.plane.kubectl("delete", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns", "--wait=false")
            with step("start kubelet, kube-proxy and kube-router"):
                self._start_agents()
            with step("wait for cluster DNS"):
                self._wait_for_dns()
            self._write_commands()

    def down(self, purge: bool = False) -> None:
        """Stop everything and undo all changes: processes, containers, mounts, bridge, firewall rules, kernel settings.

        The image store is kept (it is slow to fill) unless ``purge``.
        """
        _require_root_on_linux()
        if not self.directory.exists():
            return
        with toolchain.locked(self.directory / "lock"):
            with step("stop Kubernetes"):
                stop_all((*self.plane.daemons(), *self.node.agents()))
            with step("remove containers"):
                self.node.remove_containers()
                stop_all(self.node.runtime())
                kernel.remove_cgroups()
            with step("remove mounts and network"):
                kernel.unmount_below(self.directory)
                kernel.remove_network()
                kernel.remove_traces(self.directory)
                kernel.restore_settings(self.directory / "sysctl.json")
            for entry in self.directory.iterdir():
                if purge or entry.name not in KEPT_BY_DOWN:
                    kernel.remove_tree(entry) if entry.is_dir() else entry.unlink()

    def status(self) -> str:
        """A table of all parts: state, pid and start time."""
        rows = [("PART", "STATE", "PID", "SINCE")]
        for daemon in self.daemons():
            record = daemon.record()
            if record is None:
                rows.append((daemon.name, "dead" if daemon.pid_file.exists() else "stopped", "-", "-"))
                continue
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.since))
            state = "ready" if daemon.ready() else "not ready"
            rows.append((daemon.name, state, str(record.identity.pid), since))
        rows.append((f"node {NODE_NAME}", "Ready" if self.node.ready() else "not Ready", "-", "-"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)

    def _build_system_images(self) -> None:
        """Build the images of the sandbox container and of cluster DNS: one static program each."""
        for program, reference in (("pause", self.node.pause_image), ("coredns", self.node.dns_image)):
            if self.node.has_image(reference):
                continue
            binary = toolchain.program(program)
            with step(f"build image {reference}"), tempfile.TemporaryDirectory() as scratch:
                dockerfile = Path(scratch) / "Dockerfile"
                dockerfile.write_text(f'FROM scratch\nCOPY {program} /\nENTRYPOINT ["/{program}"]\n')
                buildkit.build_image(self.node.buildkit_address, reference, binary.parent, dockerfile)

    def _objects(self) -> str:
        return configuration.system_objects(self.node.dns_image)

    def _start_agents(self) -> None:
        kubelet, kube_proxy, kube_router = self.node.agents()
        start_in_order((kubelet, kube_proxy))
        _wait(self.node.ready, "the node to be Ready", 90, kubelet)
        if not self.plane.kubectl("get", "node", NODE_NAME, "-o", "jsonpath={.spec.podCIDR}"):
            subnet = f'{{"spec":{{"podCIDR":"{POD_SUBNET}","podCIDRs":["{POD_SUBNET}"]}}}}'
            self.plane.kubectl("patch", "node", NODE_NAME, "-p", subnet)  # kube-router needs it
        start_in_order((kube_router,))

    def _wait_for_dns(self) -> None:
        self.plane.kubectl(
            "rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=300s", timeout=320
        )
        _wait(dns.answers_for_kubernetes, "cluster DNS to answer at its service address", 30, self.node.agents()[1])

    def _write_commands(self) -> None:
        """Write the commands for people: ``bin/kubectl``, ``bin/helm``, ``bin/ctr`` and ``bin/buildctl``."""
        folder = self.directory / "bin"
        for name in ("kubectl", "helm"):
            toolchain.write_command(folder, name, f"KUBECONFIG={self.kubeconfig}")
        toolchain.write_command(
            folder, "ctr", f"CONTAINERD_ADDRESS={self.node.containerd_socket}", "--namespace k8s.io"
        )
        toolchain.write_command(folder, "buildctl", f"BUILDKIT_HOST={self.node.buildkit_address}")


def _wait(condition: Callable[[], bool], what: str, seconds: float, culprit: Daemon) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            end = tail(culprit.log_file)
            raise ClusterError(
                f"timed out after {seconds:.0f} s waiting for {what}; the end of {culprit.log_file}:\n{end}"
            )
        time.sleep(0.3)


def _require_root_on_linux() -> None:
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise ClusterError(
            "the native cluster needs Linux and root, because it makes this machine a node; on other machines, start a "
            "Docker engine and install kind, which is then used instead"
        )
