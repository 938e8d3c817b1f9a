"""Each stage's part of a FineTuneJob's spec."""

from collections.abc import Mapping

from finetune_api.custom_metrics import CustomMetric, MetricRun
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.stages import EvaluateParams, ExportParams, Params, PrepareParams, PublishParams, TrainParams
from finetune_operator.settings import MetricContainer


def params_of(spec: FineTuneJobSpec, offered: Mapping[str, MetricContainer] | None = None) -> Params:
    """Each stage's part of the spec. ``offered``: the platform's metric containers; a blocker reports those that are
    asked for and not offered."""
    method, containers = spec.training.method.value, offered or {}
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
            metrics=[_run(each, containers[each.name]) for each in spec.evaluation.metrics if each.name in containers],
        ),
        publish=PublishParams(
            output=spec.output,
            format=spec.export.format.value,
            gates=spec.evaluation.gates,
            reviewing=spec.evaluation.reviewing,
            judge=spec.evaluation.judge,
            answer_schema=spec.task.answer_schema or "",
        ),
    )


def _run(asked: CustomMetric, container: MetricContainer) -> MetricRun:
    """A metric container as this evaluation runs it."""
    return MetricRun(
        name=asked.name,
        image=container.image,
        command=container.command,
        args=container.args,
        env=container.env,
        figures=container.figures,
        needs_models=container.needs_models,
        parameters=asked.given,
        data=asked.data,
    )
