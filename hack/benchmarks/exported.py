"""Exports a tuned model in a process of its own, whose pins are those of the image ``quantize``: used by benchmarks.

``python -m hack.benchmarks.exported BASE TUNED DATASET OUT FORMAT`` is that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.export import CALIBRATED, ExportFormat
from finetune_api.training import Method
from hack import environments
from hack.cluster.console import ClusterError
from hack.cluster.layout import REPOSITORY

if TYPE_CHECKING:
    from finetune_jobs.modelling.tuning import Tuning

EVERY_SECONDS = 0.02


def export(base: Path, tuned: Path, dataset: Path, out: Path, kind: ExportFormat, python: Path | None = None) -> int:
    """Write the tuned model in this format, calibrated on the train split of ``dataset``; returns the most bytes of
    memory of the process's own. Mapped files are not counted: the kernel takes their pages back when it needs room.

    Raises ClusterError with the end of its log.
    """
    folders = [str(each) for each in (base, tuned, dataset, out)]
    program = [str(python or environments.quantize()), "-m", "hack.benchmarks.exported", *folders, kind.value]
    here = os.pathsep.join(str(REPOSITORY / part) for part in ("crds", "jobs", ""))
    log = out.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(program, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": here})
    peak = 0
    while process.poll() is None:
        peak = max(peak, _own_memory(process.pid))
        time.sleep(EVERY_SECONDS)
    if process.returncode:
        raise ClusterError(f"the export to {kind.value} failed: {log.read_text()[-2000:]}")
    return peak


def write_merged(base: Path, tuned: Path, out: Path, tuning: Tuning) -> None:
    """Write the tuned model in 16 bits, which needs none of these pins, as the stage does."""
    from finetune_jobs.exporting.checkpoint import complete, save_16_bits
    from finetune_jobs.exporting.comparison import require_same
    from finetune_jobs.exporting.merge import merge

    model = merge(base, tuned, tuning)
    save_16_bits(model, out)
    complete(base, out, tuning)
    require_same(out, model)


def _own_memory(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def main() -> None:
    """What the process does: as the stage, without a store."""
    from finetune_jobs.base.progress import Progress
    from finetune_jobs.export import TunedParts, export_model
    from finetune_jobs.exporting.calibration import calibration_rows
    from finetune_jobs.modelling.tuning import read_tuning

    base, tuned, dataset, out = map(Path, sys.argv[1:5])
    kind = ExportFormat(sys.argv[5])
    rows = calibration_rows(dataset, base, thoughts=False) if kind in CALIBRATED else ()
    export_model(TunedParts(base, tuned, read_tuning(tuned, Method.QLORA)), out, kind, Progress("export"), rows)


if __name__ == "__main__":
    main()
