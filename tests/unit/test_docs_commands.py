"""What the documentation tells people to type: in an order that works, with names that exist."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_api import crdgen
from hack.cluster.images import IMAGES
from hack.cluster.layout import IMAGE_PREFIX, REPOSITORY
from tests.support.pages import CODE, PAGES, blocks, commands, every_page, prose

pytestmark = pytest.mark.unit

APPLIED: Final = re.compile(r"\bapply -f (examples/\S*)")
MAKE: Final = re.compile(r"\bmake ([a-z][a-z-]*)\b")
MODULE: Final = re.compile(r"\bpython3? -m ((?:finetune_\w+|hack)(?:\.\w+)*)")
KUBECTL: Final = re.compile(
    r"\bkubectl(?: -n \S+)? (?:get|describe|delete|wait|patch|scale|explain)(?: (?:-n|-l|-L) \S+)* ([a-z][\w,./-]*)"
)
BUILT_IN: Final = frozenset(
    {
        "configmap",
        "configmaps",
        "controllerrevisions",
        "crd",
        "deployments",
        "endpointslices",
        "events",
        "lease",
        "namespace",
        "networkpolicies",
        "poddisruptionbudgets",
        "node",
        "nodes",
        "pods",
        "secret",
        "serviceaccount",
    }
)
"""Resources of Kubernetes that the pages name."""


@pytest.mark.parametrize("name", ["README.md", "docs/how-to/install.md"])
def test_the_chart_is_installed_into_namespaces_that_exist_and_makes_their_accounts_itself(name: str) -> None:
    """Helm puts nothing into a namespace that is not there, and takes over nothing that it has not made."""
    typed = commands(REPOSITORY / name)
    install = next(number for number, line in enumerate(typed) if line.startswith("helm upgrade --install"))
    assert "kubectl create namespace team-a" in typed[:install]
    assert not [line for line in typed if "-n team-a create serviceaccount" in line], "runner.namespaces lists it"


def test_images_are_pushed_under_a_tag_of_their_own_which_the_values_name() -> None:
    """Nodes never pull a tag again that they have: under the same one, an upgrade would go on with the old images."""
    page = REPOSITORY / "docs" / "how-to" / "install.md"
    pushed = [line for line in commands(page) if line.startswith("docker push")]
    assert pushed == ["docker push $REGISTRY/$image:$VERSION"]
    assert any(line.startswith("VERSION=$(git describe") for line in commands(page))
    values = yaml.safe_load(next(block for block in blocks(page, "yaml") if block.startswith("# values.yaml")))
    assert isinstance(values["images"]["tag"], str)


@pytest.mark.slow
def test_images_are_built_as_the_cluster_builds_them(tmp_path: Path) -> None:
    """The block runs as it stands, with a Docker that only writes down what it is asked for."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@"\n')
    docker.chmod(0o755)
    page = REPOSITORY / "docs" / "how-to" / "install.md"
    block = next(block for block in blocks(page, "console") if "docker build" in block)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", block], env=environment, capture_output=True, text=True, check=True)
    built: dict[str, tuple[Path, str, str]] = {}
    for line in done.stdout.splitlines():
        said = dict(pair.split("=") for pair in re.findall(r"--build-arg (\S+)", line))
        name, dockerfile = line.partition("--tag ")[2].split(":")[0], line.partition("--file ")[2].split()[0]
        parent = said.get("PARENT", f"{IMAGE_PREFIX}/base:dev").removesuffix(":dev")
        assert name == parent or parent in built, "parents come first"
        built[name] = (REPOSITORY / dockerfile, said.get("EXTRA", ""), parent)
    assert built == {
        f"{IMAGE_PREFIX}/{image.name}": (image.dockerfile, image.extra, f"{IMAGE_PREFIX}/{image.parent or 'base'}")
        for image in IMAGES.values()
        if image.name != "seaweedfs" and not image.asked_for
    }


def test_what_is_applied_of_an_example_needs_nothing_that_its_page_does_not_create() -> None:
    """A folder is applied whole: one job, and at most one endpoint, which is for clients in the cluster."""
    applied = {place for page in PAGES for line in commands(page) for place in APPLIED.findall(line)}
    assert "examples/transactions/" in applied
    for place in sorted(applied):
        path = REPOSITORY / place
        documents = [yaml.safe_load(each.read_text()) for each in (path.glob("*.yaml") if path.is_dir() else [path])]
        kinds = sorted(each["kind"] for each in documents)
        assert kinds in (["FineTuneJob"], ["AdapterDeployment", "FineTuneJob"]), place
        assert not [each for each in documents if "access" in each["spec"]], place


# Names


@cache
def code(page: Path) -> list[str]:
    """What a page writes as code, in lines of prose and in blocks of commands."""
    return [*CODE.findall(prose(page)), *commands(page), *blocks(page, "")]


@every_page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {target for text in code(page) for target in MAKE.findall(text)}
    assert sorted(named - targets) == []


@every_page
def test_every_module_that_is_started_exists(page: Path) -> None:
    named = {name for text in code(page) for name in MODULE.findall(text)}
    assert sorted(name for name in named if find_spec(name) is None) == []


@every_page
def test_every_resource_that_kubectl_is_asked_for_exists(page: Path) -> None:
    own = {name for kind in crdgen.KINDS for name in (kind.plural, kind.kind.lower(), kind.short_name)}
    known = BUILT_IN | own | {"finetune"} | {f"{kind.plural}.finetune.dev" for kind in crdgen.KINDS}
    asked = {name for text in code(page) for match in KUBECTL.findall(text) for name in match.split(",")}
    assert sorted(name for name in asked if re.split(r"/|\.(?:spec|status)", name)[0] not in known) == []


def paths(values: dict[str, Any], place: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{place}{name}"
        if isinstance(value, dict):
            yield from paths(value, f"{place}{name}.")


@cache
def chart_values() -> dict[str, Any]:
    """The chart's values.yaml."""
    text = (REPOSITORY / "charts" / "finetune-operator" / "values.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return values


@every_page
def test_every_value_of_the_chart_that_is_named_exists(page: Path) -> None:
    """Of profiles and runtimes anybody may make more: those are not looked at."""
    values = chart_values()
    known, groups = set(paths(values)), "|".join(set(values) - {"profiles", "runtimes"})
    named = {name for text in code(page) for name in re.findall(rf"(?<![\w./-])(?:{groups})(?:\.[a-zA-Z]+)+", text)}
    assert sorted(name for name in named - known if not name.endswith((".json", ".md", ".py", ".yaml"))) == []
