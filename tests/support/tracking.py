"""A training of four steps, as the trackers are told of it."""

from typing import Any

from finetune_api.finetunejob import Output
from finetune_api.stages import Params, RunRef, Stage, StageInput, TrainParams, Upstream
from finetune_api.training import Training
from finetune_jobs.base.progress import Measurement, Progress
from tests.support.stages import RUN

DATASET = "d" * 64
LOSSES = {1: 2.5, 2: 2.0, 3: 1.5, 4: 1.25}
VALIDATIONS = {2: 2.25, 4: 1.75}


def given(run: RunRef = RUN, **training: Any) -> StageInput:
    """The training's input, with settings of its own if wanted."""
    return StageInput(
        stage=Stage.TRAIN,
        run=run,
        output=Output(uri="s3://data/out", name="transactions"),
        base_model_uri="s3://data/model",
        input_key="a" * 64,
        upstream=Upstream(model="c" * 64, dataset=DATASET),
        params=Params(train=TrainParams(training=Training(**training))),
        operator_version="1.2.3",
    )


def learn(progress: Progress, first: int = 1, last: int = 4) -> None:
    """What a training of four steps with two validations records."""
    for step in range(first, last + 1):
        progress.record(
            Measurement(
                step, 4, loss=LOSSES[step], learning_rate=2.0**-step, gradient_norm=float(step), tokens=100 * step
            )
        )
        if step in VALIDATIONS:
            progress.record(Measurement(step, 4, validation_loss=VALIDATIONS[step], tokens=100 * step))
