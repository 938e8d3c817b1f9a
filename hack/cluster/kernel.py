"""What the cluster changes in the kernel, and how each change is taken back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from . import configuration
from .console import ClusterError, run, say
from .layout import BRIDGE
from .processes import BOOT_ID, Identity, terminate

WANTED: Mapping[str, str] = {
    "net.ipv4.ip_forward": "1",
    "net.bridge.bridge-nf-call-iptables": "1",  # NetworkPolicies between pods on the same bridge
    "fs.inotify.max_user_instances": "1024",  # the kubelet and every watching container take some
}
CHANGED_BY_KUBELET = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def apply_settings(memory: Path) -> None:
    """Set what pods need; ``memory`` keeps the values found before, once per boot."""
    if not _sysctl("net.bridge.bridge-nf-call-iptables").exists():
        run(["modprobe", "br_netfilter"])
    boot = BOOT_ID.read_text().strip()
    if not memory.exists() or json.loads(memory.read_text())["boot"] != boot:
        names = (*WANTED, *CHANGED_BY_KUBELET)
        found = {name: _sysctl(name).read_text().strip() for name in names if _sysctl(name).exists()}
        memory.write_text(json.dumps({"boot": boot, "values": found}, indent=1))
    for name, value in WANTED.items():
        current = _sysctl(name).read_text().strip()
        if int(current) < int(value):
            _sysctl(name).write_text(value)


def restore_settings(memory: Path) -> None:
    """Put back the values that :func:`apply_settings` found, unless the machine has restarted since."""
    if not memory.exists():
        return
    kept = json.loads(memory.read_text())
    if kept["boot"] == BOOT_ID.read_text().strip():
        for name, value in kept["values"].items():
            if _sysctl(name).read_text().strip() != value:
                _sysctl(name).write_text(value)
    memory.unlink()


def masquerade_pods() -> None:
    run(["nft", "-f", "-"], stdin=configuration.nat_rules())


def remove_network() -> None:
    """Remove the bridge, our NAT table, kube-proxy's tables and kube-router's chains and sets."""
    for family, table in (("ip", configuration.NAT_TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
        _quietly("nft", "delete", "table", family, table)
    _quietly("ip", "link", "delete", BRIDGE)
    for tool in ("iptables", "ip6tables"):
        _remove_chains(tool)
    with contextlib.suppress(ClusterError):
        for name in run(["ipset", "list", "-name"]).split():
            if name.startswith(("KUBE-", "kube-router-", "inet6:KUBE-", "inet6:kube-router-")):
                _quietly("ipset", "destroy", name)


def _remove_chains(tool: str) -> None:
    """Remove kube-router's chains from the filter table: first the jumps to them, then the chains."""
    with contextlib.suppress(ClusterError):
        rules = [line.split(" ", 2) for line in run([tool, "-S"]).splitlines()]
        chains = [rule[1] for rule in rules if rule[0] == "-N" and rule[1].startswith("KUBE-")]
        dump = [line for line in run([f"{tool}-save", "-t", "filter"]).splitlines() if "KUBE-" not in line]
        if chains:
            run([f"{tool}-restore", "-T", "filter"], stdin="\n".join(dump) + "\n")


def unmount_below(directory: Path) -> None:
    """Unmount everything under a folder, the deepest first."""
    mounts = [
        _unescape(line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if _unescape(line.split()[4]).startswith(f"{directory}/")
    ]
    for mount in sorted(mounts, key=len, reverse=True):
        try:
            run(["umount", mount])
        except ClusterError:
            _quietly("umount", "--lazy", mount)
            say(f"  ! {mount} was busy; unmounted lazily")


def _unescape(path: str) -> str:
    """mountinfo writes blanks as octal escapes."""
    return path.encode().decode("unicode_escape")


def remove_cgroups() -> None:
    """End what still runs in the kubelet's control groups, then remove them."""
    root = Path("/sys/fs/cgroup")
    for hierarchy in (root, *(path for path in root.iterdir() if path.is_dir())):
        for directory, _, _ in os.walk(hierarchy / "kubepods", topdown=False):
            for pid in (Path(directory) / "cgroup.procs").read_text().split():
                if identity := Identity.of(int(pid)):
                    terminate(identity, grace_seconds=0)
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def remove_tree(directory: Path) -> None:
    """Delete a folder, after making sure that nothing is mounted in it (or the mounted data would go too).

    Raises:
        ClusterError: something in it is still mounted.
    """
    unmount_below(directory)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if _unescape(line.split()[4]).startswith(f"{directory}/"):
            raise ClusterError(f"{_unescape(line.split()[4])}: still mounted; unmount it, then run down again")
    shutil.rmtree(directory, ignore_errors=True)


def _quietly(*argv: str) -> None:
    """Run a command whose failure means that there was nothing to remove."""
    with contextlib.suppress(ClusterError):
        run(argv)
