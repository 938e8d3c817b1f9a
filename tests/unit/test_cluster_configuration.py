"""The local cluster's configuration files, certificates and tool builds, as far as they are pure."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hack.cluster import configuration, dns, packages, toolchain
from hack.cluster.kernel import mounts_below
from hack.cluster.layout import Ports, cache_directory, cluster_directory
from hack.cluster.pki import Authority

pytestmark = pytest.mark.unit

ROOT = Path("/srv/cluster")
SOCKET = ROOT / "containerd" / "containerd.sock"


def paths_in(value: Any) -> list[str]:
    """Every absolute path or unix socket that a configuration names."""
    if isinstance(value, dict):
        return [path for each in value.values() for path in paths_in(each)]
    if isinstance(value, list):
        return [path for each in value for path in paths_in(each)]
    return [value.removeprefix("unix://")] if isinstance(value, str) and value.startswith(("/", "unix://")) else []


@pytest.mark.parametrize(
    ("config", "of_the_system"),
    [
        (tomllib.loads(configuration.containerd(ROOT, "pause:1")), {"/usr/lib/cni"}),
        (tomllib.loads(configuration.buildkit(ROOT, SOCKET, 4 * 10**9)), set()),
        (json.loads(configuration.kubelet(ROOT, SOCKET, ROOT / "pki", Ports())), {"/etc/resolv.conf"}),
        (json.loads(configuration.kube_proxy(ROOT / "kube-proxy.kubeconfig", Ports())), set()),
        (json.loads(configuration.cni(ROOT / "cni")), set()),
    ],
    ids=["containerd", "buildkit", "kubelet", "kube-proxy", "cni"],
)
def test_everything_lies_in_the_clusters_folder(config: dict[str, Any], of_the_system: set[str]) -> None:
    outside = {path for path in paths_in(config) if not path.startswith(f"{ROOT}/")}
    assert outside <= of_the_system


def test_the_kubelet_evicts_for_absolute_amounts_and_keeps_images() -> None:
    config = json.loads(configuration.kubelet(ROOT, SOCKET, ROOT / "pki", Ports()))
    assert all(not threshold.endswith("%") for threshold in config["evictionHard"].values())
    assert {"nodefs.available", "imagefs.available"} <= set(config["evictionHard"])
    assert config["imageGCHighThresholdPercent"] == 100, "there is no registry to pull a collected image from again"


def test_one_ports_for_all_parts() -> None:
    ports = list(vars(Ports()).values())
    assert len(set(ports)) == len(ports)
    assert not set(ports) & {2379, 2380, 6443, 10250, 10256, 10257, 10259}, "another cluster may hold the defaults"


@pytest.mark.slow
def test_free_ports_are_free_and_out_of_the_way_of_outgoing_connections() -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    free = list(vars(Ports.free()).values())[:5]
    assert len(set(free)) == 5
    assert max(free) < first_outgoing
    for port in free:
        socket.create_server(("127.0.0.1", port)).close()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FINETUNE_CLUSTER_DIR", raising=False)
    assert cache_directory() == tmp_path / "finetune-operator"
    assert cluster_directory() == tmp_path / "finetune-operator" / "cluster"
    monkeypatch.setenv("FINETUNE_CLUSTER_DIR", "/srv/other")
    assert cluster_directory() == Path("/srv/other")


def test_a_dns_question_is_encoded_as_rfc_1035_says() -> None:
    header = bytes.fromhex("abcd 0100 0001 0000 0000 0000")
    assert dns.question("a.example", 0xABCD) == header + b"\x01a\x07example\x00" + bytes.fromhex("0001 0001")


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        ({"sh": "dash"}, []),
        ({"no-such-program": "some-package", "sh": "dash"}, ["some-package"]),
        ({"/no/such/file": "other", "no-such-program": "other"}, ["other"]),
    ],
)
def test_missing_packages_are_named_once(programs: dict[str, str], expected: list[str]) -> None:
    assert packages.missing(programs) == expected


def test_mounts_are_found_below_a_folder_only_deepest_first() -> None:
    table = "\n".join(
        f"36 35 98:0 / {point} rw - tmpfs tmpfs rw"
        for point in ("/srv/cluster/a", "/srv/cluster/a/b\\040c", "/srv/cluster-2/a", "/srv/cluster", "/")
    )
    assert mounts_below(ROOT, table) == ["/srv/cluster/a/b c", "/srv/cluster/a"]


class TestTools:
    @pytest.mark.parametrize("tool", toolchain.TOOLS.values(), ids=lambda tool: tool.name)
    def test_each_is_pinned_by_a_module_of_its_own(self, tool: toolchain.Tool) -> None:
        module = (tool.source / "go.mod").read_text()
        if tool.module != "pause":  # needs nothing but the standard library
            # Prometheus numbers its module otherwise than its releases: v3.16.0 is v0.316.0.
            version = "v0.316.0" if tool.name == "prometheus" else tool.version
            assert version in module
            assert (tool.source / "go.sum").stat().st_size > 0

    def test_what_goes_into_a_program_names_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(toolchain, "TOOL_SOURCES", tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        source = tmp_path / "thing"
        source.mkdir()
        (source / "go.mod").write_text("module thing\n")
        tool = toolchain.Tool("thing", "v1", "thing", (".", "example.org/x/cmd/other"))
        assert tool.programs == ("thing", "other")
        assert replace(tool, packages=("example.org/named/v2",)).programs == ("named",), "not by its major version"
        variants = {tool.key(), replace(tool, ldflags="-X a=b").key(), replace(tool, packages=(".",)).key()}
        (source / "go.mod").write_text("module thing // changed\n")
        variants.add(tool.key())
        assert len(variants) == 4

        assert not tool.built()
        tool.directory().mkdir(parents=True)
        (tool.directory() / "thing").touch()
        assert not tool.built(), "half of its programs are missing"
        (tool.directory() / "other").touch()
        assert tool.built()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("go version go1.26.8 linux/amd64", (1, 26, 8)),
            ("go version go1.27rc1 linux/amd64", (1, 27, 1)),
            ("command not found", (0,)),
        ],
    )
    def test_go_versions_compare_as_numbers(self, text: str, expected: tuple[int, ...]) -> None:
        assert toolchain.version_in(text, r"go version go(\S+)") == expected


class TestCertificates:
    @pytest.mark.slow
    def test_are_issued_once_and_again_when_asked_for_otherwise(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        authority.create()
        root = authority.certificate.read_bytes()
        certificate, key = authority.issue("server", "/CN=server", ("DNS:localhost", "IP:127.0.0.1"))
        first = certificate.read_bytes()
        authority.create()
        assert authority.certificate.read_bytes() == root
        authority.issue("server", "/CN=server", ("DNS:localhost", "IP:127.0.0.1"))
        assert certificate.read_bytes() == first
        authority.issue("server", "/CN=server", ("DNS:localhost", "IP:192.0.2.7"))
        assert certificate.read_bytes() != first
        assert key.stat().st_mode & 0o077 == 0
        subprocess.run(["openssl", "verify", "-CAfile", authority.certificate, certificate], check=True)
        ssl.create_default_context().load_cert_chain(certificate, key)

    @pytest.mark.slow
    def test_a_kubeconfig_is_private_and_self_contained(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "pki")
        authority.create()
        path = authority.kubeconfig(tmp_path / "admin.kubeconfig", "https://127.0.0.1:1", "admin", "/CN=admin")
        assert path.stat().st_mode & 0o077 == 0
        assert str(tmp_path) not in path.read_text()
