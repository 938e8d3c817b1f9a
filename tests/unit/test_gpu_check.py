"""The suite for GPUs: what it says without one, and that a part runs through in a rehearsal.

One test starts the program; the others call its entry point, in a process that has imported torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hack.cluster.layout import REPOSITORY
from hack.gpu.__main__ import PARTS, main, part
from hack.gpu.check import Check, table, write
from tests.support.seaweedfs import ADMIN

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    said = capsys.readouterr().out
    assert "nvidia-smi" in said
    assert "--rehearse" in said


def test_a_stopped_training_ends_with_the_same_bytes_in_a_rehearsal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, value)  # as the suite does itself, and undone
    code = main(["--rehearse", "resume", "oom"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "resumed, the same bytes" in said
    found = json.loads((REPOSITORY / "build" / "gpu-rehearsal.json").read_text())
    assert [(each["part"], each["passed"]) for each in found["checks"]] == [("resume", True), ("oom", None)]


def test_every_part_can_be_run() -> None:
    assert all(callable(part(name)) for name in PARTS)


def test_an_unknown_part_is_refused_with_those_there_are() -> None:
    """Before anything is imported that takes seconds."""
    program = [sys.executable, "-X", "importtime", "-m", "hack.gpu", "--rehearse", "fly"]
    ended = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert all(name in ended.stderr.splitlines()[-1] for name in PARTS)
    assert not re.search(r"\| +torch$", ended.stderr, re.MULTILINE)


def test_a_failed_check_is_seen(tmp_path: Path) -> None:
    checks = [Check("train", "LoRA", "no end", "an end", False), Check("oom", "all", "needs a GPU", "", None)]
    path = tmp_path / "gpu-check.json"
    write(checks, "a card", path)
    assert json.loads(path.read_text())["checks"][0]["passed"] is False
    assert table(checks).row_count == 2
    assert [each.mark for each in checks] == ["✗", "–"]
