"""Each stage's part of a FineTuneJob's spec."""

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.stages import EvaluateParams, ExportParams, Params, PrepareParams, PublishParams, TrainParams


def params_of(spec: FineTuneJobSpec) -> Params:
    """Each stage's part of the spec."""
    method = spec.training.method.value
    return Params(
        prepare=PrepareParams(
            dataset=spec.dataset,
            task=spec.task,
            max_length=spec.training.max_length,
            loss=spec.training.loss,
        ),
        train=TrainParams(training=spec.training),
        export=ExportParams(export=spec.export, method=method),
        evaluate=EvaluateParams(
            evaluation=spec.evaluation.examination,
            task=spec.task,
            method=method,
            on_regression=spec.export.on_regression,
        ),
        publish=PublishParams(
            output=spec.output,
            format=spec.export.format.value,
            gates=spec.evaluation.gates,
            reviewing=spec.evaluation.reviewing,
            judge=spec.evaluation.judge,
        ),
    )
