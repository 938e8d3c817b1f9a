"""Tokens a second, side by side with plain TRL, with Unsloth, without fused kernels, and with what ``fit`` expects of
the card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from unittest.mock import patch

from finetune_api.budget import HardwareFacts
from finetune_api.cards import words_of
from finetune_api.timing import Examples, training_seconds
from finetune_api.training import Kernels
from finetune_jobs.fit.cards import card_of
from finetune_jobs.fit.duration import pace
from finetune_jobs.fit.steps import KEPT
from hack import environments
from hack.benchmarks.train_throughput import CHAT, Throughput, Workload, compared, encoded, fresh_process, measure
from hack.cluster.console import ClusterError
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped
from hack.gpu.machine import VISIBLE

GOAL: Final = 3.0
"""Times plain TRL's rate at chat-like lengths."""
UNSLOTH: Final = 0.9
"""Times Unsloth's."""
STEPS: Final = 24
BATCH: Final = 64
"""Examples of a pass: of fewer, launching kernels takes longer than what they compute, on either side. TRL's padded
batches would then keep more activations than fit a GPU: it computes them again, as it does by default."""
UNSLOTH_BATCH: Final = 16
"""The same beside Unsloth, which keeps all activations."""
RATE: Final = "1e-3"
"""At which a model with random weights learns the words of the examples in so few steps."""
FALL: Final = 0.9
"""The last loss is at most so much of the first: losses that do not move are always alike."""
TIME: Final = (0.65, 1.35)
"""The rate, as a multiple of the one that is forecast: nine of ten published ones are within it."""
PLAIN: Final = "chat-like lengths, without fused kernels"
ESTIMATE: Final = "chat-like lengths, the forecast's speed"
PROJECT: Final = REPOSITORY / "hack" / "gpu" / "unsloth"
"""Unsloth, locked, and the program that trains with it."""
FIGURES: Final = '{"tokensPerSecond"'
"""How that program's line begins; Unsloth writes others."""
SECONDS: Final = 300
"""How long that may take."""


def compare(bench: Bench) -> Iterator[Check]:
    """The same examples in batches of the same size on each side, which is a process of its own."""
    sized = replace(CHAT, learning_rate=RATE)
    workload = replace(sized, steps=STEPS, batch=BATCH, checkpointing=True) if bench.on_gpu else replace(sized, steps=3)
    ours = _measured(bench, "ours", workload)
    yield _against_trl(bench, workload, ours)
    if bench.on_gpu:
        plain = _measured(bench, "ours", replace(workload, kernels=Kernels.OFF))
        yield _against_plain(workload, ours, plain)
        yield _as_estimated(bench, workload, plain)
    else:
        yield from (skipped("throughput", "needs a GPU", what) for what in (PLAIN, ESTIMATE))
    # Unsloth's adapters are fast without dropout.
    yield _against_unsloth(bench, replace(workload, dropout="0", batch=min(workload.batch, UNSLOTH_BATCH)))


def _against_trl(bench: Bench, workload: Workload, ours: Throughput) -> Check:
    figures = compared(workload, ours, _measured(bench, "stock", workload))
    found = f"{figures['ours']:.0f} against {figures['stock']:.0f} tokens/s: {figures['ratio']} ×, "
    found += f"loss {ours.losses[0]:.2f} → {ours.losses[-1]:.2f}, {figures['medianLossApart']:.1%} from TRL's"
    wanted = f"≥ {GOAL} ×, losses within 2 %, the last ≤ {FALL} × the first"
    learnt = ours.losses[-1] <= FALL * ours.losses[0]
    passed = figures["ratio"] >= GOAL and figures["medianLossApart"] <= 0.02 and learnt
    return Check("throughput", "chat-like lengths, plain TRL", found, wanted, passed if bench.on_gpu else None)


def _against_plain(workload: Workload, ours: Throughput, plain: Throughput) -> Check:
    """The same without fused kernels, which no CPU uses."""
    figures = compared(workload, ours, plain)
    found = f"{figures['ours']:.0f} against {figures['stock']:.0f} tokens/s: {figures['ratio']} ×"
    passed = figures["ratio"] >= 1 and figures["medianLossApart"] <= 0.02
    return Check("throughput", PLAIN, found, "≥ 1 ×, losses within 2 %", passed)


