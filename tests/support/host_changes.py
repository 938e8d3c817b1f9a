"""Change a machine as a native cluster does, take the cluster down, and compare: before, meanwhile, after.

``observe`` runs this module in namespaces of its own (network, mounts, processes, control groups): two native clusters
cannot share a machine, because bridge, firewall tables and control groups have fixed names. The programs that change
the most run for real: API server, kube-proxy, kube-router and the CNI plugin. containerd and the kubelet do not; what
they leave is made by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hack.cluster import configuration, kernel
from hack.cluster.console import ClusterError, run
from hack.cluster.layout import NODE_NAME, POD_SUBNET, REPOSITORY
from hack.cluster.native import NativeCluster
from hack.cluster.node import processes_with
from hack.cluster.packages import SYSTEM_PATH
from hack.cluster.processes import start_in_order
from hack.platform.kubectl import wait_for

CGROUPS = Path("/sys/fs/cgroup")
FIXED_PLACES = ("/run", "/var/lib", "/var/log")
"""Where parts of a cluster leave files, whatever their own folder is; empty ones stand in for the machine's."""
ADDRESS = "192.0.2.10"  # RFC 5737: of documentation, and of nobody's network

ISOLATED = """
mkdir "$1/groups"
mount -t cgroup2 none "$1/groups"
own="$1/groups/finetune-test-$$"
mkdir "$own"
echo $$ > "$own/cgroup.procs"
code=0
unshare --cgroup --net --pid --fork --kill-child --mount-proc "$2" -m tests.support.host_changes "$1" || code=$?
echo $$ > "$1/groups/cgroup.procs"
find "$own" -depth -type d -exec rmdir {} ";"
exit $code
"""
"""Runs this module with a control group of its own as the root of what it sees; $1: scratch folder, $2: Python."""

Traces = dict[str, Any]


def observe(scratch: Path) -> tuple[Traces, Traces, Traces]:
    """The traces of a cluster before `up`, between `up` and `down`, and after `down`. Needs root.

    Raises:
        ClusterError: something failed; carries the end of its output.
    """
    script = ["sh", "-euc", ISOLATED, "sh", str(scratch), sys.executable]
    run(["unshare", "--mount", *script], cwd=REPOSITORY, timeout=500)
    before, meanwhile, after = json.loads((scratch / "traces.json").read_text())
    return before, meanwhile, after


def main(scratch: Path) -> None:
    """Write the three traces to ``traces.json``."""
    isolate()
    cluster = NativeCluster(scratch / "cluster")
    found = [traces(cluster.directory)]
    change(cluster)
    found.append(traces(cluster.directory))
    cluster.down(purge=True)
    found.append(traces(cluster.directory))
    (scratch / "traces.json").write_text(json.dumps(found))


def isolate() -> None:
    """Finish the namespaces: a view of the own control group alone, empty folders at fixed places, a default route.

    Raises:
        ClusterError: something of this machine is still to be seen, which `down` would remove.
    """
    run(["mount", "-t", "cgroup2", "none", CGROUPS])
    if list(CGROUPS.glob("**/kubepods")):
        raise ClusterError("not isolated: the control groups of the machine's own pods are visible")
    for place in FIXED_PLACES:
        run(["mount", "-t", "tmpfs", "none", place])
    for command in (
        "link set lo up",
        "link add uplink type bridge",
        f"address add {ADDRESS}/24 dev uplink",
        "link set uplink up",
        "route add default via 192.0.2.1",
    ):
        run(["ip", *command.split()])
    for name in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
        kernel.sysctl(name).write_text("0")


def change(cluster: NativeCluster) -> None:
    """What `up` and the pods after it change on the machine."""
    cluster.plane.start()
    kernel.apply_settings(cluster.directory / "sysctl.json")
    kernel.masquerade_pods()
    cluster.node.write_configuration()
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "spec": {"podCIDR": POD_SUBNET, "podCIDRs": [POD_SUBNET]},
    }
    cluster.plane.kubectl("create", "-f", "-", stdin=json.dumps(node))
    status = json.dumps({"status": {"addresses": [{"type": "InternalIP", "address": ADDRESS}]}})
    cluster.plane.kubectl("patch", "node", NODE_NAME, "--subresource=status", "-p", status)
    cluster.plane.kubectl("apply", "-f", "-", stdin=configuration.system_objects("none"))
    policy = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": POD_SUBNET}}]}]}
    named = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "pods-only"}}
    cluster.plane.kubectl("create", "-f", "-", stdin=json.dumps(named | {"spec": policy}))
    _, *network_agents = cluster.node.agents()
    start_in_order(network_agents)
    wait_for("kube-router's sets", lambda: run(["ipset", "list", "-name"]).strip(), 180)
    connect_a_pod(cluster.directory)
    leave_what_containers_leave(cluster.directory)


def connect_a_pod(directory: Path) -> None:
    """A network namespace on the bridge, by the CNI plugin that containerd would call."""
    namespace = directory / "containerd" / "state" / "netns"
    namespace.parent.mkdir(parents=True)
    namespace.touch()
    run(["unshare", f"--net={namespace}", "true"])
    network = json.loads(configuration.cni(directory / "cni"))
    (plugin,) = network.pop("plugins")
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "pod", "CNI_NETNS": str(namespace), "CNI_IFNAME": "eth0"}
    run(
        ["/usr/lib/cni/bridge"],
        stdin=json.dumps(network | plugin),
        env={"PATH": SYSTEM_PATH, "CNI_PATH": "/usr/lib/cni", **variables},
    )


def leave_what_containers_leave(directory: Path) -> None:
    """A process in a pod's control group, a mounted volume, a linked log, a network's result, a dead shim's socket."""
    group = CGROUPS / "kubepods" / "burstable" / "pod1"
    group.mkdir(parents=True)
    container = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (group / "cgroup.procs").write_text(str(container.pid))
    volume = directory / "kubelet" / "pods" / "1" / "volumes"
    volume.mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "none", volume])
    log = Path("/var/log/containers/pod.log")
    log.parent.mkdir()
    log.symlink_to(directory / "kubelet" / "pod-logs" / "pod.log")
    result = Path(f"/var/lib/cni/results/{configuration.NETWORK}-pod-eth0")
    result.parent.mkdir(parents=True)
    result.touch()


def traces(directory: Path) -> Traces:
    """Everything that a cluster could have changed, as text or names."""
    links: list[dict[str, Any]] = json.loads(run(["ip", "-json", "link"]))
    return {
        "settings": {
            name: kernel.sysctl(name).read_text().strip() for name in (*kernel.WANTED, *kernel.CHANGED_BY_KUBELET)
        },
        "nft": [line for line in run(["nft", "list", "tables"]).splitlines() if "table" in line],
        "chains": [
            line for tool in ("iptables", "ip6tables") for line in run([f"{tool}-save"]).splitlines() if "KUBE" in line
        ],
        "sets": run(["ipset", "list", "-name"]).split(),
        "links": sorted(link["ifname"] for link in links),
        "mounts": kernel.mounts_below(directory, Path("/proc/self/mountinfo").read_text()),
        "groups": sorted(str(path) for path in CGROUPS.rglob("*") if path.is_dir()),
        "files": sorted(str(path) for place in FIXED_PLACES for path in Path(place).rglob("*")),
        "folder": sorted(path.name for path in directory.iterdir()) if directory.exists() else [],
        "processes": [each.pid for each in processes_with("--config=" + str(directory / "kube-proxy.json"))],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
