"""The throwaway control planes that the other tests of this folder stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from hack.cluster.processes import Identity, Record

pytestmark = pytest.mark.controlplane

FORGETFUL = """
from hack.cluster.controlplane import ControlPlane
plane = ControlPlane.temporary()
plane.start()
print("stands in", plane.directory, flush=True)
input()
"""


def test_two_stand_side_by_side_and_one_leaves_nothing(plane: ControlPlane) -> None:
    with ControlPlane.temporary(controllers=("serviceaccount-controller",)) as other:
        plane.kubectl("create", "namespace", "only-here")
        other.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=180s", timeout=200)
        assert "only-here" in plane.kubectl("get", "namespaces")
        assert "only-here" not in other.kubectl("get", "namespaces")
        parts = [record.identity for each in other.daemons() if (record := each.record())]
        assert len(parts) == 3
    assert not any(part.alive() for part in parts)
    assert not other.directory.exists()
    left = [record.identity for each in plane.daemons() if (record := each.record())]
    assert all(part.alive() for part in left)


def test_what_a_killed_test_run_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # or another run of tests would be the next
    owner = subprocess.Popen(
        (sys.executable, "-c", FORGETFUL),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
    )
    assert owner.stdout is not None
    # Before that it says what it waits for, on a busy machine.
    directory = next(Path(line.split()[-1]) for line in owner.stdout if line.startswith("stands in "))
    parts: list[Identity] = [record.identity for path in directory.glob("*.pid") if (record := Record.read(path))]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    try:
        assert len([part for part in parts if part.alive()]) == 2
    finally:
        ControlPlane.temporary().stop()

    assert not any(part.alive() for part in parts)
    assert not directory.exists()


def test_it_says_the_version_that_is_pinned(plane: ControlPlane) -> None:
    assert plane.kubectl("version").count("v1.36.3") == 2
