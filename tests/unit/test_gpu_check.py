"""The suite for GPUs: what it says without one, and that a part runs through in a rehearsal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hack.cluster.layout import REPOSITORY
from hack.gpu.__main__ import PARTS
from hack.gpu.check import Check, table, write

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, "-m", "hack.gpu", *arguments]
    return subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_what_to_do() -> None:
    ended = run("train")
    assert ended.returncode == 2
    assert "nvidia-smi" in ended.stdout
    assert "--rehearse" in ended.stdout


def test_a_stopped_training_ends_with_the_same_bytes_in_a_rehearsal() -> None:
    ended = run("--rehearse", "resume", "oom")
    assert ended.returncode == 0, ended.stdout
    assert "resumed, the same bytes" in ended.stdout
    found = json.loads((REPOSITORY / "build" / "gpu-rehearsal.json").read_text())
    assert [(each["part"], each["passed"]) for each in found["checks"]] == [("resume", True), ("oom", None)]


def test_an_unknown_part_is_refused_with_those_there_are() -> None:
    ended = run("--rehearse", "fly")
    assert ended.returncode == 2
    assert all(part in ended.stderr for part in PARTS)


def test_a_failed_check_is_seen(tmp_path: Path) -> None:
    checks = [Check("train", "LoRA", "no end", "an end", False), Check("oom", "all", "needs a GPU", "", None)]
    path = tmp_path / "gpu-check.json"
    write(checks, "a card", path)
    assert json.loads(path.read_text())["checks"][0]["passed"] is False
    assert table(checks).row_count == 2
    assert [each.mark for each in checks] == ["✗", "–"]
