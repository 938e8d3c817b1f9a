"""Processes that tests fork instead of starting them: they behave like those that were started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hack.cluster.layout import REPOSITORY
from tests.support.forked import Forked

pytestmark = pytest.mark.unit


def test_a_signal_for_a_process_that_was_reaped_just_now_is_no_error(tmp_path: Path) -> None:
    """Its exit code is written a moment later."""
    beyond_every_pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    ended = Forked(beyond_every_pid, tmp_path)
    ended.terminate()
    (tmp_path / "code").write_text("-15")
    assert ended.wait(1) == -15


PROGRAM = """
import logging
from finetune_jobs.runtime import logs
logs.set_up("train", terminal=False)
logging.getLogger("child").info("said")
print("printed")
logs.take_down()
"""
LAUNCHER = """
import os, sys, time
from finetune_jobs.runtime import logs
from tests.support import forked
logs.set_up("train", terminal=False)
child = forked._start_in_the_program([sys.executable, "-m", "program"], dict(os.environ))
while child.poll() is None:
    time.sleep(0.02)
os._exit(child.returncode)
"""


@pytest.mark.slow
def test_a_process_that_a_program_forks_has_the_outputs_that_it_was_given(tmp_path: Path) -> None:
    """Not what the program has put in their place: its log would hold the other's, line in line."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    argv = [sys.executable, "-c", LAUNCHER]
    ended = subprocess.run(argv, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [("child", "said"), ("stdout", "printed")]
