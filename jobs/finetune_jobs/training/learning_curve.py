"""The learning curve of a training: the same recipe on parts of its examples, to forecast what more would bring.

It runs after the training whose weights are kept, and reads only that training's validation loss, so it cannot change
them. Each part is a training of its own, starting from the base model: the same settings, steps and validations in
proportion, the same validation examples. A larger part contains the smaller ones, and each label has its share in it.

    <place>/<percent>.json     a finished part

A pod that takes over from another repeats only the unfinished part. A failure in a part costs the part, never the
training; parts that exceed the budget are skipped.
"""

import gc
import json
import logging
import math
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import TrainerCallback

from finetune_api.base import WireModel
from finetune_api.hashing import digest
from finetune_api.layout import CURVE_PAGE
from finetune_api.reasons import Reason
from finetune_api.training import Training
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Progress
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.fit.steps import Step
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.canaries import read_canaries
from finetune_jobs.modelling.device import is_out_of_memory
from finetune_jobs.modelling.token_files import REPORT, read_tokens
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.readiness.curve_page import render_curve
from finetune_jobs.readiness.forecast import Forecast, forecast
from finetune_jobs.readiness.learning_curve import Point
from finetune_jobs.reports.page import Fact
from finetune_jobs.splitting import sampling
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.build import Examples, build_trainer, load_trainable, longest, suit_attention
from finetune_jobs.training.callbacks import LAST, Reporting
from finetune_jobs.training.division import mapped_split, validation_split
from finetune_jobs.training.time_budget import TimeBudget
from finetune_jobs.training.trainer import Trained, TrainingFiles, run_steps

log = logging.getLogger(__name__)

CURVE: Final = "learning_curve.json"


class Measured(WireModel):
    """Content of ``<percent>.json``: the result of a part's training."""

    schema_version: int = 1
    run: str = ""
    """Id of the run that measured it."""
    examples: int
    """Canaries included."""
    steps: int
    validation_loss: float


@dataclass(frozen=True)
class Parts:
    """Where the parts are trained."""

    files: TrainingFiles
    training: Training
    batch: Batch
    """As it fitted the memory."""
    step: Step
    """The same: how the training computed, as its parts do."""
    place: Store
    """Keeps the finished parts."""
    stopping: threading.Event
    limit: TimeBudget | None
    """Time that the stage may take; None: no limit."""
    run: str = ""
    """Id of the run that trains them."""
    reuse: bool = True
    """Whether finished parts of other runs count too."""
    identity: tuple[Fact, ...] = ()
    """What the page says it is about."""

    def points(self, progress: Progress) -> Iterator[Point]:
        """The size and the loss of each part, the smallest first."""
        table = read_tokens(self.files.dataset, "train")
        examples = table.num_rows - len(read_canaries(self.files.dataset))  # canaries stand behind them
        validation = validation_split(self.files.dataset, self.training)
        tokens = longest(mapped_split(self.files.dataset, "train"), validation)
        done = LAST / self.training.work
        for percent, rows in divide(table, _percents(self.training), self.training.seed).items():
            begin, done = done, done + LAST / self.training.work * percent / 100
            part = Dataset(InMemoryTable(table.take(rows)))
            measured = self._kept(percent)
            if measured is None and self._worth_trying(percent, len(part)):
                prefix = f"learning curve, {percent} % of the examples: "
                measured = self._measure(percent, part, validation, tokens, progress.within(begin, done, prefix))
            if measured:
                yield Point(sum(row < examples for row in rows), measured.validation_loss)

    def _kept(self, percent: int) -> Measured | None:
        """What an earlier attempt measured; a damaged file does not count, nor does another run's unless reused."""
        path = f"{percent}.json"
        content = self.place.get(path)
        if content is None:
            return None
        try:
            measured = parse_json(content, Measured, self.place.uri(path))
        except StageError as error:
            log.warning("measured again: %s", error.message)
            return None
        return measured if self.reuse or measured.run == self.run else None

    def _worth_trying(self, percent: int, examples: int) -> bool:
        """Whether the part is enough for one step and the budget covers it: its share of everything spent so far,
        loading included, is more than it will take."""
        if examples < self.batch.size * self.batch.passes:
            log.warning("learning curve: %s %% are %s examples, too few for one step", percent, examples)
            return False
        if self.limit and self.limit.left < self.limit.spent * percent / 100:
            log.warning("learning curve: the budget does not cover %s %% of the examples", percent)
            return False
        return True

    def _measure(
        self, percent: int, part: Dataset, validation: Dataset, tokens: int, progress: Progress
    ) -> Measured | None:
        """Train on the part, and keep the result; None if it could not be trained."""
        work = self.files.work / f"curve-{percent}"
        try:
            measured = self._train(proportional(self.training, percent), part, validation, tokens, work, progress)
        except (StageError, RuntimeError) as error:
            if not (isinstance(error, StageError) or is_out_of_memory(error)):
                raise
            log.warning("learning curve: no result for %s %% of the examples: %s", percent, error)
            return None
        finally:
            shutil.rmtree(work, ignore_errors=True)
            gc.collect()  # the deleted model may survive in reference cycles
            torch.cuda.empty_cache()
        self.place.put(f"{percent}.json", measured.model_dump_json(by_alias=True, indent=1).encode())
        return measured

    def _train(
        self, training: Training, part: Dataset, validation: Dataset, tokens: int, work: Path, progress: Progress
    ) -> Measured:
        model = load_trainable(self.files.base, training, step=self.step)
        suit_attention(model, training, tokens)
        tokenizer = load_tokenizer(self.files.base)
        examples = Examples(part, validation, tokenizer)
        trainer = build_trainer(model, examples, training, work, self.batch, step=self.step)
        trainer.add_callback(Reporting(progress))
        trainer.add_callback(_Stopping(self.stopping))
        run_steps(trainer, None, progress)
        return Measured(
            run=self.run,
            examples=len(part),
            steps=trainer.state.global_step,
            validation_loss=float(trainer.state.best_metric),
        )


