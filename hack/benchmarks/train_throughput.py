"""Training tokens per CPU second, compared with TRL's stock SFTTrainer.

Both sides use the same model (SmolLM2-135M, nf4), adapter, examples, order and batches, without validation and
checkpoints. The baseline has all our settings that TRL supports, with its own loss, attention and adapter precision.
Each side runs in a new process with one thread. CPU time is measured because it varies less than wall time on a busy
machine; it does vary, so the sides take turns, and the turn with the median ratio counts. Short examples are like a
classification, long ones like a letter with an answer of about 60 tokens, those of a chat are mostly short and now and
then long: log-normal lengths, median 120 tokens.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune_api.training import EarlyStopping, Kernels, Training
from hack.benchmarks.result import Result
from hack.cluster.console import say, step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

WORDS = """account address amount answer balance bank bill book branch card change check city client code company
contract copy cost credit customer date day debit deposit detail email error fee file form hour house invoice item
letter line list loan mail market message minute money month name notice number offer office order page paper payment
person phone plan policy price problem product question rate reason record refund rent report request response service
shipment state statement store street support system tax team term ticket time total transfer year"""
MAX_LENGTH = 1024


class Lengths(Protocol):
    """How long the examples of a kind are."""

    def draw(self, chosen: random.Random) -> tuple[int, int]:
        """Words of a question and of its answer."""


@dataclass(frozen=True)
class Between:
    """Any length between two, each as often."""

    prompt: tuple[int, int]
    answer: tuple[int, int]

    def draw(self, chosen: random.Random) -> tuple[int, int]:
        return chosen.randint(*self.prompt), chosen.randint(*self.answer)


@dataclass(frozen=True)
class LogNormal:
    """Words that are log-normal, up to ``most``, a third of them the answer's."""

    median: int
    sigma: float
    most: int

    def draw(self, chosen: random.Random) -> tuple[int, int]:
        words = min(self.most, max(3, round(chosen.lognormvariate(math.log(self.median), self.sigma))))
        return words - words // 3, words // 3


@dataclass(frozen=True)
class Workload:
    """Examples of one kind, and their batches."""

    name: str
    lengths: Lengths
    batch: int
    passes: int
    steps: int
    """The first step is a warm-up and not measured."""
    goal: float
    """Least ratio to TRL's rate."""
    dropout: str = "0.05"
    """On the adapter's input."""
    kernels: Kernels = Kernels.AUTO
    learning_rate: str | None = None
    """At its peak, if it is not the default."""
    checkpointing: bool = False
    """Whether TRL computes activations again, as it does by default."""
    turns: int = 3
    """How often both sides are measured, one after the other."""

    @property
    def training(self) -> Training:
        """The settings as in a spec."""
        return Training(
            batch_size=self.batch,
            gradient_accumulation=self.passes,
            max_steps=self.steps,
            epochs=50,
            max_length=MAX_LENGTH,
            dropout=self.dropout,
            kernels=self.kernels,
            learning_rate=self.learning_rate,
            early_stopping=EarlyStopping.NEVER,
        )


SHORT = Workload("short", Between((8, 24), (1, 1)), batch=8, passes=2, steps=9, goal=1.7)
LONG = Workload("long", Between((380, 430), (50, 60)), batch=4, passes=1, steps=4, goal=1.7)
CHAT = Workload("chat", LogNormal(median=95, sigma=1.0, most=950), batch=8, passes=1, steps=7, goal=2.5, turns=1)


@dataclass(frozen=True)
class Throughput:
    """One run."""

    tokens_per_cpu_second: float
    losses: list[float]
    tokens_per_example: float


def run() -> Result:
    """Measure; the value is our rate for the workload that is the farthest from its goal."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before the processes start
    model = ensure_smollm2(cache_directory())
    figures: dict[str, dict[str, Any]] = {}
    workloads = (SHORT, LONG, CHAT)
    for workload in workloads:
        turns = [_turn(workload, model) for _ in range(workload.turns)]
        ratios = sorted(turn["ratio"] for turn in turns)
        median = next(turn for turn in turns if turn["ratio"] == ratios[len(ratios) // 2])
        figures[workload.name] = median | {"ratios": ratios}
        say(f"  {workload.name}: {median['ratio']} times the tokens per CPU second (of {ratios})")
    worst = min(figures.values(), key=lambda figure: figure["ratio"] / figure["goal"])
    goals = ", ".join(f"{workload.name} ≥ {workload.goal}" for workload in workloads)
    return Result(
        name="train_throughput",
        value=worst["ours"],
        unit="tokens/CPU-s",
        baseline=worst["stock"],
        goal=f"times TRL's: {goals}, with the same losses",
        details=figures,
    )


def _turn(workload: Workload, model: Path) -> dict[str, Any]:
    """Figures of both sides, measured one after the other."""
    sides = {}
    for side in ("ours", "stock"):
        with step(f"train on {workload.name} examples ({side})"):
            sides[side] = fresh_process(measure, side, workload, model)
    return compared(workload, sides["ours"], sides["stock"])


def compared(workload: Workload, ours: Throughput, stock: Throughput) -> dict[str, Any]:
    """Figures of both sides of a workload, and the differences of their losses."""
    apart = [abs(a - b) / b for a, b in zip(ours.losses, stock.losses, strict=True)]
    return {
        "ours": round(ours.tokens_per_cpu_second, 1),
        "stock": round(stock.tokens_per_cpu_second, 1),
        "ratio": round(ours.tokens_per_cpu_second / stock.tokens_per_cpu_second, 3),
        "goal": workload.goal,
        "tokensPerExample": round(ours.tokens_per_example),
        "batch": f"{workload.batch} x {workload.passes}",
        "firstLossApart": round(apart[0], 5),
        "medianLossApart": round(statistics.median(apart), 5),
        "losses": {"ours": ours.losses, "stock": stock.losses},
    }


def fresh_process(function: Any, *arguments: Any) -> Any:
    """The function's result, computed in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def messages(workload: Workload, seed: int) -> list[dict[str, str]]:
    """A conversation of random words, the same on every machine."""
    chosen, words = random.Random(seed), WORDS.split()

    prompt, answer = (" ".join(chosen.choices(words, k=count)) for count in workload.lengths.draw(chosen))
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def encoded(workload: Workload, model: Path) -> list[Any]:
    """All its examples as tokens with labels."""
    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.tokenizer import load_tokenizer

    tokenizer, rows = load_tokenizer(model), workload.batch * workload.passes * workload.steps
    return [chat.encode(tokenizer, messages(workload, seed), tokenizer.eos_token_id) for seed in range(rows)]


