"""Stage train: base model and prepared data set in, adapter or tuned model out.

With several GPUs or pods this program starts itself once for each (``training.launcher``); the first of these processes
is the stage, the others help it.
"""

import logging
import os
from contextlib import AbstractContextManager, nullcontext

from finetune_api.layout import output_folder, run_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.training import training_warnings
from finetune_jobs.artifacts import folders
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.base.versions import versions
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.reports.index import index_stage
from finetune_jobs.reports.page import Fact
from finetune_jobs.runtime import commandline
from finetune_jobs.runtime.runner import Context, StageOutput, earlier_result, run_stage
from finetune_jobs.training import launcher

log = logging.getLogger(__name__)


def train(context: Context) -> StageOutput:
    """Train as ``params.train`` says; resumes from this FineTuneJob's newest checkpoint after the pod restarts, or
    after an earlier run ended too soon (not without ``reuse``)."""
    # The launcher of a pod's processes needs none of these, and would keep their memory the whole time.
    from finetune_jobs.modelling.device import require_kernels, require_promised
    from finetune_jobs.training.checkpoints import Checkpoints
    from finetune_jobs.training.context import TrainingContext
    from finetune_jobs.training.learning_curve import Parts, measure_curve
    from finetune_jobs.training.team import Team, peers_needed
    from finetune_jobs.training.time_budget import TimeBudget
    from finetune_jobs.training.trainer import TrainingFiles, train_model

    given, team = context.input, Team.of(os.environ)
    require_promised(given.hardware, team.local_rank)
    params = require(given.params.train, "params.train")
    require_kernels(params.training.base_quantization)
    files = TrainingFiles(
        base=context.scratch / "base",
        dataset=context.scratch / "dataset",
        out=context.scratch / "tuned",
        work=context.scratch / "work",
        base_uri=given.base_model_uri,
    )
    if team.first_of_pod:
        folders.fetch_folder(context.store, output_folder(Stage.PREPARE, given.upstream.dataset), files.dataset)
        fetch_base_model(context, files.base)
    for warning in training_warnings(params.training) if team.first else ():
        log.warning("%s", warning)
    if not team.join(done=lambda: _is_done(context)):
        return StageOutput(message="There is a result already: nothing to help with.")
    state = context.store.below(run_folder(given.run))
    with peers_needed(team):
        place = state.below(f"checkpoints/{given.input_key[:16]}")
        checkpoints = Checkpoints(place, given.run.id, team, reuse=given.reuse)
    seconds = given.time_budget_seconds
    time_budget = None if seconds is None else TimeBudget(seconds, checkpoints, team=team)
    with time_budget or nullcontext():
        with peers_needed(team):
            progress = context.progress.within(0.0, 1 / params.training.work)
            around = TrainingContext(checkpoints, progress, context.stopping, time_budget, team)
            trained = train_model(files, params.training, around)
        scalars = trained.scalars()
        message = f"{trained.steps} steps, validation loss {trained.validation_loss:.4f}. {trained.ending.message}"
        if params.training.learning_curve and team.size > 1:
            message += " The learning curve was skipped: it can only be measured by one process."
        elif params.training.learning_curve:
            place = state.below(f"curves/{given.input_key[:16]}")
            parts = Parts(
                files,
                params.training,
                trained.batch,
                trained.step,
                place,
                context.stopping,
                time_budget,
                run=given.run.id,
                reuse=given.reuse,
                identity=(
                    Fact("Base model", [given.base_model_uri], code=True),
                    Fact("Data set", [output_folder(Stage.PREPARE, given.upstream.dataset)], code=True),
                ),
            )
            forecast = measure_curve(parts, trained, context.progress)
            scalars, message = scalars | forecast.scalars(), f"{message} {forecast.sentence()}"
    return StageOutput(
        scalars=scalars,
        message=message,
        folder=files.out,
        cut=trained.ending.reason is Reason.BUDGET_EXCEEDED,
        tools=versions("torch", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel"),
    )


def _is_done(context: Context) -> bool:
    """Whether there is a result already. A waiting helper asks every few seconds: it goes on waiting where the store
    does not answer one of these questions."""
    try:
        return earlier_result(context) is not None
    except StageError as error:
        if not error.retriable:
            raise
        log.warning("whether there is a result already is unknown: %s", error.message)
        return False


def _tracked(context: Context) -> AbstractContextManager[None]:
    """TensorBoard, MLflow and W&B follow a training; only its image has their libraries."""
    from finetune_jobs.training.tracking import tracked

    return tracked(context.input, context.input.tracking, context.store, context.scratch / "tracking", context.progress)


def main() -> None:
    """Entry point of ``python -m finetune_jobs.train``."""
    options = commandline.parse(Stage.TRAIN, None)
    rank = launcher.own_rank(os.environ)
    if rank is None and options.processes * options.nodes > 1:
        launcher.launch(options)
    run_stage(Stage.TRAIN, train, around=_tracked, after=index_stage, graceful=True, helper=bool(rank))


if __name__ == "__main__":
    main()
