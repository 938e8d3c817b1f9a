"""How long the demo takes, warm: `python -m hack.demo --fresh` with images, binaries and models in the cache."""

from __future__ import annotations

import json
import subprocess
import sys

from hack.benchmarks.result import Result
from hack.cluster.console import ClusterError
from hack.cluster.layout import REPOSITORY


def run() -> Result:
    """Run the demo from an empty namespace and an empty store; the value is its total in minutes."""
    if subprocess.run([sys.executable, "-m", "hack.demo", "--fresh"], cwd=REPOSITORY, check=False).returncode:
        raise ClusterError("the demo failed; its output is above")
    report = json.loads((REPOSITORY / "build" / "demo" / "report.json").read_text())
    return Result(
        name="demo_time",
        value=round(report["seconds"]["total"] / 60, 2),
        unit="min",
        baseline=None,
        goal="≤ 15 min warm",
        details=report,
    )