def measure_curve(parts: Parts, whole: Trained, progress: Progress) -> Forecast:
    """Train on the parts and write ``learning_curve.json`` and ``learning_curve.html`` beside the weights of ``whole``.

    A training that its budget ended is not a point of the curve: the parts would have had more steps for their size.
    Raises StoppedError when the pod must stop, and StageError as Store.
    """
    dataset = parts.files.dataset
    examples = read_tokens(dataset, "train").num_rows - len(read_canaries(dataset))
    everything = Point(examples, whole.validation_loss)
    unlike = whole.ending.reason is Reason.BUDGET_EXCEEDED
    smaller = [] if unlike else list(parts.points(progress))
    result = forecast([*smaller, everything], _left_aside(parts.files.dataset))
    out = parts.files.out
    (out / CURVE).write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    (out / CURVE_PAGE).write_text(render_curve(result, parts.identity), encoding="utf-8")
    return result


def divide(table: Any, percents: Iterable[int], seed: int) -> dict[int, list[int]]:
    """The rows of each part of a table of ``input_ids`` and ``labels``, by percent from the smallest on.

    Rows with the same answer are taken for one label. Equal rows (weights of sources) go together.
    """
    identities, answers = [], {}
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            identity = digest(row["input_ids"])
            identities.append(identity)
            answers[identity] = digest([token for token in row["labels"] if token != chat.IGNORED])
    chosen, parts = answers, {}
    for percent in sorted(set(percents), reverse=True):
        kept = sampling.pilot(chosen, round(Fraction(len(answers) * percent, 100)), seed)
        chosen = {identity: answer for identity, answer in chosen.items() if identity in kept}
        parts[percent] = [row for row, identity in enumerate(identities) if identity in kept]
    return {percent: parts[percent] for percent in sorted(parts)}


def proportional(training: Training, percent: int) -> Training:
    """The same recipe for a part: as many passes over it, and as many validations."""
    most, interval = training.max_steps, training.checkpoint_steps
    return training.model_copy(
        update={
            "max_steps": None if most is None else math.ceil(Fraction(most * percent, 100)),
            "checkpoint_steps": interval and max(1, math.ceil(Fraction(interval * percent, 100))),
            "learning_curve": None,
        }
    )


class _Stopping(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Ends a part when the pod must stop: its progress is not worth keeping."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stopping.is_set():
            raise StoppedError(
                "The pod was told to stop; the training and the learning curve's finished parts are saved."
            )

    on_step_end = on_substep_end


def _percents(training: Training) -> list[int]:
    return training.learning_curve.percents if training.learning_curve else []


def _left_aside(dataset: Path) -> int:
    """Training examples that a pilot did not use, as prepare reported."""
    report = dataset / REPORT
    rows = json.loads(report.read_text(encoding="utf-8"))["rows"] if report.exists() else {}
    return int(rows.get("outsidePilot", 0))
