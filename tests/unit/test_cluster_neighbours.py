"""A machine that is another cluster's node is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.cluster.console import ClusterError
from hack.cluster.neighbours import refuse_foreign_node

pytestmark = pytest.mark.unit
OURS = Path("/var/cache/finetune/cluster")
HOST, CONTAINER = "net:[1]", "net:[2]"


def process(proc: Path, pid: str, name: str, arguments: str, network: str = HOST) -> None:
    """What the kernel shows of a process."""
    folder = proc / pid
    (folder / "ns").mkdir(parents=True)
    (folder / "ns/net").symlink_to(network)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_text(arguments.replace(" ", "\0"))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process(tmp_path, "self", "python3", "python3 -m hack.cluster up")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("kubelet", "/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml"),
        ("kube-proxy", "kube-proxy --config=/var/lib/kube-proxy/config.conf"),
        ("k3s-server", "/usr/local/bin/k3s server"),
        ("kubelet", f"kubelet --config={OURS}-of-another-checkout/kubelet.json"),
    ],
)
def test_a_node_of_another_cluster_is_refused(proc: Path, name: str, arguments: str) -> None:
    process(proc, "77", name, arguments)
    with pytest.raises(ClusterError, match=rf"^{name} \(pid 77\) runs on this machine, but not for .*{OURS}: "):
        refuse_foreign_node(OURS, proc)


@pytest.mark.parametrize(
    ("name", "arguments", "network"),
    [
        ("kubelet", f"/tools/kubelet --config={OURS}/kubelet.json", HOST),
        ("kubelet", "/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml", CONTAINER),
        ("kubelet", "", HOST),  # ending: a zombie has no arguments
        ("kubectl", "kubectl get pods", HOST),
    ],
)
def test_our_own_and_what_does_no_harm(proc: Path, name: str, arguments: str, network: str) -> None:
    process(proc, "77", name, arguments, network)
    refuse_foreign_node(OURS, proc)
