"""The node: containerd, BuildKit, kubelet, kube-proxy and kube-router, all in one folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import buildkit, configuration, kernel, toolchain
from .console import ClusterError, run, succeeds
from .controlplane import ControlPlane, answers
from .layout import IMAGE_PREFIX, NODE_NAME
from .packages import SYSTEM_PATH
from .processes import BOOT_ID, Daemon, Identity, terminate, write_if_changed

KUBERNETES_NAMESPACE = "k8s.io"


@dataclass(frozen=True)
class Node:
    """The machine as a node of ``plane``'s cluster."""

    directory: Path
    plane: ControlPlane

    @property
    def containerd_socket(self) -> Path:
        return self.directory / "containerd" / "containerd.sock"

    @property
    def buildkit_address(self) -> str:
        return f"unix://{self.directory}/buildkit/buildkitd.sock"

    @property
    def pause_image(self) -> str:
        return _system_image("pause")

    @property
    def dns_image(self) -> str:
        return _system_image("coredns")

    def write_configuration(self) -> None:
        """Write the configuration files and credentials of every part."""
        self._forget_last_boot()
        self._file("tmp").mkdir(exist_ok=True)
        authority, ports = self.plane.authority, self.plane.ports
        authority.issue(
            "kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}", (f"DNS:{NODE_NAME}", f"IP:{self.plane.address}")
        )
        for name, user in (
            ("kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}"),
            ("kube-proxy", "/CN=system:kube-proxy"),
            ("kube-router", "/CN=system:kube-router"),
        ):
            authority.kubeconfig(self._file(f"{name}.kubeconfig"), self.plane.url, f"{name}-client", user)
        containerd = self.directory / "containerd"
        files = {
            "containerd.toml": configuration.containerd(containerd, self.pause_image),
            "buildkitd.toml": configuration.buildkit(
                self.directory / "buildkit", self.containerd_socket, buildkit.CACHE_LIMIT
            ),
            "kubelet.json": configuration.kubelet(
                self.directory / "kubelet", self.containerd_socket, authority.directory, ports
            ),
            "kube-proxy.json": configuration.kube_proxy(self._file("kube-proxy.kubeconfig"), ports),
            "containerd/cni/10-pods.conflist": configuration.cni(self.directory / "cni"),
        }
        for name, text in files.items():
            write_if_changed(self._file(name), text)

    def runtime(self) -> list[Daemon]:
        """The parts that run containers and build images."""
        return [self._containerd(), self._buildkitd()]

    def agents(self) -> list[Daemon]:
        """The parts that turn API objects into containers and firewall rules."""
        return [self._kubelet(), self._kube_proxy(), self._kube_router()]

    def ctr(self, *arguments: str, timeout: float = 300) -> str:
        """Run containerd's client in the namespace of Kubernetes' images and containers."""
        ctr = toolchain.program("ctr")
        base = (ctr, "--address", self.containerd_socket, "--namespace", KUBERNETES_NAMESPACE)
        return run([*base, *arguments], timeout=timeout)

    def has_image(self, reference: str) -> bool:
        return bool(self.ctr("images", "list", "--quiet", f"name=={reference}").strip())

    def ready(self) -> bool:
        """Whether the API server shows the node as Ready."""
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        try:
            return self.plane.kubectl("get", "node", NODE_NAME, "-o", path) == "True"
        except ClusterError:
            return False

    def remove_containers(self) -> None:
        """Delete every container, and the shims that containerd has lost track of."""
        if self._containerd().record():
            for container in self.ctr("containers", "list", "--quiet").split():
                self._remove_container(container)
        for process in processes_with(str(self.containerd_socket)):
            terminate(process, grace_seconds=0)

    def _remove_container(self, container: str) -> None:
        commands = (("tasks", "delete", "--force", container), ("containers", "delete", container))
        for command in commands:
            try:
                self.ctr(*command, timeout=20)
            except ClusterError:  # no task, or already gone: a remaining shim is stopped afterwards
                continue

    def _forget_last_boot(self) -> None:
        """After a reboot, containerd's runtime state describes containers that no longer exist: delete it."""
        seen, boot = self._file("boot-id"), BOOT_ID.read_text()
        if seen.exists() and seen.read_text() != boot:
            kernel.remove_tree(self.directory / "containerd" / "state")
        self.directory.mkdir(parents=True, exist_ok=True)
        seen.write_text(boot)

    def _file(self, name: str) -> Path:
        return self.directory / name

    def _containerd(self) -> Daemon:
        config = self._file("containerd.toml")
        probe = (toolchain.program("ctr"), "--address", self.containerd_socket, "version")
        argv = (str(toolchain.program("containerd")), "--config", str(config), "--log-level", "warn")
        return self._daemon("containerd", argv, lambda: succeeds(probe), (config,))

    def _buildkitd(self) -> Daemon:
        config = self._file("buildkitd.toml")
        probe = (toolchain.program("buildctl"), "--addr", self.buildkit_address, "debug", "workers")
        argv = (str(toolchain.program("buildkitd")), "--config", str(config))
        return self._daemon("buildkitd", argv, lambda: succeeds(probe), (config,))

    def _kubelet(self) -> Daemon:
        config, client = self._file("kubelet.json"), self._file("kubelet.kubeconfig")
        argv = (
            str(toolchain.program("kubelet")),
            f"--config={config}",
            f"--kubeconfig={client}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={self.plane.address}",
            f"--root-dir={self.directory / 'kubelet'}",
            f"--cert-dir={self.directory / 'kubelet' / 'pki'}",
        )
        health = f"http://127.0.0.1:{self.plane.ports.kubelet_health}/healthz"
        return self._daemon("kubelet", argv, lambda: answers(health), (config, client))

    def _kube_proxy(self) -> Daemon:
        config, client = self._file("kube-proxy.json"), self._file("kube-proxy.kubeconfig")
        argv = (str(toolchain.program("kube-proxy")), f"--config={config}")
        health = f"http://127.0.0.1:{self.plane.ports.proxy_health}/healthz"
        return self._daemon("kube-proxy", argv, lambda: answers(health), (config, client))

    def _kube_router(self) -> Daemon:
        client = self._file("kube-router.kubeconfig")
        flags = configuration.kube_router_flags(client, self.plane.ports)
        health = f"http://127.0.0.1:{self.plane.ports.router_health}/healthz"
        argv = (str(toolchain.program("kube-router")), *flags)
        return self._daemon("kube-router", argv, lambda: answers(health), (client,))

    def _daemon(self, name: str, argv: tuple[str, ...], ready: Callable[[], bool], files: tuple[Path, ...]) -> Daemon:
        """A part of the node. containerd finds its shim on the PATH, the others runc, nft and iptables.

        Temporary mounts are in the cluster's folder, where ``down`` finds them.
        """
        path = f"{toolchain.program('containerd').parent}:{SYSTEM_PATH}"
        return Daemon(name, argv, self.directory, ready, files, {"PATH": path, "TMPDIR": str(self._file("tmp"))})


def _system_image(program: str) -> str:
    """The image of one of the cluster's own programs, named by its build inputs."""
    return f"{IMAGE_PREFIX}/{program}:{toolchain.tool_of(program).key().rpartition('-')[2]}"


def processes_with(argument: str) -> list[Identity]:
    """Running processes with exactly this argument on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if argument.encode() in arguments and (identity := Identity.of(int(entry.name))):
                found.append(identity)
    return found
