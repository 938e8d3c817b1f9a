"""What a training is built from: the loaded model, its attention, and TRL's trainer with all its settings.

What is trained is kept in float32: TRL 1.16 casts QLoRA adapters to bfloat16, where small updates round to nothing
(docs/concepts/training.md). A whole model for which a GPU has no room in float32 is kept in bfloat16, rounded
stochastically.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
from trl import SFTConfig

from finetune_api.training import EarlyStopping, Method, Packing, Training
from finetune_jobs.fit.fields import UnknownShapeError
from finetune_jobs.fit.recipe import (
    MAX_GRAD_NORM,
    WARM_UP,
    Batch,
    Schedule,
    schedule,
)
from finetune_jobs.fit.shapes import read_shape
from finetune_jobs.fit.steps import ON_CPU, Step
from finetune_jobs.fit.validating import validation_tokens
from finetune_jobs.modelling.device import device, precision
from finetune_jobs.modelling.loading import DTYPE, build_base, load_base
from finetune_jobs.modelling.tokenizer import unsupported
from finetune_jobs.training import packing
from finetune_jobs.training.adapter import adapter_config
from finetune_jobs.training.collator import Collator
from finetune_jobs.training.division import missing, token_counts, with_blanks
from finetune_jobs.training.dropout import use_sparse_dropout
from finetune_jobs.training.int8_inputs import release_inputs
from finetune_jobs.training.kernels import runnable, use_kernels
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.order import StepOrder
from finetune_jobs.training.rounded_adamw import RoundedAdamW
from finetune_jobs.training.selective import use_selective
from finetune_jobs.training.sharding import ShardedTrainer
from finetune_jobs.training.team import ALONE, Team
from finetune_jobs.training.tiled_loss import add_tiled_loss
from finetune_jobs.training.validation import Validation

PLAIN_ATTENTION_TOKENS: Final = 128
"""On CPUs, plain attention of padded examples is faster up to here; its memory grows as the square."""


@dataclass(frozen=True)
class Examples:
    """What is trained on and validated with, as tokens: both have the columns ``input_ids`` and ``labels``."""

    train: Dataset
    validation: Dataset
    tokenizer: Any
    """The one that made the tokens."""


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
    divided, packed = sharded(training, team, step), packing.is_used(model)
    add_tiled_loss(model, team if divided else ALONE)
    kernels = use_kernels(model, training, team)  # not earlier: one that will be divided is still in host memory
    set_seed(training.seed)  # the adapter is initialised before the trainer seeds anything
    plan = schedule(training, model.num_parameters(), len(train), len(validation))
    lengths, together = token_counts(train), batch.size * team.size
    if team.size > 1:
        blank = tokenizer.pad_token_id
        train = with_blanks(train, missing(len(train), together), blank)
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
    release_inputs(trainer.model)
    trainer.model.create_or_update_model_card = _no_card  # PEFT's, of each checkpoint
    blanks, examples_a_step = len(train) - len(lengths), together * batch.passes
    trainer.team = team
    tokens = _validation_tokens(model, training, batch, replace(step, padded=not packed), longest(train, validation))
    trainer.validation = Validation(validation, tokens, packed, team)
    trainer.order = StepOrder(lengths, examples_a_step, training.seed, blanks=blanks, by_length=not packed)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and not step.rounded:
            parameter.data = parameter.data.float()
    trainer.kernels = kernels if runnable() else None
    trainer.selective = step.selective
    if step.selective and not divided:  # which is asked once it is
        use_selective(trainer)
    return trainer


def _no_card(_folder: str) -> None:
    pass


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
    memory, the others without its weights. Raises StageError (ModelUnsupported).
    """
    dtype = DTYPE if step.rounded else torch.float32 if training.method is Method.FULL else precision()
    rounded = training.base_quantization
    if not sharded(training, team, step):
        return _trainable(load_base(base, rounded, dtype=dtype), training)
    if team.first:
        model = _trainable(load_base(base, rounded, dtype=dtype, where="cpu", divisible=True), training)
    else:
        model = build_base(base, rounded, dtype=dtype)
    team.wait_for_first("model loaded")
    return model


def _trainable(model: Any, training: Training) -> Any:
    """``model``, unless its checkpoint was quantised in a way that the method cannot train. transformers would say so
    later, in words that name no setting, and as a fault that a new pod could mend."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or training.base_quantization:
        return model
    if training.method is Method.FULL or not quantizer.is_trainable:
        how = str(getattr(quantizer.quantization_config.quant_method, "value", ""))
        why = f"they are already quantised ({how}), which method {training.method} does not train"
        raise unsupported("weights", f"{why}; take the same model in 16 bits")
    return model


def suit_attention(model: Any, training: Training, tokens: int, *, divided: bool = False, team: Team = ALONE) -> None:
    """Choose the attention that is fastest for examples of up to so many tokens: packed, unless they are short and
    compute on a CPU, or the model, its division among processes or the spec are against it. All processes of ``team``
    call this together."""
    if device() == "cpu" and tokens <= PLAIN_ATTENTION_TOKENS:
        model.set_attn_implementation("eager")
    elif training.packing is Packing.AUTO and not divided:
        packing.use_packing(model, team)


def longest(*splits: Dataset) -> int:
    """Tokens of the longest example."""
    return max(max(token_counts(split)) for split in splits)


def _validation_tokens(model: Any, training: Training, batch: Batch, step: Step, tokens: int) -> int:
    """Of a validation's pass; ``tokens`` are those of the longest example. Those of a pass of training, where the
    model's shape is unknown."""
    part = training.model_copy(update={"batch_size": batch.size, "max_length": tokens})
    whole = model.config.to_dict() | {"quantization_config": None}  # ``part`` says how it is rounded
    try:
        return validation_tokens(read_shape(whole), part, step)
    except UnknownShapeError:
        return batch.size * tokens


def configuration(
    training: Training, work: Path, batch: Batch, plan: Schedule, *, packed: bool = False, checkpointing: bool = False
) -> SFTConfig:
    """All settings of the trainer."""
    on_gpu = device() != "cpu"
    settings = SFTConfig(
        output_dir=str(work),
        max_steps=plan.steps,
        per_device_train_batch_size=batch.size,
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
