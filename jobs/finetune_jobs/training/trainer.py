"""Training of a LoRA or QLoRA adapter with TRL's SFTTrainer.

Why the trainer is subclassed at all (TRL 1.16): off CUDA its loss projects every position through the LM head, though
only the answer's few tokens carry a label; and it casts QLoRA adapters to bfloat16, where small updates round to
nothing. Both, and what they cost, are described in docs/concepts/training.md.
"""

import json
import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.errors import StageError
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.examples import read_split
from finetune_jobs.modelling.loading import (
    copy_tokenizer,
    cuda_memory,
    device,
    load_base,
    load_tokenizer,
)
from finetune_jobs.progress import Progress
from finetune_jobs.training.callbacks import FIRST, Checkpointing, Reporting
from finetune_jobs.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)

WARM_UP: Final = 0.03
"""Share of the steps in which the learning rate rises (QLoRA, Dettmers et al. 2023)."""
MAX_GRAD_NORM: Final = {Method.QLORA: 0.3, Method.LORA: 1.0}
"""Gradients are clipped to this norm: QLoRA's own value, and the usual one."""
PATIENCE: Final = 3
"""Training stops after this many validations without a better loss."""
PLAIN_ATTENTION_TOKENS: Final = 128
"""On CPUs, plain attention is a fifth faster than the fused kernel up to here; its memory grows as the square."""
SCALED_LOGITS: Final = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Settings by which a few architectures change the LM head's output; TRL's own loss knows them all."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    steps: int
    train_loss: float
    """Mean over the last steps, as many as lie between two checkpoints."""
    validation_loss: float
    """Of the weights that were kept: the best."""
    tokens: int
    """Tokens that went through the model, without padding."""
    trainable_parameters: int

    def scalars(self) -> dict[str, str]:
        """The stage's scalars, as docs/reference/stages.md names them."""
        return {
            "steps": str(self.steps),
            "trainLoss": f"{self.train_loss:.4f}",
            "validationLoss": f"{self.validation_loss:.4f}",
            "tokens": str(self.tokens),
            "trainableParameters": str(self.trainable_parameters),
        }


def train_adapter(
    base: Path,
    dataset: Path,
    out: Path,
    training: Training,
    *,
    base_uri: str,
    work: Path,
    checkpoints: Checkpoints,
    progress: Progress,
    stopping: threading.Event,
) -> Trained:
    """Train an adapter over ``base`` on ``dataset``; write it, the tokenizer and ``train_log.jsonl`` to ``out``.

    ``work`` holds local checkpoints, ``checkpoints`` the ones that outlive the pod; training goes on from the newest
    of those. ``base_uri`` is what the adapter names as its base.

    Raises StageError: DatasetInvalid or DatasetTooSmall (the examples), ModelUnsupported, LossNotFinite,
    CudaOutOfMemory. Raises StoppedError when ``stopping`` ended it, after a last checkpoint.
    """
    progress.report(0.0, "loading the base model")
    tokenizer = load_tokenizer(base)
    model = load_base(base, training.method)
    stop = chat.end_of_turn(tokenizer, chat.stop_ids(tokenizer, model.generation_config))
    train, validation = (
        encode_split(tokenizer, dataset, s, stop, training.max_length) for s in ("train", "validation")
    )
    longest = max(len(example.input_ids) for example in [*train, *validation])
    if device() == "cpu" and longest <= PLAIN_ATTENTION_TOKENS:
        model.set_attn_implementation("eager")
    trainer = build_trainer(model, tokenizer, train, validation, training, work)
    trainer.add_callback(Reporting(progress))
    trainer.add_callback(Checkpointing(checkpoints, work, stopping))
    resume = checkpoints.restore(work)
    if resume:
        log.info("training goes on from %s", resume.name)
    progress.report(FIRST, "training")
    with (
        disable_input_dtype_casting(trainer.model),  # PEFT would copy every input to float32 for nothing
        cuda_memory(f"a batch of {training.batch_size} examples of at most {training.max_length} tokens"),
    ):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    _save(trainer, base, out, base_uri)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-training.checkpoint_steps :]
    return Trained(
        steps=trainer.state.global_step,
        train_loss=sum(losses) / len(losses),
        validation_loss=trainer.state.best_metric,
        tokens=int(trainer.state.num_input_tokens_seen),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    )


