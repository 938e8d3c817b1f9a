"""Stage train: base model and prepared data set in, LoRA or QLoRA adapter out."""

from finetune_api.layout import output_folder, run_folder
from finetune_api.stages import Stage
from finetune_jobs import folders
from finetune_jobs.basemodel import fetch_base_model
from finetune_jobs.errors import need
from finetune_jobs.runner import Context, Made, run_stage
from finetune_jobs.tools import versions
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.trainer import train_adapter


def train(context: Context) -> Made:
    """Train as ``params.train`` says; goes on from this run's newest checkpoint after a restart of the pod."""
    given = context.input
    params = need(given.params.train, "params.train")
    base = context.scratch / "base"
    dataset = context.scratch / "dataset"
    folders.fetch_folder(context.store, output_folder(Stage.PREPARE, given.upstream.dataset), dataset)
    fetch_base_model(context, base)
    trained = train_adapter(
        base,
        dataset,
        context.scratch / "adapter",
        params.training,
        base_uri=given.base_model_uri,
        work=context.scratch / "work",
        checkpoints=Checkpoints(context.store.below(f"{run_folder(given.run)}/checkpoints/{given.input_key[:16]}")),
        progress=context.progress,
        stopping=context.stopping,
    )
    return Made(
        scalars=trained.scalars(),
        message=f"{trained.steps} steps, validation loss {trained.validation_loss:.4f}.",
        folder=context.scratch / "adapter",
        tools=versions("torch", "transformers", "peft", "trl", "bitsandbytes"),
    )


def main() -> None:
    """Entry point of ``python -m finetune_jobs.train``."""
    run_stage(Stage.TRAIN, train, graceful=True)


if __name__ == "__main__":
    main()
