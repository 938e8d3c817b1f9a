"""The cost of checkpoints in CPU time, and the time until a new pod resumes training.

A QLoRA training of SmolLM2-135M on short examples stores its checkpoints in a real S3 server on this machine. The cost
of a checkpoint is the CPU time that the training thread spends on saving and handing over, plus the CPU time of the
other threads, which hash and upload. The result is its share of the 25 steps between two checkpoints (the default).
Then a new process with an empty disk resumes; its time is measured from its start, including imports, to the end of its
first step, minus the time of one step.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.timing import USUAL_INTERVAL
from finetune_api.training import Training
from hack.benchmarks.result import Result
from hack.benchmarks.train_throughput import SHORT, fresh_process, messages
from hack.cluster.console import step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

EVERY = 3
"""Steps between two checkpoints of this benchmark."""
STEPS = 9
DEFAULT_INTERVAL = USUAL_INTERVAL
EXAMPLES = 200


@dataclass(frozen=True)
class Costs:
    """What one process measured, in seconds."""

    until_first_step: float
    """Wall time from the process's start."""
    step_wall: float
    step_cpu: float
    """Forward and backward passes of a step, in the training thread."""
    saving_cpu: float
    """One checkpoint, in the training thread."""
    saving_wall: float
    uploading_cpu: float
    """One checkpoint, in all other threads."""
    checkpoint_bytes: int


@dataclass
class Stopwatch:
    """Accumulates the time of a function in the calling thread."""

    cpu: float = 0.0
    wall: float = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.cpu += time.thread_time() - cpu
                self.wall += time.perf_counter() - wall

        return timed


def run() -> Result:
    """Measure; the value is the percentage of the steps' CPU time."""
    from tests.support.seaweedfs import ADMIN, SeaweedFS
    from tests.support.training import tokenise

    os.environ["OMP_NUM_THREADS"] = "1"  # before the processes start
    os.environ.update(ADMIN.environment())
    model = ensure_smollm2(cache_directory())
    with (
        tempfile.TemporaryDirectory(prefix="finetune-checkpoints-") as scratch,
        SeaweedFS.running(Path(scratch)) as server,
    ):
        dataset = tokenise(model, write_examples(Path(scratch) / "dataset"))
        endpoint = server.storage.endpoint
        with step(f"train {STEPS} steps with {STEPS // EVERY} checkpoints"):
            first = fresh_process(train, model, dataset, Path(scratch) / "first", endpoint, STEPS, time.time())
        with step("resume in a new process"):
            second = fresh_process(train, model, dataset, Path(scratch) / "second", endpoint, STEPS + 2, time.time())
    resume = second.until_first_step - second.step_wall
    cost = first.saving_cpu + first.uploading_cpu
    return Result(
        name="checkpoint_cost",
        value=100 * cost / (DEFAULT_INTERVAL * first.step_cpu),
        unit="%",
        baseline=None,
        goal="≤ 3 % of the steps' CPU time with a checkpoint every 25 steps; details.resumeSeconds ≤ 30",
        details={
            "resumeSeconds": round(resume, 1),
            "stepCpuSeconds": round(first.step_cpu, 2),
            "savingCpuSeconds": round(first.saving_cpu, 3),
            "blockedWallSeconds": round(first.saving_wall, 3),
            "uploadingCpuSeconds": round(first.uploading_cpu, 3),
            "checkpointBytes": first.checkpoint_bytes,
            "stepsBetween": DEFAULT_INTERVAL,
        },
    )


def write_examples(folder: Path) -> Path:
    """A prepared data set of short examples."""
    folder.mkdir(parents=True)
    for split, seeds in {"train": range(EXAMPLES), "validation": range(EXAMPLES, EXAMPLES + 8)}.items():
        rows = (json.dumps({"messages": messages(SHORT, seed)}) + "\n" for seed in seeds)
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


def train(model: Path, dataset: Path, folder: Path, endpoint: str, steps: int, started: float) -> Costs:
    """Train up to this many steps with the stage's own function; ``started`` is the start time of the process."""
    import torch

    from finetune_api.storage import Storage
    from finetune_jobs.base.progress import Measurement, Progress
    from finetune_jobs.store.s3 import Store
    from finetune_jobs.training import trainer as training_module
    from finetune_jobs.training.callbacks import Checkpointing
    from finetune_jobs.training.checkpoints import Checkpoints
    from finetune_jobs.training.context import TrainingContext
    from finetune_jobs.training.label_loss import LabelLossTrainer

    torch.set_num_threads(1)
    store = Store.connect(Storage(endpoint=endpoint), "s3://data/checkpoints")
    settings = Training(
        batch_size=SHORT.batch, gradient_accumulation=SHORT.passes, epochs=50, max_steps=steps, checkpoint_steps=EVERY
    )
    saving, passing = Stopwatch(), Stopwatch()
    steps_class = LabelLossTrainer
    steps_class._save_checkpoint = saving.around(steps_class._save_checkpoint)
    Checkpointing.on_save = saving.around(Checkpointing.on_save)  # type: ignore[method-assign] # timed from outside
    steps_class.training_step = passing.around(steps_class.training_step)
    first_step: list[float] = []

    class Noticing(Progress):
        def record(self, measurement: Measurement) -> None:
            if measurement.loss is not None:
                first_step.append(time.time())

    files = training_module.TrainingFiles(model, dataset, folder / "tuned", folder / "work", "s3://data/model")
    others = time.process_time() - time.thread_time()
    context = TrainingContext(Checkpoints(store), Noticing("train"), threading.Event())
    training_module.train_model(files, settings, context)
    others = time.process_time() - time.thread_time() - others
    done, saved = len(first_step), -(-len(first_step) // EVERY)
    newest = max((folder / "work").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return Costs(
        until_first_step=first_step[0] - started,
        step_wall=passing.wall / done,
        step_cpu=passing.cpu / done,
        saving_cpu=saving.cpu / saved,
        saving_wall=saving.wall / saved,
        uploading_cpu=others / saved,
        checkpoint_bytes=sum(file.stat().st_size for file in newest.iterdir()),
    )
