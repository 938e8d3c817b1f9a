"""Each method trains, stays within the estimate of its memory, computes packed examples as padded ones, resumes bit for
bit, and halves a pass that does not fit."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from finetune_api.layout import MANIFEST, run_folder
from finetune_api.meta import ExitCode
from finetune_api.training import Packing, Training
from finetune_jobs.fit.kernels import FAMILIES, listed
from finetune_jobs.fit.memory import FRAGMENTATION, GIB, gpu_step, peak_memory
from finetune_jobs.fit.shapes import Shape
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped
from hack.gpu.machine import VISIBLE
from tests.support.stages import Ended

METHODS: Mapping[str, dict[str, Any]] = {
    "QLoRA NF4": {"method": "QLoRA"},
    "QLoRA INT8": {"method": "QLoRA", "quantization": "INT8"},
    "LoRA": {"method": "LoRA"},
    "DoRA": {"method": "LoRA", "adapter": "DoRA"},
    "Full": {"method": "Full", "learning_rate": "1e-4"},
}
FALL = 0.9
"""The last loss is at most so much of the first: what is learnt are three answers, by heart."""
MEASURED: Mapping[str, Any] = {"batch_size": 128, "max_steps": 4}
"""Passes of thousands of tokens, so that activations are a large part of the memory."""
RATIO = (0.75, 1.02)
"""Peak memory of the tensors, as a multiple of the estimate, which is that of the model without fused kernels. What the
process has beside them is estimated too high on purpose, and must only be no more."""
LARGE, SMALL = 512, 64
"""Examples of a pass that must not fit, and of one that will."""
OVERFULL = ("QLoRA NF4", "LoRA", "Full")
"""Methods that run out of memory: a rounded base, whose matrices are unpacked in each pass, one in 16 bits, and a whole
model. INT8 and DoRA would show the same of the trainer, and each takes the time of up to five starts."""
APART = 0.02
"""By how much losses of the same training may differ, in the middle, where a GPU adds up in another order each time."""
PEAK = re.compile(r"GPU's memory: at most ([0-9.]+) GiB of [0-9.]+ were taken, ([0-9.]+) by tensors")
PADDED = "examples are padded"
RESUMED = ("QLoRA NF4", "QLoRA INT8", "DoRA", "Full")
"""Methods that are stopped and resumed; in a rehearsal the first one."""


def methods(bench: Bench) -> Iterator[Check]:
    """Every method trains, with all kernels of the model's family."""
    for name in METHODS:
        ended = _usual(bench, name)
        yield _learnt(bench, name, ended)
        if bench.on_gpu:
            yield _fused(name, ended)


def memory(bench: Bench) -> Iterator[Check]:
    """The peak of every method is what ``fit`` says."""
    if not bench.on_gpu:
        yield skipped("memory", "needs a GPU")
        return
    for name, changes in METHODS.items():
        training = bench.training(**{**changes, **MEASURED})
        ended = bench.run(bench.input_of(training, f"memory-{_named(name)}"))
        yield _memory(bench, name, training, ended)


def packed(bench: Bench) -> Iterator[Check]:
    """Examples side by side in a row, which the GPU's own kernel keeps apart, have the losses of padded ones."""
    if not bench.on_gpu:
        yield skipped("packing", "needs a GPU: a CPU pads examples as short as these")
        return
    for name in ("QLoRA NF4", "Full"):
        training = bench.training(**{"learning_rate": "1e-3", **METHODS[name], "max_steps": 12})
        together = bench.run(bench.input_of(training, f"packed-{_named(name)}"))
        alone = training.model_copy(update={"packing": Packing.OFF})
        padded = bench.run(bench.input_of(alone, f"padded-{_named(name)}"))
        if ended := next((each for each in (together, padded) if each.code != ExitCode.OK), None):
            yield Check("packing", name, ended.result.message, "an end", False)
            continue
        far = apart(bench.losses(together), bench.losses(padded))
        refused = any(PADDED in line["message"] for line in together.log)
        found = "padded all the same" if refused else f"losses {far:.1%} from those of padded examples"
        yield Check("packing", name, found, f"within {APART:.0%}", far <= APART and not refused)


def resuming(bench: Bench) -> Iterator[Check]:
    """A training that was stopped after its first checkpoint ends with the same bytes as one that was not; or else two
    that were not stopped differ too, and it ends as they do."""
    for name in RESUMED if bench.on_gpu else RESUMED[:1]:
        yield _resumed(bench, name)


def _resumed(bench: Bench, name: str) -> Check:
    training, whole = _training(bench, name), _usual(bench, name)
    given = bench.input_of(training, f"stopped-{_named(name)}")
    place = bench.store.below(run_folder(given.run))
    process, folder = bench.start(given)
    while process.poll() is None and not any(each.key.endswith(MANIFEST) for each in place.list()):
        time.sleep(0.2)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    first = bench.wait(given, process, folder)
    second = bench.run(given)
    resumed = any("training resumes from" in line["message"] for line in second.log)
    ended = whole.code == second.code == ExitCode.OK
    same = ended and bench.weights(second) == bench.weights(whole) != ""
    found = f"stopped with {first.code}, {'resumed' if resumed else 'not resumed'}, "
    found += "the same bytes" if same else "other bytes" if ended else f"no end: {second.result.message}"
    if ended and not same and bench.on_gpu:
        again = bench.run(bench.input_of(training, f"again-{_named(name)}"))
        far = apart(bench.losses(second), bench.losses(whole))
        same = bench.weights(again) != bench.weights(whole) and far <= APART
        found += f", losses {far:.1%} apart; one that was not stopped "
        found += "has other bytes too: kernels add up in another order each time" if same else "has the same"
    passed = first.code == ExitCode.RETRIABLE and resumed and same
    return Check("resume", f"{name}, stopped and resumed", found, "the same bytes, or why not", passed)


