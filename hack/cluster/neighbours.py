"""Whether this machine is already a node: two kubelets would fight over control groups, firewall rules and sysctls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .console import ClusterError

AGENTS = frozenset({"kubelet", "kube-proxy", "kubelite", "k3s-server", "k3s-agent"})  # as /proc/PID/comm has them
_PROC = Path("/proc")


def refuse_foreign_node(directory: Path, proc: Path = _PROC) -> None:
    """Make sure that no other cluster's agent runs here. Nodes in containers (kind, k3d) are harmless.

    Raises:
        ClusterError: one does.
    """
    for pid, name in _agents(proc):
        if not _started_for(directory, proc / str(pid)):
            raise ClusterError(
                f"{name} (pid {pid}) runs on this machine, but not for the cluster in {directory}: this machine is a "
                "node of another cluster, and `cluster-down` would stop that cluster's containers. Use another "
                "machine, or start a Docker engine and install kind, which is then used instead. If the other cluster "
                "is your own (FINETUNE_CLUSTER_DIR), take it down first"
            )


def _agents(proc: Path) -> Iterator[tuple[int, str]]:
    """Pid and name of each node agent in this network namespace."""
    here = os.readlink(proc / "self/ns/net")
    for process in proc.glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            if name in AGENTS and os.readlink(process / "ns/net") == here:
                yield int(process.name), name
        except OSError:  # it has ended in the meantime
            continue


def _started_for(directory: Path, process: Path) -> bool:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # it has ended in the meantime
    inside = os.fsencode(f"{directory}/")
    return not any(arguments) or any(inside in argument for argument in arguments)
