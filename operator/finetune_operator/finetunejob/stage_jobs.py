"""The Job of each stage: its input, its place and its names."""

from finetune_api import __version__, meta
from finetune_api.finetunejob import FineTuneJobSpec, Reuse
from finetune_api.stages import (
    EvaluateParams,
    ExportParams,
    Params,
    PrepareParams,
    PublishParams,
    RunRef,
    Stage,
    StageInput,
    TrainParams,
    Upstream,
    input_key,
)
from finetune_operator.finetunejob.hardware import hardware_facts, other_facts, processes
from finetune_operator.finetunejob.observe import LABEL_RECOVERS, ObservedJob
from finetune_operator.resources.stage_job import QUEUE_LABEL
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import PodShape, Profile

_ACCELERATED = frozenset({Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE})


def stage_request(
    observed: ObservedJob,
    spec: FineTuneJobSpec,
    run: str,
    stage: Stage,
    upstream: Upstream,
    recovers: str = "",
    allowance: int | None = None,
    max_cost: str = "",
) -> StageRequest:
    """What to run for a stage. A resolve that recovers another stage's result may always look at what exists, and asks
    not again whether the training fits. ``allowance``: seconds that train may take; ``max_cost``: the budget behind it,
    whose earlier results may be reused."""
    profile = observed.settings.profiles[spec.profile]
    params = params_of(spec)
    reuse = spec.reuse is Reuse.ALLOWED or bool(recovers)
    owner = observed.owner
    preflight = stage is Stage.RESOLVE and not recovers
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=stage,
            run=RunRef(kind=owner.resource.kind, namespace=owner.namespace, name=owner.name, uid=owner.uid, id=run),
            storage=spec.storage,
            output=spec.output,
            base_model_uri=spec.model.uri,
            input_key="" if stage is Stage.RESOLVE else input_key(stage, upstream, params),
            reuse=reuse,
            upstream=upstream,
            params=params,
            tracking=spec.tracking,
            retention=spec.retention,
            hardware=hardware_facts(spec.profile, profile) if preflight or stage in _ACCELERATED else None,
            alternatives=other_facts(observed.settings, spec.profile) if preflight else [],
            allowance_seconds=allowance if stage is Stage.TRAIN else None,
            max_cost=max_cost if stage in (Stage.RESOLVE, Stage.TRAIN) else "",
            operator_version=__version__,
        ),
        image=observed.settings.images.of(stage),
        images=observed.settings.images,
        proxy=observed.settings.proxy,
        shape=_shape(profile, stage),
        service_account=profile.service_account_name,
        labels={meta.LABEL_RUN: run} | ({LABEL_RECOVERS: recovers} if recovers else {}),
        attempt=recovers,
        queue=observed.metadata.labels.get(QUEUE_LABEL, ""),
        retries=profile.retries,
        deadline_seconds=profile.deadline_seconds,
        nodes=profile.nodes if stage is Stage.TRAIN else 1,
        processes=processes(profile) if stage is Stage.TRAIN else 1,
    )


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


def _shape(profile: Profile, stage: Stage) -> PodShape:
    return profile.accelerator if stage in _ACCELERATED else profile.cpu
