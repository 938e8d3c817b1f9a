"""Each stage runs with the packages of its own image: what another image's extra brings is not there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from finetune_api.stages import Stage
from hack.cluster.images import IMAGES
from hack.cluster.layout import REPOSITORY

pytestmark = [pytest.mark.unit, pytest.mark.slow]

EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
EXTRA_OF = {
    Stage.RESOLVE: "data",
    Stage.PREPARE: "prepare",
    Stage.TRAIN: "jobs",
    Stage.EVALUATE: "jobs",
    Stage.PUBLISH: "data",
    Stage.FETCH: "data",
    Stage.VERIFY: "data",
    Stage.ANALYSE: "data",
    Stage.FOLLOW: "data",
}
"""The extra that each stage's image installs. Export's has pins of its own, which this environment lacks."""
PROGRAM = """
import importlib, sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path = [Present if finder is PathFinder else finder for finder in sys.meta_path]
for stage in {stages!r}:
    importlib.import_module("finetune_jobs." + stage)
late = set({late!r}) & sys.modules.keys()
assert not late, f"imported before it is needed: {{late}}"
"""
"""Imports stages where some modules are not installed, and looks for those that only some runs need."""
LATE = ("openai",)
"""What a stage imports once it asks another model: most runs never do."""


def test_the_table_names_what_the_images_install() -> None:
    assert set(EXTRA_OF.values()) <= {image.extra for image in IMAGES.values()}


@pytest.mark.parametrize("extra", dict.fromkeys(EXTRA_OF.values()))
def test_a_stage_needs_no_package_of_another_image(extra: str) -> None:
    """The stages of an image in one process: for all of them the same packages are missing. Nor is one imported that
    only a teacher, a judge or a model to compare with needs."""
    others = {name for each in ("prepare", "jobs", "operator", "cli") for name in direct(each)}
    absent = others - closure(frozenset(direct(extra)))
    assert absent
    modules = sorted(name for name, owners in packages_distributions().items() if absent & normal(owners))
    stages = [stage.value for stage in EXTRA_OF if EXTRA_OF[stage] == extra]
    program = PROGRAM.format(absent=set(modules), stages=stages, late=LATE)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def normal(names: Iterable[str]) -> set[str]:
    return {canonicalize_name(name) for name in names}


def direct(extra: str) -> set[str]:
    """Distributions that an extra names, by itself or by another extra of ours."""
    found: set[str] = set()
    for line in EXTRAS[extra]:
        own = re.fullmatch(r"finetune-operator\[(.+)\]", line)
        found |= {n for each in own[1].split(",") for n in direct(each)} if own else normal([Requirement(line).name])
    return found


@cache
def closure(names: frozenset[str]) -> set[str]:
    """These distributions and all that they need, as far as they are installed."""
    seen: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        needed = (Requirement(line) for line in requires(name) or [])
        always = (each for each in needed if not each.marker or each.marker.evaluate({"extra": ""}))
        waiting |= normal(each.name for each in always) - seen
    return seen
