"""How the demo shows the progress of a FineTuneJob and an AdapterDeployment.

A live table on a terminal; elsewhere (CI, a log file) one line per change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finetune_api.job_status import FineTuneJobStatus, StageState, StageStatus
from finetune_api.serving_status import AdapterDeploymentStatus
from hack.demo.timing import seconds_between

MARKS = {
    StageState.PENDING: ("·", "dim"),
    StageState.RUNNING: ("▶", "bold cyan"),
    StageState.SUCCEEDED: ("✓", "green"),
    StageState.REUSED: ("↺", "green"),
    StageState.FAILED: ("✗", "bold red"),
}


def job_table(status: FineTuneJobStatus) -> Table:
    """The stage table of a FineTuneJob."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    for column in ("", "stage", "state", "time", "details"):
        table.add_column(column)
    for stage in status.stages:
        mark, style = MARKS[stage.state]
        took = seconds_between(stage.started_at, stage.finished_at)
        table.add_row(
            Text(mark, style=style),
            stage.name,
            Text(stage.state.value, style=style),
            "" if took is None else f"{took:.0f} s",
            Text(_details(stage, status), overflow="ellipsis", no_wrap=True),
        )
    return table


def job_lines(status: FineTuneJobStatus) -> list[str]:
    """The stage table as plain lines, one per stage that has started."""
    return [
        f"{stage.name}: {stage.state.value}" + (f" - {details}" if (details := _details(stage, status)) else "")
        for stage in status.stages
        if stage.state is not StageState.PENDING
    ]


def deployment_lines(status: AdapterDeploymentStatus) -> list[str]:
    """One line per revision of an AdapterDeployment."""
    revisions = [("serving", status.stable), ("candidate", status.candidate)]
    return [
        f"{role} revision {revision.revision}: {revision.state.value}"
        + (f" - {revision.message}" if revision.message else "")
        for role, revision in revisions
        if revision
    ]


def _details(stage: StageStatus, status: FineTuneJobStatus) -> str:
    progress = status.progress
    if stage.state is StageState.RUNNING and progress and progress.stage == stage.name:
        left = f", {progress.eta_seconds} s left" if progress.eta_seconds is not None else ""
        return f"{progress.percent} %{left}" + (f" ({progress.message})" if progress.message else "")
    return stage.message


@dataclass
class Screen:
    """Shows progress: live on a terminal, as lines elsewhere. Use as a context manager."""

    console: Console = field(default_factory=lambda: Console(file=sys.stdout))
    _said: set[str] = field(default_factory=set)
    _live: Live | None = None

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, title: str, renderable: Callable[[], Any], lines: list[str]) -> None:
        """Show a new state; without a terminal, print each of the ``lines`` once."""
        if self._live:
            self._live.update(Group(Text(title, style="bold"), renderable()))
            return
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                self.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
