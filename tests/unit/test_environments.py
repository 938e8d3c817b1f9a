"""Virtual environments are made with what a bare machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hack.cluster import packages
from hack.cluster.console import run
from hack.cluster.layout import REPOSITORY
from hack.environments import python_settings, uv

pytestmark = pytest.mark.unit


@pytest.mark.slow
def test_a_new_environment_has_pip_and_the_python_behind_this_one(tmp_path: Path) -> None:
    programs = packages.make_environment(tmp_path / "environment")
    prefix = run([programs / "python", "-c", "import sys; print(sys.base_prefix)"]).strip()
    assert prefix == sys.base_prefix
    assert run([programs / "pip", "--version"])


def test_debians_split_of_venv_is_known() -> None:
    """Where ensurepip is missing, venv is the package to install."""
    ((module, package),) = packages.VENV_PROGRAMS.items()
    assert packages.missing({f"{module}-of-nobody": package}) == [f"python3.{sys.version_info.minor}-venv"]
    assert packages.missing(packages.VENV_PROGRAMS) == []


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_the_running_python_is_taken_where_the_pins_have_packages_for_it(
    minor: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert python_settings(minor) == {"UV_PYTHON": str(packages.base_interpreter()), "UV_PYTHON_DOWNLOADS": "never"}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_with_a_newer_python_uv_finds_one_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    settings = python_settings(14)
    shown = capsys.readouterr().out
    assert [part for part in ("Python 3.14", "3.11 to 3.13", "make PYTHON=") if part not in shown] == []
    found = run([uv(), "python", "find", "--system"], env={**os.environ, **settings, "UV_PYTHON_DOWNLOADS": "never"})
    assert run([found.strip(), "-c", "import sys; print(sys.version_info.minor)"]).strip() in {"11", "12", "13"}


@pytest.mark.slow
def test_an_older_python_is_refused_with_the_remedy() -> None:
    code = "import sys; sys.version_info = (3, 9, 2, 'final', 0); import hack.environments"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: Python 3.9 is too old; use 3.11 or newer: make PYTHON=python3.11 ..."
