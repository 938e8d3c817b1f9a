"""`up` heals the native cluster, whatever died. First in its folder: it ends the pods that later tests install."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import kernel
from hack.cluster.layout import KUBERNETES_SERVICE_IP
from hack.cluster.native import NativeCluster
from hack.cluster.node import processes_with
from hack.cluster.processes import Record
from hack.platform.kubectl import Kubectl, wait_for
from tests.support.restricted import CONNECT, LOOKUP, message_of, python_pod, restricted_namespace, serve

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

CLIENTS = {"controller-manager", "scheduler", "kubelet", "kube-proxy", "kube-router"}
PARTS = {"etcd", "apiserver", "containerd", *CLIENTS}


@pytest.fixture
def namespace() -> Iterator[Kubectl]:
    with restricted_namespace("failures") as kubectl:
        yield kubectl


def records(cluster: NativeCluster) -> dict[str, Record | None]:
    return {daemon.name: daemon.record() for daemon in cluster.daemons()}


def kill(*victims: Record | None) -> None:
    living = [victim.identity for victim in victims if victim]
    assert len(living) == len(victims), "it was dead before"
    for identity in living:
        os.kill(identity.pid, signal.SIGKILL)
    wait_for("the killed to end", lambda: not any(each.alive() for each in living), 60, interval=0.05)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_up_heals_a_killed_part_and_leaves_the_others_alone(
    native: NativeCluster, namespace: Kubectl, part: str
) -> None:
    serve(namespace)
    before = records(native)
    kill(before[part])

    native.up()

    after = records(native)
    assert None not in after.values()
    restarted = {name for name, record in after.items() if record != before[name]}
    assert restarted == ({part} | CLIENTS if part in ("etcd", "apiserver") else {part})
    web = namespace.get("pod", "web")["status"]["containerStatuses"][0]
    assert web["restartCount"] == 0, "a running container must not notice"
    namespace.apply(python_pod("caller", CONNECT, "http://web", "answered"))
    assert message_of(namespace, "caller") == "answered"


def test_up_heals_all_parts_at_once(native: NativeCluster, namespace: Kubectl) -> None:
    kill(*records(native).values())
    native.up()
    namespace.apply(python_pod("caller", LOOKUP, "kubernetes.default"))
    assert message_of(namespace, "caller") == KUBERNETES_SERVICE_IP


def test_up_after_the_machine_was_switched_off(native: NativeCluster, namespace: Kubectl) -> None:
    """No process, mount, bridge or firewall rule is left, and nothing was said good-bye to."""
    serve(namespace)
    kill(*records(native).values())
    for shim in processes_with(str(native.node.containerd_socket)):
        os.kill(shim.pid, signal.SIGKILL)
    kernel.remove_cgroups()
    kernel.unmount_below(native.directory)
    kernel.remove_network()
    kernel.restore_settings(native.directory / "sysctl.json")
    (native.directory / "boot-id").write_text("the boot before")

    native.up()

    namespace.apply(python_pod("caller", LOOKUP, "kubernetes.default"))
    assert message_of(namespace, "caller") == KUBERNETES_SERVICE_IP
    wait_for(
        "the pod of before to be given up", lambda: namespace.get("pod", "web")["status"]["phase"] == "Failed", 600
    )


def test_status_names_every_part(native: NativeCluster) -> None:
    rows = [line.split() for line in native.status().splitlines()[1:]]
    assert {row[0] for row in rows if row[1] == "ready"} == PARTS | {"buildkitd"}


def test_what_is_changed_on_the_machine_is_remembered(native: NativeCluster) -> None:
    assert (native.directory / "sysctl.json").exists(), "down could not restore what up did not remember"
    for name, value in kernel.WANTED.items():
        assert int(Path("/proc/sys", *name.split(".")).read_text()) >= int(value)