def measure(side: str, workload: Workload, model: Path) -> Throughput:
    """One training, in this process."""
    import torch

    from finetune_jobs.base.progress import Progress
    from finetune_jobs.modelling.tokenizer import load_tokenizer
    from finetune_jobs.training.trainer import run_steps

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(model)
    examples = encoded(workload, model)
    with tempfile.TemporaryDirectory(prefix="finetune-throughput-") as folder:
        trainer = (our_trainer if side == "ours" else stock_trainer)(model, tokenizer, examples, workload, Path(folder))
        clock = stepping_clock(trainer)
        if side == "ours":
            run_steps(trainer, None, Progress("train"))
        else:
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(example.input_ids) for example in examples)
    measured = tokens * (workload.steps - 1) / workload.steps
    return Throughput(measured / (clock[-1] - clock[0]), losses, tokens / len(examples))


def stepping_clock(trainer: Any) -> list[float]:
    """CPU seconds of this process at the end of each step, recorded during training; on a GPU the time of day."""
    import torch
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc] # transformers has no types
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                times.append(time.perf_counter())
            else:
                times.append(time.process_time())

    trainer.add_callback(Clock())
    return times


def our_trainer(model: Path, tokenizer: Any, examples: list[Any], workload: Workload, folder: Path) -> Any:
    """As the stage train builds it, without validation and checkpoints."""
    from datasets import Dataset

    from finetune_jobs.fit.recipe import Batch
    from finetune_jobs.modelling.loading import load_base
    from finetune_jobs.training import packing
    from finetune_jobs.training.build import Examples, build_trainer, longest, suit_attention

    training = workload.training
    base = load_base(model, training.base_quantization)
    rows = Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})
    suit_attention(base, training, longest(rows))
    trainer = build_trainer(base, Examples(rows, rows.select([0]), tokenizer), training, folder, Batch.of(training))
    trainer.order = order_of(workload, examples, by_length=not packing.is_used(base))
    return without_interruptions(trainer)


def order_of(workload: Workload, examples: list[Any], *, by_length: bool) -> Any:
    """Steps that are alike: of as few as are measured here, the one with the longest examples would be most of all."""
    from finetune_jobs.training.order import StepOrder

    lengths, step = [len(each.input_ids) for each in examples], workload.batch * workload.passes
    return StepOrder(lengths, step, workload.training.seed, by_length=by_length, longest_first=False)


def stock_trainer(model: Path, tokenizer: Any, examples: list[Any], workload: Workload, folder: Path) -> Any:
    """SFTTrainer with the same settings, as documented."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback, set_seed
    from transformers.utils import logging
    from trl import SFTTrainer

    from finetune_jobs.fit.recipe import Batch, schedule
    from finetune_jobs.modelling.device import device, precision
    from finetune_jobs.modelling.loading import rounding
    from finetune_jobs.training.adapter import adapter_config
    from finetune_jobs.training.build import configuration

    logging.disable_progress_bar()
    training = workload.training
    quantization = rounding(training.quantization, precision())
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=precision(), device_map={"": device()}, quantization_config=quantization
    )
    plan = schedule(training, base.num_parameters(), len(examples), 1)
    rows = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples])
    set_seed(training.seed)
    trainer = SFTTrainer(
        model=base,
        args=configuration(training, folder, Batch.of(training), plan, checkpointing=workload.checkpointing),
        train_dataset=rows,
        eval_dataset=rows.select([0]),
        processing_class=tokenizer,
        peft_config=adapter_config(base, training),
    )
    trainer.remove_callback(PrinterCallback)
    return without_interruptions(trainer)


def without_interruptions(trainer: Any) -> Any:
    """Only training steps: no validation and no checkpoints."""
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    return trainer
