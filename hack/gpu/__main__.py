"""Prove the GPU path on this machine: ``python -m hack.gpu [--rehearse] [PART …]``.

It needs an NVIDIA GPU with its driver and the development environment, and no Kubernetes: the stages run as programs.
``--rehearse`` runs on the CPU with a tiny model, to see that the suite itself works; it proves nothing about a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY

if TYPE_CHECKING:
    from hack.gpu.check import Check, Part

PARTS: Mapping[str, str] = {
    "kernels": "compiling.compiled",
    "train": "training.methods",
    "resume": "training.resuming",
    "oom": "training.out_of_memory",
    "throughput": "throughput.against_trl",
    "export": "exporting.formats",
}
"""Where each is. In the order in which they tell most: what a later part needs, an earlier one has shown. They import
torch, which takes seconds: a wrong argument is refused before that."""
RESULTS = REPOSITORY / "build"


def part(name: str) -> Part:
    """The function that runs a part."""
    module, function = PARTS[name].split(".")
    found: Part = getattr(import_module(f"hack.gpu.{module}"), function)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 1 if any check fails, 2 without a GPU. ``arguments``: else the program's own."""
    parser = argparse.ArgumentParser(prog="python -m hack.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with a tiny model")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    import torch

    from hack.gpu.bench import Bench
    from hack.gpu.check import table, write

    if not given.rehearse and not torch.cuda.is_available():
        say("error: CUDA cannot be used here: `nvidia-smi` must show a GPU. --rehearse tries the suite without one.")
        return 2
    card = "CPU (a rehearsal)" if given.rehearse else torch.cuda.get_device_name()
    result = RESULTS / ("gpu-rehearsal.json" if given.rehearse else "gpu-check.json")
    checks: list[Check] = []
    with (
        tempfile.TemporaryDirectory(prefix="finetune-gpu-") as folder,
        Bench.running(Path(folder), on_gpu=not given.rehearse) as bench,
    ):
        for name in given.parts or PARTS:
            say(f"{name} …")
            for check in part(name)(bench):
                say(f"  {check.mark} {check.what}: {check.found}")
                checks.append(check)
                write(checks, card, result)  # what is known survives whatever comes next
    Console().print(table(checks))
    say(f"{card}; details: {result.relative_to(REPOSITORY)}")
    return int(any(check.passed is False for check in checks))


if __name__ == "__main__":
    sys.exit(main())
