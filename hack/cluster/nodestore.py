"""The native node's image store: BuildKit builds straight into it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .buildkit import build_image, prune
from .console import run, step
from .layout import IMAGE_PREFIX
from .node import Node
from .processes import write_if_changed

PYTHON_IMAGE = f"{IMAGE_PREFIX}/python"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "netbase", "python3", "python3-venv", "tzdata")
_DOCKERFILE = "FROM scratch\nADD rootfs.tar /\nRUN ln -s /usr/bin/python3 /usr/local/bin/python\n"


@dataclass(frozen=True)
class NodeImages:
    """:class:`~hack.cluster.images.ImageStore` of the native cluster. Nothing is pulled, because there may be no
    registry."""

    node: Node

    def base_image(self) -> str:
        """Debian with its Python 3.11 (like ``python:3.11-slim-bookworm``), built once from Debian packages."""
        content = hashlib.sha256("\0".join((SUITE, *PACKAGES, _DOCKERFILE)).encode()).hexdigest()[:12]
        reference = f"{PYTHON_IMAGE}:3.11-slim-{SUITE}-{content}"
        if not self.has(reference):
            with step(f"build image {reference} from Debian packages"), tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                folder.chmod(0o755)
                options = ["--variant=minbase", "--dpkgopt=path-exclude=/usr/share/doc/*"]
                options += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
                run(["mmdebstrap", *options, f"--include={','.join(PACKAGES)}", SUITE, folder / "rootfs.tar"])
                (folder / "Dockerfile").write_text(_DOCKERFILE)
                build_image(self.node.buildkit_address, reference, folder, folder / "Dockerfile")
        return reference

    def has(self, reference: str) -> bool:
        return self.node.has_image(reference)

    def build(self, reference: str, context: Path, dockerfile: Path, arguments: Mapping[str, str]) -> None:
        build_image(self.node.buildkit_address, reference, context, dockerfile, arguments)

    def tag(self, reference: str, alias: str) -> None:
        self.node.ctr("images", "tag", "--force", reference, alias)

    def remove_older(self, name: str, latest: str, kept: int) -> None:
        """Keeps the order of builds in a file: containerd's client does not show when an image was created."""
        history = self.node.directory / "images" / f"{name}.json"
        earlier = json.loads(history.read_text()) if history.exists() else []
        order = [latest, *(each for each in earlier if each != latest)]
        prefix = f"{IMAGE_PREFIX}/{name}:"
        stay = {*order[:kept], f"{prefix}dev"}
        for reference in self.node.ctr("images", "list", "--quiet").split():
            if reference.startswith(prefix) and reference not in stay:
                self.node.ctr("images", "remove", reference)
        write_if_changed(history, json.dumps(order[:kept]))

    def prune(self) -> int:
        """Measured on the disk, because layers that only old images held are containerd's to delete."""
        before = shutil.disk_usage(self.node.directory).free
        for reference in unnamed(self.node.ctr("images", "list")):
            self.node.ctr("images", "remove", reference)
        prune(self.node.buildkit_address)
        return max(0, shutil.disk_usage(self.node.directory).free - before)

    def publish(self, reference: str) -> None:
        """Nothing to do: the image is already on the node."""


def unnamed(listing: str) -> list[str]:
    """The images without a name in containerd's table.

    For the kubelet, containerd also lists every image by its ID. It keeps that entry when the last name is removed, and
    the entry holds all layers.
    """
    rows = [line.split() for line in listing.splitlines()[1:]]
    named = {digest for reference, _, digest, *_ in rows if not reference.startswith("sha256:")}
    return [reference for reference, _, digest, *_ in rows if reference.startswith("sha256:") and digest not in named]
