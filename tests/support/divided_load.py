"""One of several processes that load a model and divide it among them: ``MODEL METHOD RESULT SMALL``. Writes the most
memory that it took for that, in bytes. It loads a small one first, so that what libraries take once is not counted: up
to 37 MiB, by CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from finetune_api.training import Method, Training
from finetune_jobs.fit.steps import ON_CPU
from finetune_jobs.training.build import load_trainable
from finetune_jobs.training.sharding import divide
from finetune_jobs.training.team import Team


def resident(which: str) -> int:
    """A figure of this process's memory: ``VmRSS`` is now, ``VmHWM`` the most since ``clear_refs`` was written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def load(base: str, method: str, team: Team) -> None:
    """As the stage train does."""
    model = load_trainable(Path(base), Training(method=Method(method)), team, ON_CPU)
    divide(model, team, torch.device("cpu"))


def main() -> None:
    """Entry point."""
    base, method, result, small = sys.argv[1:]
    team = Team.of(os.environ)
    team.join()
    load(small, method, team)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    load(base, method, team)
    Path(result).write_text(str(resident("VmHWM") - before))
    team.wait()


if __name__ == "__main__":
    main()
