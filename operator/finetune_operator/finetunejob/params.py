"""Each stage's part of a FineTuneJob's spec."""

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.stages import EvaluateParams, ExportParams, Params, PrepareParams, PublishParams, TrainParams


def params_of(spec: FineTuneJobSpec) -> Params:
    """Each stage's part of the spec."""
    method = spec.training.method.value
    data = spec.dataset
    return Params(
        prepare=PrepareParams(
            sources=data.sources,
            columns=data.columns,
            instruction=data.instruction,
            group_by=data.group_by,
            max_invalid_percent=data.max_invalid_percent,
            cleaning=data.cleaning,
            pii=data.pii,
            duplicates=data.duplicates,
            split=data.split,
            benchmarks=data.benchmarks,
            replay=data.replay,
            distillation=data.distillation,
            pilot=data.pilot,
            task=spec.task,
            max_length=spec.training.max_length,
            loss=spec.training.loss,
        ),
        train=TrainParams(training=spec.training),
        export=ExportParams(export=spec.export, method=method),
        evaluate=EvaluateParams(evaluation=spec.evaluation, task=spec.task, method=method),
        publish=PublishParams(output=spec.output, format=spec.export.format.value),
    )
