"""Training with TRL's SFTTrainer: an adapter (LoRA, QLoRA) or the whole model.

What is trained is kept in float32: TRL 1.16 casts QLoRA adapters to bfloat16, where small updates round to nothing
(docs/concepts/training.md). A whole model for which a GPU has no room in float32 is kept in bfloat16, rounded
stochastically.
"""

import gc
import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as compute
import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
from trl import SFTConfig

from finetune_api.reasons import Reason
from finetune_api.training import EarlyStopping, Method, Packing, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.fit.interruptions import FLUSH_SECONDS
from finetune_jobs.fit.kernels import Kernel, listed
from finetune_jobs.fit.memory import ON_CPU, Step
from finetune_jobs.fit.recipe import (
    MAX_GRAD_NORM,
    WARM_UP,
    Batch,
    Schedule,
    indivisible,
    schedule,
)
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.device import device, log_peak, precision
from finetune_jobs.modelling.loading import DTYPE, build_base, copy_tokenizer, load_base
from finetune_jobs.modelling.token_files import longest_thoughts
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.modelling.tuning import Tuning, write_tuning
from finetune_jobs.training import checkpoints as kept
from finetune_jobs.training import packing
from finetune_jobs.training.adapter import adapter_config
from finetune_jobs.training.callbacks import FIRST, Checkpointing, Reporting
from finetune_jobs.training.collator import Collator
from finetune_jobs.training.context import TrainingContext
from finetune_jobs.training.division import mapped_split, missing, token_counts, validation_split, with_blanks
from finetune_jobs.training.dropout import use_sparse_dropout
from finetune_jobs.training.kernels import runnable, use_kernels
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.memory import all_with_less, chosen_step, smaller_batch
from finetune_jobs.training.order import StepOrder
from finetune_jobs.training.rounded_adamw import RoundedAdamW
from finetune_jobs.training.selective import use_selective
from finetune_jobs.training.sharding import ShardedTrainer
from finetune_jobs.training.shards import make_all_whole
from finetune_jobs.training.stall import StallWatch
from finetune_jobs.training.team import ALONE, Team
from finetune_jobs.training.tiled_loss import add_tiled_loss
from finetune_jobs.training.tracking import Measuring
from finetune_jobs.training.watchdogs import Ending, ending

log = logging.getLogger(__name__)

PLAIN_ATTENTION_TOKENS: Final = 128
"""On CPUs, plain attention of padded examples is faster up to here; its memory grows as the square."""
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
class Examples:
    """What is trained on and validated with, as tokens: both have the columns ``input_ids`` and ``labels``."""

    train: Dataset
    validation: Dataset
    tokenizer: Any
    """The one that made the tokens."""


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
        resume = kept.newest(files.work)
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
        suit_attention(model, training, longest(train, validation), divided=divided)
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
    except torch.OutOfMemoryError as error:
        log.warning("the GPU's memory is too small for %s examples at a time: %s", batch.size, str(error).split(".")[0])
        return None
    whole = training.method is Method.FULL
    weights = trainer.weights(DTYPE if whole else None) if whole or divided else {}
    if team.first:
        _save(trainer, weights, training, files)
    summary = _summary(trainer, training, batch)
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


def build_trainer(  # noqa: PLR0913 # what a training consists of, each of it once
    model: Any,
    examples: Examples,
    training: Training,
    work: Path,
    batch: Batch,
    team: Team = ALONE,
    step: Step = ON_CPU,
) -> LabelLossTrainer:
    """The trainer of ``model``, with a fresh adapter unless all of it is trained; its checkpoints go below ``work``.

    ``batch`` is this process's part, ``step`` how it computes. Raises StageError (SpecInvalid) as ``adapter_config``.
    """
    train, validation, tokenizer = examples.train, examples.validation, examples.tokenizer
    kernels = use_kernels(model, training, team)
    set_seed(training.seed)  # the adapter is initialised before the trainer seeds anything
    plan = schedule(training, model.num_parameters(), len(train), len(validation))
    lengths, together = token_counts(train), batch.size * team.size
    if team.size > 1:
        blank = tokenizer.pad_token_id
        train = with_blanks(train, missing(len(train), together), blank)
        validation = with_blanks(validation, missing(len(validation), together), blank)
    divided, packed = sharded(training, team, step), packing.is_used(model)
    add_tiled_loss(model, team if divided else ALONE)
    checkpointing = step.checkpointing and model.supports_gradient_checkpointing  # a few architectures do not
    arguments = configuration(training, work, batch, plan, packed=packed, checkpointing=checkpointing)
    trainer = (ShardedTrainer if divided else LabelLossTrainer)(
        model=model,
        args=arguments,
        data_collator=Collator(tokenizer.pad_token_id or 0, padding_free=packed),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=None if training.method is Method.FULL else adapter_config(model, training),
        callbacks=_early_stopping(training, plan.patience),
        optimizer_cls_and_kwargs=(RoundedAdamW, {"lr": plan.rate}) if step.rounded else None,
    )
    trainer.remove_callback(PrinterCallback)
    use_sparse_dropout(trainer.model)
    trainer.labels_per_example = _labelled(validation) / len(validation)
    blanks, examples_a_step = len(train) - len(lengths), together * batch.passes
    trainer.team = team
    trainer.order = StepOrder(lengths, examples_a_step, training.seed, blanks=blanks, by_length=not packed)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and not step.rounded:
            parameter.data = parameter.data.float()
    trainer.kernels = kernels if runnable() else None
    trainer.selective = step.selective
    if step.selective and not divided:  # which is asked once it is
        use_selective(trainer)
    return trainer


