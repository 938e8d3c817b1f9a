"""A disk that is full while a stage works: the libraries that write weights, on a volume with too little room."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, StageResult
from tests.support import forked
from tests.support.forked import NEW_MOUNTS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROGRAM: Final = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={size}k", "none", {scratch!r}], check=True)
from finetune_api.stages import Stage
from finetune_jobs.runtime.runner import StageOutput, run_stage

def work(context):
    import torch
    weights = {{"weight": torch.zeros(1 << {bits})}}
    {body}
    return StageOutput(message="written")

run_stage(Stage.VERIFY, work)
"""
BODIES: Final = {
    "safetensors": "import safetensors.torch; safetensors.torch.save_file(weights, context.scratch / 'x.safetensors')",
    "torch": "torch.save(weights, context.scratch / 'optimizer.pt')",
    "a library that hides the cause": (
        "(context.scratch / 'rest').write_bytes(b'x' * (250 << 10)); raise RuntimeError('basic_ios::clear')"
    ),
}


def run(folder: Path, body: str, bits: int, size: int) -> tuple[int, StageResult]:
    """A stage in a process of its own, whose scratch volume has ``size`` KiB."""
    scratch = folder / "volume"
    scratch.mkdir()
    hardware = HardwareFacts(profile="cpu", scratch_gib=0.25)
    given = StageInput(
        stage=Stage.VERIFY, run=DEPLOYMENT, artifact_uri=f"s3://data/artifacts/{'0' * 64}", hardware=hardware
    )
    (folder / "input.json").write_text(given.model_dump_json(by_alias=True))
    (folder / "program.py").write_text(PROGRAM.format(scratch=str(scratch), body=body, bits=bits, size=size))
    arguments = ["--input", str(folder / "input.json"), "--result", str(folder / "result"), "--metrics-port", "0"]
    environment = os.environ | {"TMPDIR": str(scratch), "AWS_EC2_METADATA_DISABLED": "true"}
    process = forked.start([str(folder / "program.py"), *arguments], environment, folder / "log", within=NEW_MOUNTS)
    return process.wait(120), StageResult.model_validate_json((folder / "result").read_bytes())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_weights_that_find_no_room_are_told_as_a_full_disk(tmp_path: Path, body: str) -> None:
    """Not as an error of this program, which a person would report and nobody could correct."""
    code, result = run(tmp_path, body, bits=20, size=256)
    assert (code, result.reason) == (ExitCode.RETRIABLE, Reason.SCRATCH_FULL)
    assert_says(result.message, f"The disk that holds {tmp_path}/volume/", "is full. It has 256.0 KiB", "are free now")
    assert_says(result.message, "the files of this attempt take", "may have 0.25 GiB (scratchSize)")
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert any("Traceback" in line.get("traceback", "") for line in logged), "the cause is in the log"


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        (BODIES["safetensors"], Reason.STAGE_SUCCEEDED, "written"),
        ("raise RuntimeError('unexpected pos 576 vs 534')", Reason.INTERNAL_ERROR, "RuntimeError: unexpected pos"),
    ],
    ids=["it fits", "another fault"],
)
def test_with_room_left_nothing_is_taken_for_a_full_disk(
    tmp_path: Path, body: str, reason: Reason, message: str
) -> None:
    code, result = run(tmp_path, body, bits=10, size=4096)
    assert (result.reason, code == ExitCode.OK) == (reason, reason is Reason.STAGE_SUCCEEDED)
    assert_says(result.message, message)
