"""Run one or all benchmarks and print a table: ``python -m hack.benchmarks [NAME]``."""

from __future__ import annotations

import importlib
import sys

from rich.console import Console
from rich.table import Table

from hack.benchmarks.result import DIRECTORY, Result
from hack.cluster.console import ClusterError, say
from hack.cluster.layout import REPOSITORY

NAMES = (
    "operator_latency",
    "operator_scale",
    "overhead",
    "demo_time",
    "prepare_throughput",
    "pii",
    "train_throughput",
    "checkpoint_cost",
    "fetch",
    "fit_estimate",
    "planted_artifacts",
    "planted_adapters",
    "planted_models",
    "artifact_ledger",
    "export_memory",
    "evaluate_throughput",
    "rollout_under_load",
    "time_to_traffic",
    "clients",
)


def main(arguments: list[str]) -> int:
    """Run the requested benchmarks; returns the exit code."""
    unknown = set(arguments) - set(NAMES)
    if unknown:
        say(f"error: unknown benchmark {', '.join(sorted(unknown))}; available: {', '.join(NAMES)}")
        return 2
    table = Table("benchmark", "value", "baseline", "ratio", "goal", box=None)
    failed = False
    for name in arguments or NAMES:
        say(f"run benchmark {name}")
        try:
            result: Result = importlib.import_module(f"hack.benchmarks.{name}").run()
        except ClusterError as error:
            say(f"error: {name}: {error}")
            failed = True
            continue
        result.write()
        baseline = "" if result.baseline is None else f"{result.baseline:.3g} {result.unit}"
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        table.add_row(name, f"{result.value:.3g} {result.unit}", baseline, ratio, result.goal)
    Console().print(table)
    say(f"details: {DIRECTORY.relative_to(REPOSITORY)}/*.json")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