def encode_split(tokenizer: Any, dataset: Path, split: str, stop: int, max_length: int) -> list[chat.Encoded]:
    """A split as tokens. Raises StageError: DatasetTooSmall when empty, DatasetInvalid when an example is too long."""
    encoded = [chat.encode(tokenizer, example.messages, stop) for example in read_split(dataset, split)]
    if not encoded:
        raise StageError(Reason.DATASET_TOO_SMALL, f"The {split} split has no examples.")
    too_long = [(row, len(e.input_ids)) for row, e in enumerate(encoded, start=1) if len(e.input_ids) > max_length]
    if too_long:
        rows = ", ".join(f"row {row} has {tokens}" for row, tokens in too_long[:5])
        longest = max(tokens for _, tokens in too_long)
        raise StageError(
            Reason.DATASET_INVALID,
            f"{len(too_long)} of {len(encoded)} examples of the {split} split are longer than spec.training.maxLength "
            f"{max_length} tokens ({rows}): shorten them, or set maxLength to {longest}.",
        )
    return encoded


class LabelLossTrainer(SFTTrainer):  # type: ignore[misc] # trl has no types
    """SFTTrainer that, off CUDA, projects only the positions with a label through the LM head. The loss is the same."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy per labelled token, over ``num_items_in_batch`` tokens or those of this batch."""
        causal = model.get_base_model()
        config = causal.config.get_text_config()
        scaled = any(getattr(config, name, None) is not None for name in SCALED_LOGITS)
        if return_outputs or scaled or self.aux_loss_enabled or inputs["input_ids"].is_cuda:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        labelled = labels != chat.IGNORED
        with self.accelerator.autocast():  # which accelerate puts around the outer model's forward only
            hidden = causal.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = causal.get_output_embeddings()(hidden[:, :-1][labelled])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="sum")
        return loss / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)


def build_trainer(
    model: Any,
    tokenizer: Any,
    train: list[chat.Encoded],
    validation: list[chat.Encoded],
    training: Training,
    work: Path,
) -> LabelLossTrainer:
    """The trainer of ``model`` with a fresh adapter on all linear layers, its checkpoints below ``work``."""
    set_seed(training.seed)  # the adapter is initialised before the trainer seeds anything
    on_gpu = device() != "cpu"
    steps = planned_steps(len(train), training)
    interval = min(training.checkpoint_steps, steps)
    config = SFTConfig(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=float(training.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * WARM_UP),
        max_grad_norm=MAX_GRAD_NORM[training.method],
        optim="adamw_torch",
        bf16=True,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        gradient_checkpointing=on_gpu,  # memory for time: worth it on GPUs only
        max_length=None,  # encode_split has refused what is too long; TRL would cut it without a word
        seed=training.seed,
        data_seed=training.seed,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,  # the best and the newest
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = LabelLossTrainer(
        model=model,
        args=config,
        train_dataset=_columns(train),
        eval_dataset=_columns(validation),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=training.rank,
            lora_alpha=training.alpha,
            lora_dropout=float(training.dropout),
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=PATIENCE)],
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def planned_steps(examples: int, training: Training) -> int:
    """Optimiser steps: ``epochs`` passes in batches, the last of a pass perhaps smaller; at most ``max_steps``."""
    batches = math.ceil(examples / training.batch_size)
    steps = math.ceil(batches / training.gradient_accumulation) * training.epochs
    return min(steps, training.max_steps) if training.max_steps else steps


def _columns(examples: list[chat.Encoded]) -> Dataset:
    return Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})


def _save(trainer: LabelLossTrainer, base: Path, out: Path, base_uri: str) -> None:
    """The adapter in PEFT's format, without what only concerns this machine, with the base model's own tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    trainer.model.save_pretrained(out, safe_serialization=True)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": base_uri, "target_modules": sorted(config["target_modules"])}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    copy_tokenizer(base, out)
    history = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    (out / "train_log.jsonl").write_text(history)