def _early_stopping(training: Training, patience: int) -> list[Any]:
    if training.early_stopping is EarlyStopping.NEVER:
        return []
    return [EarlyStoppingCallback(early_stopping_patience=patience)]


def sharded(training: Training, team: Team, step: Step) -> bool:
    """Whether the model is divided among the processes. With an adapter each mostly has its own copy, which is only
    read."""
    return team.size > 1 and (training.method is Method.FULL or step.divided)


def load_trainable(base: Path, training: Training, team: Team = ALONE, step: Step = ON_CPU) -> Any:
    """The base model for training: all weights in float32, in bfloat16 if they are rounded, or, under an adapter,
    quantised if asked for. A model that will be divided need not fit a GPU: the first process loads it into host
    memory, the others without its weights.
    """
    dtype = DTYPE if step.rounded else torch.float32 if training.method is Method.FULL else precision()
    rounded = training.base_quantization
    if not sharded(training, team, step):
        return load_base(base, rounded, dtype=dtype)
    if team.first:
        model = load_base(base, rounded, dtype=dtype, where="cpu", divisible=True)
    else:
        model = build_base(base, rounded, dtype=dtype)
    team.wait_for_first("model loaded")
    return model


def suit_attention(model: Any, training: Training, tokens: int, *, divided: bool = False) -> None:
    """Choose the attention that is fastest for examples of up to so many tokens: packed, unless they are short and
    compute on a CPU, or the model, its division among processes or the spec are against it."""
    if device() == "cpu" and tokens <= PLAIN_ATTENTION_TOKENS:
        model.set_attn_implementation("eager")
    elif training.packing is Packing.AUTO and not divided:
        packing.use_packing(model)


def longest(*splits: Dataset) -> int:
    """Tokens of the longest example."""
    return max(max(token_counts(split)) for split in splits)


def _labelled(split: Dataset) -> int:
    """Tokens that carry loss."""
    labels = compute.list_flatten(split.data.column("labels"))
    return int(compute.sum(compute.not_equal(labels, chat.IGNORED)).as_py())


def _longest(files: TrainingFiles, training: Training) -> int:
    return longest(mapped_split(files.dataset, "train"), validation_split(files.dataset, training))


def configuration(
    training: Training, work: Path, batch: Batch, plan: Schedule, *, packed: bool = False, checkpointing: bool = False
) -> SFTConfig:
    """All settings of the trainer."""
    on_gpu = device() != "cpu"
    settings = SFTConfig(
        output_dir=str(work),
        max_steps=plan.steps,
        per_device_train_batch_size=batch.size,
        per_device_eval_batch_size=batch.size,
        gradient_accumulation_steps=batch.passes,
        learning_rate=plan.rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(plan.steps * WARM_UP),
        max_grad_norm=MAX_GRAD_NORM[training.method],
        optim="adamw_torch_fused",  # one pass over the weights, without copies of them
        bf16=precision() is torch.bfloat16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        activation_checkpointing=checkpointing,
        max_length=None,  # prepare has decided what becomes of long examples; TRL would silently truncate them
        seed=training.seed,
        data_seed=training.seed,
        eval_strategy="steps",
        eval_steps=plan.interval,
        save_strategy="steps",
        save_steps=plan.interval,
        save_total_limit=2,  # the best and the newest
        save_on_each_node=True,  # where several pods train together, each loads the best one from its own disk
        ddp_find_unused_parameters=False,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="all" if packed else "non_padding",
        report_to="none",
        disable_tqdm=True,
    )
    # A process has one GPU, though its pod may show more of them than its profile has: transformers would spread the
    # batches over all (DataParallel), which TRL refuses.
    settings._n_gpu = min(1, settings.n_gpu)
    return settings


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
    (files.out / "README.md").unlink(missing_ok=True)
    path = files.out / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": files.base_uri, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _summary(trainer: LabelLossTrainer, training: Training, batch: Batch) -> Trained:
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
        ending=ending(
            state.log_history, state.global_step, state.max_steps, (state.best_global_step, state.best_metric)
        ),
        kernels=trainer.kernels,
    )
