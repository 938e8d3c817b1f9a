"""Training with TRL's SFTTrainer, an adapter (LoRA, QLoRA) or the whole model: from the base model to the result.

``build`` puts the trainer together; here it runs, with less at a time if it does not fit the memory, and is saved.
"""

import gc
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft.helpers import disable_input_dtype_casting

from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.fit.interruptions import FLUSH_SECONDS
from finetune_jobs.fit.kernels import Kernel, listed
from finetune_jobs.fit.recipe import (
    Batch,
    indivisible,
)
from finetune_jobs.fit.steps import Step
from finetune_jobs.modelling.device import is_out_of_memory, log_peak
from finetune_jobs.modelling.loading import DTYPE, copy_tokenizer
from finetune_jobs.modelling.token_files import longest_thoughts
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.modelling.tuning import Tuning, write_tuning
from finetune_jobs.training.build import Examples, build_trainer, load_trainable, longest, sharded, suit_attention
from finetune_jobs.training.callbacks import FIRST, Checkpointing, Reporting
from finetune_jobs.training.context import TrainingContext
from finetune_jobs.training.division import mapped_split, validation_split
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.memory import all_with_less, chosen_step, smaller_batch
from finetune_jobs.training.resuming import newest
from finetune_jobs.training.shards import make_all_whole
from finetune_jobs.training.stall import StallWatch
from finetune_jobs.training.team import Team
from finetune_jobs.training.tracking import Measuring
from finetune_jobs.training.watchdogs import Ending, ending

log = logging.getLogger(__name__)

MAX_SHARD: Final = "5GB"
"""Largest weight file of a whole model."""


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training reads and writes."""

    base: Path
    """The base model."""
    dataset: Path
    """The prepared data set."""
    out: Path
    """The result: adapter or model, tokenizer, ``tuning.json`` and ``train_log.jsonl``."""
    work: Path
    """Local checkpoints."""
    base_uri: str
    """What an adapter names as its base."""


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    steps: int
    train_loss: float
    """Mean over the last steps, as many as lie between two validations."""
    validation_loss: float
    """Of the weights that were kept: the best."""
    tokens: int
    """Tokens that went through the model, without padding."""
    trainable_parameters: int
    learning_rate: float
    """At its peak."""
    batch: Batch
    """As it fitted the memory."""
    step: Step
    """The same."""
    ending: Ending
    kernels: tuple[Kernel, ...] | None = None
    """The fused ones that were used; None: none can run here, as on a CPU."""

    def scalars(self) -> dict[str, str]:
        """The stage's scalars, as docs/reference/stages.md names them."""
        kernels = {} if self.kernels is None else {"kernels": listed(self.kernels)}
        return {
            "steps": str(self.steps),
            "trainLoss": f"{self.train_loss:.4f}",
            "validationLoss": f"{self.validation_loss:.4f}",
            "tokens": str(self.tokens),
            "trainableParameters": str(self.trainable_parameters),
            "learningRate": f"{self.learning_rate:g}",
            "batchSize": str(self.batch.size),
            "gradientAccumulation": str(self.batch.passes),
            "ended": self.ending.reason.value,
            **kernels,
        }


def train_model(files: TrainingFiles, training: Training, context: TrainingContext) -> Trained:
    """Train as ``training`` says and write the result to ``files.out``; resumes from the newest checkpoint.

    Activations are kept where there is room for them. If a pass does not fit the GPU's memory, they are computed again
    from then on; if it still does not, it gets half the examples at a time, and twice the passes: the same training.

    Raises StageError: ModelUnsupported, SpecInvalid (layers, rank), LossNotFinite, LossDiverged, CudaOutOfMemory (one
    example is too much), StepHung, Superseded, and as Store. Raises StoppedError when ``stopping`` ended it, after a
    last checkpoint.
    """
    checkpoints, team = context.checkpoints, context.team
    resume = checkpoints.restore(files.work)
    share = _share_of(training, team)
    batch = checkpoints.batch(share)
    step = chosen_step(files.base, training, share, _longest(files, training), team)
    if checkpoints.checkpointing(step.keeps_least):
        step = step.with_least()
    if not sharded(training, team, step):
        make_all_whole(files.work, team, DTYPE if step.rounded else None)
    while (trained := _attempt(files, training, context, batch, step, resume)) is None:
        smaller = smaller_batch(batch, training) if step.keeps_least else batch
        if team.size > 1:
            checkpoints.remember_too_large(batch if step.keeps_least else None)
            raise all_with_less(batch, team)
        if step.keeps_least:
            checkpoints.remember_batch(smaller)
        else:
            log.warning("continuing with activations that are computed again in the backward pass")
            checkpoints.remember_checkpointing()
        batch, step = smaller, step.with_least()
        gc.collect()  # the deleted model may survive in reference cycles
        torch.cuda.empty_cache()
        resume = newest(files.work)
    if not checkpoints.flush(FLUSH_SECONDS):
        log.warning("the last checkpoint is not in the store yet; the result does not need it")
    return trained


