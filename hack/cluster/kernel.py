"""The cluster's changes to the kernel, and how each is undone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from . import configuration
from .console import ClusterError, run, say
from .layout import BRIDGE
from .processes import BOOT_ID, Identity, terminate

_MOUNTS = Path("/proc/self/mountinfo")
WANTED: Mapping[str, str] = {
    "net.ipv4.ip_forward": "1",
    "net.bridge.bridge-nf-call-iptables": "1",  # NetworkPolicies between pods on the same bridge
    "fs.inotify.max_user_instances": "1024",  # the kubelet and every watching container need some
}
CHANGED_BY_KUBELET = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)


def sysctl(name: str) -> Path:
    """The file of a kernel setting."""
    return Path("/proc/sys") / name.replace(".", "/")


def apply_settings(memory: Path) -> None:
    """Set what pods need; ``memory`` stores the previous values, once per boot."""
    if not sysctl("net.bridge.bridge-nf-call-iptables").exists():
        run(["modprobe", "br_netfilter"])
    boot = BOOT_ID.read_text().strip()
    if not memory.exists() or json.loads(memory.read_text())["boot"] != boot:
        names = (*WANTED, *CHANGED_BY_KUBELET)
        found = {name: sysctl(name).read_text().strip() for name in names if sysctl(name).exists()}
        memory.write_text(json.dumps({"boot": boot, "values": found}, indent=1))
    for name, value in WANTED.items():
        current = sysctl(name).read_text().strip()
        if int(current) < int(value):
            sysctl(name).write_text(value)


def restore_settings(memory: Path) -> None:
    """Restore the values that :func:`apply_settings` found, unless the machine has rebooted since."""
    if not memory.exists():
        return
    kept = json.loads(memory.read_text())
    if kept["boot"] == BOOT_ID.read_text().strip():
        for name, value in kept["values"].items():
            if sysctl(name).read_text().strip() != value:
                sysctl(name).write_text(value)
    memory.unlink()


def masquerade_pods() -> None:
    run(["nft", "-f", "-"], stdin=configuration.nat_rules())


def remove_network() -> None:
    """Remove the bridge, our NAT table, kube-proxy's tables and kube-router's chains and sets."""
    for family, table in (("ip", configuration.NAT_TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
        _quietly("nft", "delete", "table", family, table)
    _quietly("ip", "link", "delete", BRIDGE)
    for tool, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        _remove_chains(tool, family)
    with contextlib.suppress(ClusterError):
        for name in run(["ipset", "list", "-name"]).split():
            if name.startswith(("KUBE-", "kube-router-", "inet6:KUBE-", "inet6:kube-router-")):
                _quietly("ipset", "destroy", name)


def remove_traces(directory: Path) -> None:
    """Remove files that the kubelet, CNI and shims leave in system folders, unless others use them."""
    for link in _glob("/var/log/containers/*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{directory}/"):
            link.unlink()
    for result in _glob(f"/var/lib/cni/results/{configuration.NETWORK}-*"):
        result.unlink()
    for shim in _glob("/run/containerd/s/*"):
        if shim.is_socket() and not _listened_on(shim):
            shim.unlink()
    folders = ("/var/log/containers", "/var/lib/cni/results", "/var/lib/cni")
    for folder in (*folders, "/run/containerd/s", "/run/containerd/fifo", "/run/containerd"):
        with contextlib.suppress(OSError):  # it still holds another cluster's files
            Path(folder).rmdir()


def _listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def _glob(pattern: str) -> list[Path]:
    return list(Path("/").glob(pattern.lstrip("/")))


def _remove_chains(tool: str, family: str) -> None:
    """Reload the filter table without kube-router's chains and jumps, or delete a table that only kube-router used."""
    with contextlib.suppress(ClusterError):
        table = run([f"{tool}-save", "-t", "filter"]).splitlines(keepends=True)
        rest = [line for line in table if "KUBE-" not in line]
        if rest != table:
            run([f"{tool}-restore", "-T", "filter"], stdin="".join(rest))
            if not any(line.startswith("-A") or (line.startswith(":") and " ACCEPT " not in line) for line in rest):
                _quietly("nft", "delete", "table", family, "filter")


def mounts_below(directory: Path, table: str) -> list[str]:
    """Mount points under a folder in a ``/proc/self/mountinfo``, the deepest first."""
    points = (line.split()[4].encode().decode("unicode_escape") for line in table.splitlines())
    return sorted((point for point in points if point.startswith(f"{directory}/")), key=len, reverse=True)


def unmount_below(directory: Path) -> None:
    """Unmount everything under a folder."""
    for mount in mounts_below(directory, _MOUNTS.read_text()):
        try:
            run(["umount", mount])
        except ClusterError:
            _quietly("umount", "--lazy", mount)
            say(f"  ! {mount} was busy: unmounted lazily")


def remove_cgroups() -> None:
    """Stop what still runs in the kubelet's control groups, then remove them."""
    root = Path("/sys/fs/cgroup")
    for hierarchy in (root, *(path for path in root.iterdir() if path.is_dir())):
        for directory, _, _ in os.walk(hierarchy / "kubepods", topdown=False):
            for pid in (Path(directory) / "cgroup.procs").read_text().split():
                if identity := Identity.of(int(pid)):
                    terminate(identity, grace_seconds=0)
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def remove_tree(directory: Path) -> None:
    """Delete a folder, after making sure that nothing is mounted in it (mounted data would be deleted too).

    Raises:
        ClusterError: something in it is still mounted.
    """
    unmount_below(directory)
    if left := mounts_below(directory, _MOUNTS.read_text()):
        raise ClusterError(f"{left[0]} is still mounted: unmount it, then run `make cluster-down` again")
    shutil.rmtree(directory, ignore_errors=True)


def _quietly(*argv: str) -> None:
    """Run a command that fails if there is nothing to remove."""
    with contextlib.suppress(ClusterError):
        run(argv)
