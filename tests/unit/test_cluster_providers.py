"""Which cluster a machine gets, and what kind's builds are given. kind itself is not run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.cluster import provider
from hack.cluster.console import ClusterError
from hack.cluster.kind import KindCluster, build_command
from hack.cluster.layout import REPOSITORY
from hack.cluster.native import NativeCluster

pytestmark = pytest.mark.unit


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without any program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FINETUNE_CLUSTER_DIR", str(tmp_path / "cluster"))
    monkeypatch.delenv(provider.PROVIDER_VARIABLE, raising=False)
    return tmp_path


def install(folder: Path, name: str, code: int = 0) -> None:
    """A program that ends with this code."""
    program = folder / name
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installed", "wanted", "kind", "why"),
    [
        ({}, "", False, "no Docker engine"),
        ({"kind": 0}, "", False, "no Docker engine"),
        ({"docker": 1, "kind": 0}, "", False, "no Docker engine"),
        ({"docker": 0}, "", False, "kind is not on the PATH"),
        ({"docker": 0, "kind": 0}, "", True, "kind is on the PATH"),
        ({"docker": 0, "kind": 0}, "native", False, "FINETUNE_CLUSTER_PROVIDER=native"),
        ({}, "kind", True, "FINETUNE_CLUSTER_PROVIDER=kind"),
    ],
)
def test_kind_is_taken_where_it_can_run(
    programs: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, int], wanted: str, kind: bool, why: str
) -> None:
    for name, code in installed.items():
        install(programs, name, code)
    monkeypatch.setenv(provider.PROVIDER_VARIABLE, wanted)
    name, reason = provider.choice()
    assert name == ("kind" if kind else "native")
    assert why in reason
    assert isinstance(provider.provider(), KindCluster if kind else NativeCluster)


def test_an_unknown_provider_is_named_with_the_known_ones(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provider.PROVIDER_VARIABLE, "minikube")
    with pytest.raises(ClusterError, match=r"FINETUNE_CLUSTER_PROVIDER=minikube: .*use kind or native"):
        provider.provider()


def test_without_kind_its_provider_says_where_to_get_it(programs: Path) -> None:
    with pytest.raises(ClusterError, match=r"kind is not on the PATH: install it \(https://kind\.sigs\.k8s\.io"):
        KindCluster(programs / "cluster").up()


def test_docker_builds_get_the_machines_certificates_and_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.crt"
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("https_proxy", "http://proxy.example.com:3128")
    dockerfile = REPOSITORY / "images" / "build" / "Dockerfile"
    option = f"--secret=id=ca,src={bundle}"
    assert option not in build_command("build:1", tmp_path, dockerfile, {}), (
        "Docker refuses a secret whose file is missing"
    )

    bundle.touch()
    command = build_command("build:1", tmp_path, dockerfile, {"PARENT": "base:1"})
    assert {option, "--build-arg=https_proxy=http://proxy.example.com:3128", "--build-arg=PARENT=base:1"} <= {*command}
    assert command[-1] == tmp_path


def test_the_certificates_are_the_secret_that_the_dockerfiles_ask_for() -> None:
    lines = [line for path in (REPOSITORY / "images").rglob("Dockerfile") for line in path.read_text().splitlines()]
    secrets = [line for line in lines if "type=secret" in line]
    assert secrets
    assert all("id=ca," in line for line in secrets)
