"""A cluster with kind, if a Docker engine is running. Continuous integration does not test this provider."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import toolchain
from .buildkit import ca_secret, proxies
from .console import ClusterError, run, succeeds
from .layout import IMAGE_PREFIX, cluster_directory

NAME = "finetune"
CLIENTS = tuple(toolchain.tool_of(name) for name in ("kubectl", "helm"))
BASE_IMAGE = "python:3.11-slim-bookworm"


def docker_answers() -> bool:
    """Whether a Docker engine is running, for kind to use."""
    return shutil.which("docker") is not None and succeeds(["docker", "info"])


def kind_installed() -> bool:
    """Whether kind is installed."""
    return shutil.which("kind") is not None


@dataclass(frozen=True)
class KindCluster:
    """A kind cluster named ``finetune``, with its kubeconfig where the native cluster's would be."""

    directory: Path

    @classmethod
    def default(cls) -> KindCluster:
        return cls(cluster_directory())

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "admin.kubeconfig"

    def up(self) -> None:
        """Create the cluster unless it exists. kubectl and helm are the same as for the native cluster.

        Raises:
            ClusterError: kind is not installed, or failed.
        """
        if not kind_installed():
            raise ClusterError(
                "kind is not on the PATH: install it (https://kind.sigs.k8s.io/docs/user/quick-start/#installation)"
            )
        toolchain.build(CLIENTS)
        self.directory.mkdir(parents=True, exist_ok=True)
        if NAME not in run(["kind", "get", "clusters"]).split():
            run(["kind", "create", "cluster", "--name", NAME, "--wait", "120s", "--kubeconfig", self.kubeconfig])
        else:
            run(["kind", "export", "kubeconfig", "--name", NAME, "--kubeconfig", self.kubeconfig])
        for name in ("kubectl", "helm"):
            toolchain.write_command(self.directory / "bin", name, f"KUBECONFIG={self.kubeconfig}")

    def down(self, purge: bool = False) -> None:
        """Delete the cluster; ``purge`` also removes the project's images from Docker."""
        run(["kind", "delete", "cluster", "--name", NAME])
        self.kubeconfig.unlink(missing_ok=True)
        if purge:
            images = run(["docker", "images", "--quiet", f"{IMAGE_PREFIX}/*"]).split()
            run(["docker", "image", "rm", "--force", *dict.fromkeys(images)]) if images else None

    def status(self) -> str:
        if NAME not in run(["kind", "get", "clusters"]).split():
            return f"kind cluster {NAME}: does not exist"
        return run([toolchain.program("kubectl"), "--kubeconfig", self.kubeconfig, "get", "nodes", "--output", "wide"])

    def images(self) -> DockerImages:
        return DockerImages()


@dataclass(frozen=True)
class DockerImages:
    """:class:`~hack.cluster.images.ImageStore` of a Docker engine, loaded into kind's node when published."""

    def base_image(self) -> str:
        return os.environ.get("BASE_IMAGE", BASE_IMAGE)

    def has(self, reference: str) -> bool:
        return succeeds(["docker", "image", "inspect", reference])

    def build(self, reference: str, context: Path, dockerfile: Path, arguments: Mapping[str, str]) -> None:
        run(build_command(reference, context, dockerfile, arguments), env={**os.environ, "DOCKER_BUILDKIT": "1"})

    def tag(self, reference: str, alias: str) -> None:
        run(["docker", "tag", reference, alias])

    def remove_older(self, name: str, latest: str, kept: int) -> None:
        """Docker lists the newest first."""
        listed = run(["docker", "images", "--format", "json", f"{IMAGE_PREFIX}/{name}"])
        found = [f"{image['Repository']}:{image['Tag']}" for image in map(json.loads, listed.splitlines())]
        earlier = [each for each in found if each not in (latest, f"{IMAGE_PREFIX}/{name}:dev")]
        for reference in earlier[kept - 1 :]:
            run(["docker", "image", "rm", reference])

    def prune(self) -> int:
        """Docker's build cache is not ours alone, and has a limit of its own."""
        return 0

    def publish(self, reference: str) -> None:
        name = reference.rpartition(":")[0]
        run(["kind", "load", "docker-image", "--name", NAME, reference, f"{name}:dev"])


def build_command(reference: str, context: Path, dockerfile: Path, arguments: Mapping[str, str]) -> list[str | Path]:
    """The Docker command that builds an image, with the machine's proxies and CA bundle."""
    given = [f"--build-arg={name}={value}" for name, value in {**proxies(), **arguments}.items()]
    return ["docker", "build", "--tag", reference, "--file", dockerfile, *ca_secret(), *given, context]
