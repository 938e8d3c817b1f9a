"""Prove the GPU path on this machine: ``python -m hack.gpu [--rehearse] [PART …]``.

It needs an NVIDIA GPU with its driver and the development environment, and no Kubernetes: the stages run as programs.
What an environment of its own is installed for is left out where that fails, e.g. without a network, and says so.
``--rehearse`` runs on the CPU with a tiny model, to see that the suite itself works; it proves nothing about a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hack.cluster.console import say
from hack.cluster.layout import REPOSITORY

if TYPE_CHECKING:
    from hack.gpu.bench import Bench
    from hack.gpu.check import Check, Part

PARTS: Mapping[str, str] = {
    "machine": "setting.described",
    "kernels": "compiling.compiled",
    "train": "training.methods",
    "memory": "training.memory",
    "packing": "training.packed",
    "resume": "training.resuming",
    "steps": "steps.smaller",
    "oom": "training.out_of_memory",
    "throughput": "throughput.compare",
    "export": "exporting.formats",
    "serve": "serving.verified",
    "several": "several.divided",
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

    from finetune_jobs.modelling.cards import no_cuda
    from finetune_jobs.modelling.device import reported
    from hack.gpu.bench import Bench
    from hack.gpu.check import table, write
    from hack.gpu.machine import find

    # Which asks for their number only: this process holds no GPU's memory, see ``find``.
    if not given.rehearse and not torch.cuda.is_available():
        say(
            f"error: CUDA cannot be used here: {no_cuda(reported())} `nvidia-smi` must show a GPU. --rehearse tries "
            "the suite without one."
        )
        return 2
    cards = () if given.rehearse else find().cards
    card = cards[0].name if cards else "CPU (a rehearsal)"
    result = RESULTS / ("gpu-check.json" if cards else "gpu-rehearsal.json")
    checks: list[Check] = []
    seconds: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="finetune-gpu-") as folder,
        Bench.running(Path(folder), cards) as bench,
    ):
        for name in given.parts or PARTS:
            say(f"{name} …")
            begun = time.monotonic()
            for check in checks_of(name, bench):
                say(f"  {check.mark} {check.what}: {check.found}")
                checks.append(check)
                seconds[name] = round(time.monotonic() - begun, 1)
                write(checks, card, seconds, result)  # what is known survives whatever comes next
    Console().print(table(checks))
    say(f"{card}; details: {result.relative_to(REPOSITORY)}")
    return int(any(check.passed is False for check in checks))


def checks_of(name: str, bench: Bench) -> Iterator[Check]:
    """Those of a part. One that breaks has failed, and leaves the others their turn."""
    from hack.gpu.check import Check

    try:
        yield from part(name)(bench)
    except Exception as error:  # noqa: BLE001 # whatever it is, it is the answer
        said = str(error).strip().splitlines() or [""]
        yield Check(name, "all", f"{type(error).__name__}: {said[0]}", "an end", False)


if __name__ == "__main__":
    sys.exit(main())
