"""How long a warm `make demo` takes: programs, images and models are in the cache, the demo's own results are not.

The cold figure is the time of `make demo` in a new clone with ``XDG_CACHE_HOME`` set to an empty folder, on a machine
without a running cluster; it takes too long for a repeated benchmark.
"""

from __future__ import annotations

import json
import subprocess
import time

from hack.benchmarks.result import Result
from hack.cluster.console import ClusterError
from hack.cluster.layout import REPOSITORY
from hack.demo.__main__ import clear
from hack.platform import local


def run() -> Result:
    """Run the demo in a new namespace with an empty store; the value is the command's wall time in minutes."""
    clear(local.kubectl())  # users do not wait for this
    begin = time.monotonic()
    if subprocess.run(["make", "--no-print-directory", "demo"], cwd=REPOSITORY, check=False).returncode:
        raise ClusterError("the demo failed; see its output above")
    minutes = (time.monotonic() - begin) / 60
    report = json.loads((REPOSITORY / "build" / "demo" / "report.json").read_text())
    return Result(
        name="demo_time", value=round(minutes, 2), unit="min", baseline=None, goal="≤ 15 min warm", details=report
    )