def _as_estimated(bench: Bench, workload: Workload, plain: Throughput) -> Check:
    """What the forecast of a run would be, which knows no fused kernels and, as these passes do, keeps all
    activations."""
    card = bench.cards[0]
    known = card_of(HardwareFacts(name=card.name))
    if known is None or "mig" in words_of(card.name):
        return skipped("throughput", f"what {card.name} reaches is in no table (fit/cards.py)", ESTIMATE)
    hardware = HardwareFacts(name=card.name, count=1, memory_gib=card.gib, peak_tflops=known.tflops)
    mean, count = plain.tokens_per_example, workload.batch * workload.passes * workload.steps
    training = workload.training.model_copy(update={"max_length": round(mean)})
    expected = pace(bench.shape, training, replace(KEPT, padded=False), hardware)
    assert expected, "a card of the table has a peak"
    rate = count * mean / training_seconds(training, Examples(count, mean, mean, validated=0), expected)
    ratio = plain.tokens_per_cpu_second / rate
    found = f"{plain.tokens_per_cpu_second:.0f} tokens/s, {ratio:.2f} × the {rate:.0f} of the forecast"
    wanted = f"{TIME[0]} to {TIME[1]} ×"
    return Check("throughput", ESTIMATE, found, wanted, TIME[0] <= ratio <= TIME[1])


def _against_unsloth(bench: Bench, workload: Workload) -> Check:
    """Unsloth is others' work in versions of its own: that it cannot be installed or run is no fault of this project's,
    and said in a line."""
    what = "chat-like lengths, Unsloth"
    try:
        python = _environment(bench)
    except ClusterError as error:
        return skipped("throughput", f"its environment cannot be made: {error}", what)
    try:
        ended = _train(bench, workload, python)
    except subprocess.TimeoutExpired:
        return skipped("throughput", f"it has not ended after {SECONDS} s", what)
    found = [line for line in ended.stdout.splitlines() if line.startswith(FIGURES)]
    if ended.returncode or not found:
        said = ended.stderr.strip().splitlines() or ["nothing"]
        return skipped("throughput", f"it ended with {ended.returncode}: {said[-1]}", what)
    theirs = json.loads(found[-1])
    ours = _measured(bench, "ours", workload)
    ratio = ours.tokens_per_cpu_second / theirs["tokensPerSecond"]
    told = f"{ours.tokens_per_cpu_second:.0f} against {theirs['tokensPerSecond']:.0f} tokens/s: {ratio:.2f} ×, "
    told += f"first losses {ours.losses[0]:.2f} and {theirs['losses'][0]:.2f}"
    return Check("throughput", what, told, f"≥ {UNSLOTH} ×", ratio >= UNSLOTH if bench.on_gpu else None)


def _measured(bench: Bench, side: str, workload: Workload) -> Throughput:
    """A side in a process of its own, which sees the first GPU only: TRL's trainer would divide its batches among
    all."""
    with patch.dict(os.environ, _first_gpu(bench)):
        measured: Throughput = fresh_process(measure, side, workload, bench.model)
    return measured


def _first_gpu(bench: Bench) -> dict[str, str]:
    return {VISIBLE: bench.numbers[0]} if bench.on_gpu else {}


def _train(bench: Bench, workload: Workload, python: Path) -> subprocess.CompletedProcess[str]:
    training = workload.training
    given = {
        "model": str(bench.model),
        "examples": [{"input_ids": e.input_ids, "labels": e.labels} for e in encoded(workload, bench.model)],
        "batch": workload.batch,
        "passes": workload.passes,
        "steps": workload.steps,
        "maxLength": training.max_length,
        "rank": training.rank,
        "alpha": training.alpha,
        "rate": float(RATE),
        "seed": training.seed,
    }
    file = bench.folder / "unsloth.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    command = [str(python), str(PROJECT / "train.py"), str(file), *([] if bench.on_gpu else ["--plain"])]
    # What Unsloth compiles and caches goes to this folder; it would ask for the model on the hub, and count its users.
    alone = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "HOME": str(bench.folder)}
    where = os.environ | alone | _first_gpu(bench)
    return subprocess.run(
        command, env=where, cwd=bench.folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def _environment(bench: Bench) -> Path:
    """The Python of Unsloth; in a rehearsal this one, which trains without it. Raises ClusterError."""
    if bench.on_gpu:
        return environments.sync(cache_directory() / "venvs" / "gpu-check-unsloth", [], PROJECT)
    return Path(sys.executable)
