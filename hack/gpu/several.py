"""Several GPUs train together: the base under an adapter divided among them, in 4 and 16 bits, and a whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.meta import ExitCode
from hack.cluster.layout import free_port
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped
from hack.gpu.machine import VISIBLE
from hack.gpu.training import APART, apart
from tests.support.divided_train import PROGRAM

METHODS: Mapping[str, dict[str, Any]] = {
    "QLoRA": {"method": "QLoRA", "learning_rate": "1e-3"},
    "LoRA": {"method": "LoRA", "learning_rate": "1e-3"},
    "Full": {"method": "Full", "learning_rate": "1e-4"},
}
TOGETHER = (8, 4, 2)
"""Numbers of processes among which a step's eight examples divide."""
REHEARSED = 2
HELD = re.compile(r"FSDP: process (\d+) holds (\d+) of the model's (\d+) weights")
SHARE = 1.1
"""The most that a process holds, as a multiple of its even share: an adapter's short matrices divide unevenly."""


def divided(bench: Bench) -> Iterator[Check]:
    """Each process holds its share of the weights (over NCCL; in a rehearsal gloo), and the losses are those of one
    process that has the whole model."""
    if bench.on_gpu and len(bench.cards) < min(TOGETHER):
        yield skipped("several", "this machine has one GPU; it takes two")
        return
    count = next(each for each in TOGETHER if each <= len(bench.cards)) if bench.on_gpu else REHEARSED
    visible = {VISIBLE: ",".join(bench.numbers[:count])} if bench.on_gpu else {}
    for name, changes in METHODS.items():
        training = bench.training(**changes, max_steps=12, checkpoint_steps=6)
        alone = bench.run(bench.input_of(training, f"alone-{name.lower()}"))
        if alone.code != ExitCode.OK:
            yield Check("several", f"{name}, one process", alone.result.message, "an end", False)
            continue
        where = ("--processes", str(count), "--coordinator-port", str(free_port()))
        given = bench.input_of(training, f"together-{name.lower()}")
        # What a whole model always does, an adapter's base does only on GPUs that are too small for it.
        program = "" if name == "Full" else PROGRAM
        together = bench.run(given, *where, program=program, variables=visible)
        if together.code != ExitCode.OK:
            yield Check("several", f"{name}, {count} processes", together.result.message, "an end", False)
            continue
        told = [held for line in together.log if (held := HELD.fullmatch(line["message"]))]
        shares = [int(held[2]) / int(held[3]) for held in told]
        far = apart(bench.losses(together), bench.losses(alone))
        found = f"shares {', '.join(f'{share:.0%}' for share in shares) or 'unknown'}; losses {far:.1%} apart"
        passed = len(shares) == count and max(shares) <= SHARE / count and far <= APART
        wanted = f"{1 / count:.0%} each, losses within {APART:.0%}"
        yield Check("several", f"{name}, {count} processes", found, wanted, passed)
