"""Stage train: base model and prepared data set in, adapter or tuned model out."""

import logging

from finetune_api.layout import output_folder, run_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.training import training_warnings
from finetune_jobs import folders
from finetune_jobs.basemodel import fetch_base_model
from finetune_jobs.errors import need
from finetune_jobs.runner import Context, Made, run_stage
from finetune_jobs.tools import versions
from finetune_jobs.training.allowance import Allowance
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.learning_curve import Parts, measure_curve
from finetune_jobs.training.trainer import Files, train_model

log = logging.getLogger(__name__)


def train(context: Context) -> Made:
    """Train as ``params.train`` says; goes on from this FineTuneJob's newest checkpoint after a restart of the pod, or
    where an earlier run ended too soon."""
    given = context.input
    params = need(given.params.train, "params.train")
    files = Files(
        base=context.scratch / "base",
        dataset=context.scratch / "dataset",
        out=context.scratch / "tuned",
        work=context.scratch / "work",
        base_uri=given.base_model_uri,
    )
    folders.fetch_folder(context.store, output_folder(Stage.PREPARE, given.upstream.dataset), files.dataset)
    fetch_base_model(context, files.base)
    for warning in training_warnings(params.training):
        log.warning("%s", warning)
    state = context.store.below(run_folder(given.run))
    checkpoints = Checkpoints(state.below(f"checkpoints/{given.input_key[:16]}"), given.run.id)
    limit = Allowance(given.allowance_seconds, checkpoints) if given.allowance_seconds is not None else None
    trained = train_model(
        files,
        params.training,
        checkpoints=checkpoints,
        progress=context.progress.within(0.0, 1 / params.training.work),
        stopping=context.stopping,
        allowance=given.allowance_seconds,
    )
    scalars = trained.scalars()
    message = f"{trained.steps} steps, validation loss {trained.validation_loss:.4f}. {trained.ending.message}"
    if params.training.learning_curve:
        place = state.below(f"curves/{given.input_key[:16]}")
        parts = Parts(files, params.training, trained.batch, place, context.stopping, limit)
        forecast = measure_curve(parts, trained, context.progress)
        scalars, message = scalars | forecast.scalars(), f"{message} {forecast.sentence()}"
    return Made(
        scalars=scalars,
        message=message,
        folder=files.out,
        cut=trained.ending.reason is Reason.BUDGET_EXCEEDED,
        tools=versions("torch", "transformers", "peft", "trl", "bitsandbytes"),
    )


def main() -> None:
    """Entry point of ``python -m finetune_jobs.train``."""
    run_stage(Stage.TRAIN, train, graceful=True)


if __name__ == "__main__":
    main()
