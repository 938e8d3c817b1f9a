"""Each method trains, stays within the estimate of its memory, resumes bit for bit, and halves a pass that does not
fit."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune_api.layout import MANIFEST, run_folder
from finetune_api.meta import ExitCode
from finetune_api.training import Training
from finetune_jobs.fit.memory import GIB, ON_GPU, gpu_step, peak_memory
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped
from tests.support.stages import Ended, wait_for

METHODS: Mapping[str, dict[str, Any]] = {
    "QLoRA NF4": {"method": "QLoRA"},
    "QLoRA INT8": {"method": "QLoRA", "quantization": "INT8"},
    "LoRA": {"method": "LoRA"},
    "DoRA": {"method": "LoRA", "adapter": "DoRA"},
    "Full": {"method": "Full", "learning_rate": "1e-4"},
}
FALL = 0.9
"""The last loss is at most so much of the first: what is learnt are three answers, by heart."""
RATIO = (0.85, 1.02)
"""Peak memory, as a multiple of the estimate."""
ROOM = 1.5
"""GiB that are left beside the estimate of a small pass where a large one must not fit."""
PEAK = re.compile(r"GPU's memory: at most ([0-9.]+) GiB")


def methods(bench: Bench) -> Iterator[Check]:
    """Every method trains, and its peak is what ``fit`` says."""
    for name, changes in METHODS.items():
        training = bench.training(**{"learning_rate": "1e-3", **changes})
        ended = bench.run(bench.input_of(training, name.replace(" ", "-").lower()))
        yield _learnt(bench, name, ended)
        if bench.on_gpu:
            yield _memory(bench, name, training, ended)


def resuming(bench: Bench) -> Iterator[Check]:
    """A training that was stopped after its first checkpoint ends with the same bytes as one that was not."""
    training = bench.training(learning_rate="1e-3", checkpoint_steps=4)
    whole = bench.run(bench.input_of(training, "whole"))
    given = bench.input_of(training, "stopped").model_copy(update={"reuse": False})
    place = bench.store.below(run_folder(given.run))
    process, folder = bench.start(given)
    while process.poll() is None and not any(each.key.endswith(MANIFEST) for each in place.list()):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    first = wait_for(process, folder)
    second = bench.run(given)
    resumed = any("training resumes from" in line["message"] for line in second.log)
    ended = whole.code == second.code == ExitCode.OK
    same = ended and bench.weights(second) == bench.weights(whole) != ""
    found = f"stopped with {first.code}, {'resumed' if resumed else 'not resumed'}, "
    found += "the same bytes" if same else "other bytes" if ended else f"no end: {second.result.message}"
    passed = first.code == ExitCode.RETRIABLE and resumed and same
    yield Check("resume", "stopped and resumed", found, "the same bytes", passed)


def out_of_memory(bench: Bench) -> Iterator[Check]:
    """A pass that does not fit the GPU's real memory is halved, and the training ends as planned."""
    if not bench.on_gpu:
        yield skipped("oom", "needs a GPU")
        return
    training = bench.training(learning_rate="1e-3", method="LoRA", batch_size=64, max_length=256)
    small = peak_memory(bench.shape, training.model_copy(update={"batch_size": 8}), ON_GPU).gib
    with _ballast(small + ROOM):
        ended = bench.run(bench.input_of(training, "out-of-memory"))
    size = int(ended.result.scalars.get("batchSize", "0"))
    found = f"{size} examples at a time instead of 64" if size else ended.result.message
    yield Check("oom", f"{small + ROOM:.1f} GiB free", found, "fewer than 64, and an end", 0 < size < 64)


def _learnt(bench: Bench, name: str, ended: Ended) -> Check:
    if ended.code != ExitCode.OK:
        return Check("train", name, ended.result.message, "an end", False)
    losses = bench.losses(ended)
    found = f"loss {losses[0]:.2f} → {losses[-1]:.2f}"
    return Check("train", name, found, f"≤ {FALL} × the first", losses[-1] <= FALL * losses[0])


def _memory(bench: Bench, name: str, training: Training, ended: Ended) -> Check:
    said = [match for line in ended.log if (match := PEAK.search(line["message"]))]
    if not said:
        return Check("memory", name, "the stage did not say", "", False)
    # The rows are short: the estimate is for passes of the length that they have, not of the longest allowed.
    longest = training.model_copy(update={"max_length": bench.longest})
    import torch  # seconds, which the rehearsal does without

    room = torch.cuda.get_device_properties(0).total_memory / GIB
    estimate = peak_memory(bench.shape, longest, gpu_step(bench.shape, longest, room)).gib
    ratio = float(said[-1][1]) / estimate
    found = f"{said[-1][1]} GiB, {ratio:.2f} × the estimate"
    return Check("memory", name, found, f"{RATIO[0]} to {RATIO[1]} ×", RATIO[0] <= ratio <= RATIO[1])


_HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def _ballast(left: float) -> Iterator[None]:
    """Another process holds the GPU's memory, but for so many GiB."""
    program = [sys.executable, "-c", _HOLD, str(left)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