def out_of_memory(bench: Bench) -> Iterator[Check]:
    """A pass that does not fit the GPU's real memory, even if all activations are computed again, is halved, and the
    training ends as planned."""
    for name in OVERFULL:
        yield _halved(bench, name) if bench.on_gpu else skipped("oom", "needs a GPU", name)


def _halved(bench: Bench, name: str) -> Check:
    usual = _usual(bench, name)
    if not (said := peak(usual)):
        return Check("oom", name, usual.result.message or "the stage did not say", "", False)
    taken, tensors = said
    training = _training(bench, name).model_copy(update={"batch_size": LARGE, "max_steps": 4})
    room = (small_pass(bench.shape, training, bench.longest, bench.cards[0].gib) + taken - tensors) / GIB
    with _ballast(room, bench.numbers[0]):
        ended = bench.run(bench.input_of(training, f"out-of-memory-{_named(name)}"))
    size = int(ended.result.scalars.get("batchSize", "0"))
    found = f"{size} examples at a time instead of {LARGE}" if size else ended.result.message
    return Check("oom", f"{name}, {room:.1f} GiB free", found, f"fewer than {LARGE}, and an end", 0 < size < LARGE)


def small_pass(shape: Shape, training: Training, longest: int, gib: float) -> float:
    """Bytes in which tensors of a pass of ``SMALL`` examples fit for certain, padded to so many tokens, and those of a
    pass of ``training`` do not. What a process takes beside them was measured: estimated on the safe side, it would
    hold a larger pass."""
    step = gpu_step(shape, training.model_copy(update={"max_length": longest}), gib).with_least()
    small = training.model_copy(update={"batch_size": SMALL, "max_length": longest})
    return (1 + FRAGMENTATION) * RATIO[1] * peak_memory(shape, small, step).tensors


def _training(bench: Bench, name: str) -> Training:
    return bench.training(**{"learning_rate": "1e-3", **METHODS[name], "checkpoint_steps": 4})


def _usual(bench: Bench, name: str) -> Ended:
    """The end of a method's training that nothing disturbs; several parts look at it."""
    return bench.once(bench.input_of(_training(bench, name), _named(name)))


def apart(losses: Sequence[float], others: Sequence[float]) -> float:
    """How far two trainings' losses are from each other: the median of all steps."""
    return statistics.median(abs(a - b) / b for a, b in zip(losses, others, strict=True))


def _named(method: str) -> str:
    """As a part of a run's name."""
    return method.replace(" ", "-").lower()


def _learnt(bench: Bench, name: str, ended: Ended) -> Check:
    if ended.code != ExitCode.OK:
        return Check("train", name, ended.result.message, "an end", False)
    losses = bench.losses(ended)
    found = f"loss {losses[0]:.2f} → {losses[-1]:.2f}"
    return Check("train", name, found, f"≤ {FALL} × the first", losses[-1] <= FALL * losses[0])


def _fused(name: str, ended: Ended) -> Check:
    """All kernels of the model's family have passed their check on this card."""
    wanted = listed(FAMILIES["qwen3"])
    found = ended.result.scalars.get("kernels", "not said")
    return Check("train", f"{name}, fused kernels", found, wanted, found == wanted)


def _memory(bench: Bench, name: str, training: Training, ended: Ended) -> Check:
    if not (said := peak(ended)):
        return Check("memory", name, ended.result.message or "the stage did not say", "", False)
    # The rows are short: the estimate is for passes of the length that they have, not of the longest allowed, and where
    # they are packed for their tokens, without padding and its mask.
    padded = any(PADDED in line["message"] for line in ended.log)
    longest = training.model_copy(update={"max_length": bench.longest})
    step = replace(gpu_step(bench.shape, longest, bench.cards[0].gib), padded=padded)
    passed = longest if padded else training.model_copy(update={"max_length": bench.mean})
    estimate = peak_memory(bench.shape, passed, step)
    taken, tensors = said
    ratio, whole = tensors / estimate.tensors, taken / estimate.total
    found = f"tensors {tensors / GIB:.2f} GiB, {ratio:.2f} × the estimate; all {taken / GIB:.2f} GiB, {whole:.2f} ×"
    wanted = f"tensors {RATIO[0]} to {RATIO[1]} ×, all at most {RATIO[1]} ×"
    return Check("memory", name, found, wanted, RATIO[0] <= ratio <= RATIO[1] and whole <= RATIO[1])


def peak(ended: Ended) -> tuple[float, float] | None:
    """Bytes that a training took of its GPU at most, and those of its tensors; None if it did not say."""
    said = [match for line in ended.log if (match := PEAK.search(line["message"]))]
    taken, tensors = (float(each) * GIB for each in said[-1].groups()) if said else (0.0, 0.0)
    return (taken, tensors) if said else None


_HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def _ballast(left: float, number: str) -> Iterator[None]:
    """Another process holds the memory of the GPU with this number, but for so many GiB."""
    program, where = [sys.executable, "-c", _HOLD, str(left)], {**os.environ, VISIBLE: number}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=where) as process:
        assert process.stdin
        assert process.stdout
        if process.stdout.readline() != b"held\n":
            raise RuntimeError("the GPU's memory could not be taken")
        try:
            yield
        finally:
            process.stdin.close()
