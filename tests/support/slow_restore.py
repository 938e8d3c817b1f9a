"""One of two processes that train together, of which the first fetches checkpoints for longer than a process waits for
a message: ``WORK``. Prints what it would resume from."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from finetune_jobs.training import team as team_module
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.team import Team

SILENCE_SECONDS = 5.0
FETCHING_SECONDS = 8.0


class Slow(Checkpoints):
    """Those of a slow store, which has none."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._owner = SimpleNamespace(state=SimpleNamespace(checkpoints=[]), update=lambda **_: None)  # type: ignore[assignment]

    def _fetch(self, work: Path) -> None:
        time.sleep(FETCHING_SECONDS)


def main() -> None:
    """Entry point."""
    team_module.SILENCE_SECONDS = SILENCE_SECONDS  # type: ignore[misc] # else the test would take a quarter of an hour
    team = Team.of(os.environ)
    team.join()
    print(Slow(team).restore(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