def _attempt(
    files: TrainingFiles, training: Training, context: TrainingContext, batch: Batch, step: Step, resume: Path | None
) -> Trained | None:
    """The whole training with this batch, from the base model's files on; None if it did not fit the memory."""
    progress, team = context.progress, context.team
    progress.report(0.0, "loading the base model")
    try:
        tokenizer = load_tokenizer(files.base)
        model = load_trainable(files.base, training, team, step)
        train = mapped_split(files.dataset, "train")
        validation = validation_split(files.dataset, training)
        divided = sharded(training, team, step)
        suit_attention(model, training, longest(train, validation), divided=divided, team=team)
        examples = Examples(train, validation, tokenizer)
        trainer = build_trainer(model, examples, training, files.work, batch, team, step)
        trainer.add_callback(Measuring(progress))
        trainer.add_callback(Reporting(progress))
        trainer.add_callback(
            Checkpointing(
                context,
                files.work,
                minutes=training.checkpoint_minutes,
                divided=divided,
                save=lambda: trainer._save_checkpoint(trainer.model, trial=None),
            )
        )
        if context.time_budget:
            trainer.add_callback(context.time_budget)
        run_steps(trainer, resume, progress)
        log_peak()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0].partition(".")[0]
        log.warning("the GPU's memory is too small for %s examples at a time: %s", batch.size, said)
        return None
    whole = training.method is Method.FULL
    weights = trainer.weights(DTYPE if whole else None) if whole or divided else {}
    if team.first:
        _save(trainer, weights, training, files)
    summary = _summary(trainer, training, batch, step)
    budget = context.time_budget
    return replace(summary, ending=budget.ending(summary.ending)) if budget else summary


def run_steps(trainer: LabelLossTrainer, resume: Path | None, progress: Progress) -> None:
    """All steps after the checkpoint ``resume``, under a watch for steps that hang."""
    if resume:
        log.info("training resumes from %s", resume.name)
    progress.report(FIRST, "training")
    watch = StallWatch()
    trainer.add_callback(watch)
    with (
        watch,
        disable_input_dtype_casting(trainer.model),  # PEFT would copy every input to float32 for nothing
    ):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def _share_of(training: Training, team: Team) -> Batch:
    """This process's part of a step. Raises StageError (SpecInvalid) if a step's examples do not divide evenly."""
    batch = Batch.of(training).divided(team.size)
    if batch is None:
        raise StageError(Reason.SPEC_INVALID, indivisible(training, team.size))
    return batch


def _longest(files: TrainingFiles, training: Training) -> int:
    return longest(mapped_split(files.dataset, "train"), validation_split(files.dataset, training))


def _save(
    trainer: LabelLossTrainer, weights: dict[str, torch.Tensor], training: Training, files: TrainingFiles
) -> None:
    """The result without machine-specific data, with the base model's own tokenizer; ``weights`` are those of a whole
    model, or of an adapter that is divided among processes."""
    files.out.mkdir(parents=True, exist_ok=True)
    if training.method is Method.FULL:
        trainer.model.save_pretrained(files.out, state_dict=weights, safe_serialization=True, max_shard_size=MAX_SHARD)
    else:
        _save_adapter(trainer.model, weights, files)
    copy_tokenizer(files.base, files.out)
    write_tuning(files.out, Tuning.of(training, thoughts=longest_thoughts(files.dataset) > 0))
    history = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    (files.out / "train_log.jsonl").write_text(history)


def _save_adapter(model: Any, weights: dict[str, torch.Tensor], files: TrainingFiles) -> None:
    """In PEFT's format; without ``weights``, the model's own."""
    model.save_pretrained(files.out, state_dict=weights or None, safe_serialization=True)
    path = files.out / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": files.base_uri, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _summary(trainer: LabelLossTrainer, training: Training, batch: Batch, step: Step) -> Trained:
    state = trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry][-trainer.args.eval_steps :]
    return Trained(
        steps=state.global_step,
        train_loss=sum(losses) / len(losses),
        validation_loss=state.best_metric,
        tokens=int(state.num_input_tokens_seen),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        learning_rate=trainer.args.learning_rate,
        batch=batch,
        step=step,
        ending=ending(
            state.log_history, state.global_step, state.max_steps, (state.best_global_step, state.best_metric)
        ),
        kernels=trainer.kernels,
    )
