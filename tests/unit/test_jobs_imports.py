"""Each stage runs with the packages of its own image: what another image's extra brings is not there. And what
libraries say while they are imported goes into its log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from finetune_api.meta import ExitCode
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
AFTER = "the other stages are imported"
PROGRAM = """
import importlib, json, os, runpy, sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path = [Present if finder is PathFinder else finder for finder in sys.meta_path]
*others, first = ["finetune_jobs." + stage for stage in {stages!r}]
sys.orig_argv = [sys.executable, "-m", first, *sys.argv[1:]]
sys.argv[0] = "-m"
os._exit = sys.exit
try:
    runpy.run_module(first, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print({after!r}, file=sys.stderr)
for other in others:
    importlib.import_module(other)
print(json.dumps({{"code": code, "late": sorted(set({late!r}) & sys.modules.keys())}}))
"""
"""Runs a stage as ``python -m`` does where some modules are not installed, imports others, and looks for modules that
only some runs need."""
LATE = ("openai",)
"""What a stage imports once it asks another model: most runs never do."""


def test_the_table_names_what_the_images_install() -> None:
    assert set(EXTRA_OF.values()) <= {image.extra for image in IMAGES.values()}


@dataclass(frozen=True)
class Imported:
    """What became of an image's stages, one of them a program without an input, in one process: for all of them the
    same packages are missing."""

    stage: Stage
    """The program."""
    code: int
    """With which it ended."""
    log: str
    """What it wrote to its standard error."""
    late: list[str]
    """Of ``LATE``, what was imported."""


@pytest.fixture(scope="module", params=list(dict.fromkeys(EXTRA_OF.values())))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """The stages of an image, imported with its packages only."""
    others = {name for each in ("prepare", "jobs", "operator", "cli") for name in direct(each)}
    absent = others - closure(frozenset(direct(request.param)))
    assert absent
    modules = sorted(name for name, owners in distributions().items() if absent & owners)
    stages = [stage for stage in EXTRA_OF if EXTRA_OF[stage] == request.param]
    names = [stage.value for stage in stages]
    program = PROGRAM.format(absent=set(modules), stages=names, after=AFTER, late=LATE)
    folder: Path = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-c", program, "--input", str(folder / "none"), "--result", str(folder / "result")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    log, after, _ = done.stderr.partition(f"{AFTER}\n")
    assert after
    return Imported(stages[-1], **json.loads(done.stdout), log=log)


def test_a_stage_needs_no_package_of_another_image(imported: Imported) -> None:
    """Nor does it import one that only a teacher, a judge or a model to compare with needs."""
    assert imported.code == ExitCode.FATAL, imported.log
    assert not imported.late, "imported before it is needed"


def test_what_libraries_say_while_they_are_imported_is_a_json_line(imported: Imported) -> None:
    """Transformers and bitsandbytes warn where torch or a kernel is missing. Nothing is written to stdout."""
    assert [line for line in imported.log.splitlines() if json.loads(line)["stage"] != imported.stage] == []


def normal(names: Iterable[str]) -> set[str]:
    return {canonicalize_name(name) for name in names}


@cache
def distributions() -> dict[str, set[str]]:
    """Of each module, the distributions that install it. Reading what is installed takes seconds."""
    return {name: normal(owners) for name, owners in packages_distributions().items()}


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
