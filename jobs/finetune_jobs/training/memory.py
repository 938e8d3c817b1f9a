"""How a training computes its steps so that they fit the memory it finds, and what it tries when they do not."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from finetune_api.reasons import Reason
from finetune_api.training import Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.fields import UnknownShapeError
from finetune_jobs.fit.memory import GIB, gpu_step
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.fit.shapes import read_shape
from finetune_jobs.fit.steps import ON_CPU, ON_GPU, Step
from finetune_jobs.modelling.device import device
from finetune_jobs.training.team import ALONE, Team

log = logging.getLogger(__name__)


def chosen_step(base: Path, training: Training, batch: Batch, longest: int, team: Team = ALONE) -> Step:
    """How passes of ``batch``, with examples of up to ``longest`` tokens, are computed on this process's GPU, by the
    estimate of ``fit``: activations of a model of unknown shape are never kept. On a CPU they always are. The first
    process says for all what they must do alike, though their cards differ."""
    if device() == "cpu":
        return ON_CPU
    try:
        shape = read_shape(json.loads((base / "config.json").read_text(encoding="utf-8")))
    except UnknownShapeError as unknown:
        log.info("activations are computed again in the backward pass: memory is unknown, %s", unknown)
        return ON_GPU
    part = training.model_copy(update={"batch_size": batch.size, "max_length": longest})
    room = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    step = _of_first(gpu_step(shape, part, room, team.size), team)
    if step.divided:
        log.info("the base model is divided among the processes: it would not fit each GPU")
    again = "kept in part, and else " if step.selective else ""
    log.info("activations are %s", f"{again}computed again in the backward pass" if step.checkpointing else "kept")
    if step.rounded:
        log.info("weights and optimiser are in bfloat16, rounded stochastically: in float32 they would not fit")
    return step


def _of_first(step: Step, team: Team) -> Step:
    """``step`` with what the first process says for all: whether the base model is divided among them, and which
    activations are kept. All ask the model together whether a part can be (``training.selective``), or wait for each
    other in vain."""
    said = {"divided": step.divided, "checkpointing": step.checkpointing, "selective": step.selective}
    return replace(step, **json.loads(team.share(json.dumps(said).encode())))


def all_with_less(batch: Batch, team: Team) -> StageError:
    """The others wait for this process's gradients: it ends, and all with it, to restart with smaller passes."""
    message = f"The GPU of process {team.rank} is too small for {batch.size} examples at a time; all restart with less."
    return StageError(Reason.CUDA_OUT_OF_MEMORY, message, retriable=True, peer_initiated=True)


def smaller_batch(batch: Batch, training: Training) -> Batch:
    """What to try next. Raises StageError (CudaOutOfMemory) if a pass is already a single example."""
    smaller = batch.smaller()
    if smaller is None:
        raise StageError(
            Reason.CUDA_OUT_OF_MEMORY,
            f"The GPU's memory is too small for one example of up to {training.max_length} tokens, with method "
            f"{training.method.value}.",
        )
    log.warning("continuing with %s examples at a time in %s passes", smaller.size, smaller.passes)
    return smaller
