"""Several GPUs train together: each with a base of its own under an adapter, and with one divided among them, in 4 and
16 bits, and a whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_api.meta import ExitCode
from hack.cluster.layout import free_port
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped
from hack.gpu.machine import VISIBLE
from hack.gpu.training import APART, apart
from tests.support.divided_train import PROGRAM
from tests.support.stages import Ended

METHODS: Mapping[str, dict[str, Any]] = {
    "QLoRA": {"method": "QLoRA", "learning_rate": "1e-3"},
    "LoRA": {"method": "LoRA", "learning_rate": "1e-3"},
    "Full": {"method": "Full", "learning_rate": "1e-4"},
}
WAYS: Mapping[str, Sequence[bool]] = {"QLoRA": (False, True), "LoRA": (True,), "Full": (True,)}
"""Whether the model is divided. What a whole model always is, an adapter's base is only on GPUs that are too small for
it: elsewhere each process has its own, and they exchange the adapter's gradients (PyTorch's DDP)."""
TOGETHER = (8, 4, 2)
"""Numbers of processes among which a step's eight examples divide."""
REHEARSED = 2
HELD = re.compile(r"FSDP: process (\d+) holds (\d+) of the model's (\d+) weights")
SHARE = 1.1
"""The most that a process holds, as a multiple of its even share: an adapter's short matrices divide unevenly."""


def divided(bench: Bench) -> Iterator[Check]:
    """Over NCCL, in a rehearsal gloo, the losses are those of one process that has the whole model; of one that is
    divided, each process holds its share of the weights."""
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
        for is_divided in WAYS[name]:
            where = ("--processes", str(count), "--coordinator-port", str(free_port()))
            given = bench.input_of(training, f"{'divided' if is_divided else 'copies'}-{name.lower()}")
            program = PROGRAM if is_divided and name != "Full" else ""
            together = bench.run(given, *where, program=program, variables=visible)
            what = f"{name}, {count} processes, {'divided' if is_divided else 'each its own base'}"
            yield _compared(bench, what, together, alone, count if is_divided else 0)


def _compared(bench: Bench, what: str, together: Ended, alone: Ended, shares: int) -> Check:
    """A training of several processes beside that of one; ``shares`` of the model they hold, or none."""
    if together.code != ExitCode.OK:
        return Check("several", what, together.result.message, "an end", False)
    told = [match for line in together.log if (match := HELD.fullmatch(line["message"]))]
    held = [int(each[2]) / int(each[3]) for each in told]
    far = apart(bench.losses(together), bench.losses(alone))
    found = f"shares {', '.join(f'{share:.0%}' for share in held) or 'none'}; losses {far:.1%} apart"
    right = len(held) == shares and all(share <= SHARE / shares for share in held)
    wanted = f"{f'{1 / shares:.0%} each' if shares else 'none'}, losses within {APART:.0%}"
    return Check("several", what, found, wanted, right and far <= APART)
