"""The Job of each stage: its input, its place and its names."""

from finetune_api import __version__, meta
from finetune_api.budget import HardwareFacts
from finetune_api.evaluation import Generator
from finetune_api.finetunejob import Reuse
from finetune_api.stages import Stage, StageInput, input_key
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.cost import ending_budget, time_budget_seconds
from finetune_operator.finetunejob.hardware import (
    alone,
    gpus_alone,
    hardware_facts,
    other_facts,
    processes,
    shape_alone,
)
from finetune_operator.finetunejob.observe import LABEL_RECOVERS
from finetune_operator.resources.stage_job import QUEUE_LABEL
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.runtimes.facts import offered_facts
from finetune_operator.settings import PodShape, Profile

_ALONE = frozenset({Stage.EXPORT, Stage.EVALUATE})
"""The stages that run a model in one process: on one GPU, if it fits."""
_WITH_BASE = _ALONE | {Stage.TRAIN}
"""The stages that load the base model."""


def stage_request(context: RunContext, stage: Stage, recovers: str = "") -> StageRequest:
    """What to run for a stage. A resolve that recovers another stage's result always looks at existing results, and
    does not check again whether the training fits. Publish recovers its own: it does what it did before."""
    spec, settings, owner = context.spec, context.observed.settings, context.observed.owner
    run, profile = context.ledger.run.id, settings.profiles[spec.profile]
    gpus = gpus_alone(stage, context.ledger.fit, spec.evaluation.generator)
    given = _input(context, stage, recovers)
    return StageRequest(
        owner=owner,
        input=given,
        image=_image(context, stage),
        images=settings.images,
        proxy=settings.proxy,
        shape=_shape(profile, stage, gpus),
        service_account=profile.service_account_name,
        labels={meta.LABEL_RUN: run} | ({LABEL_RECOVERS: recovers} if recovers else {}),
        attempt=recovers,
        queue=context.observed.metadata.labels.get(QUEUE_LABEL, ""),
        retries=profile.retries,
        deadline_seconds=profile.deadline_seconds,
        nodes=profile.nodes if stage is Stage.TRAIN else 1,
        processes=processes(profile) if stage is Stage.TRAIN else 1,
        engine_gpus=gpus if _with_vllm(context, stage) else 1,
        asked=context.review_asked if stage is Stage.PUBLISH else "",
        model_cache=profile.model_cache if stage in _WITH_BASE else None,
        answers=_answers(given),
        metrics=settings.metric_containers,
        measuring_shape=profile.cpu,
    )


def _input(context: RunContext, stage: Stage, recovers: str) -> StageInput:
    """What the stage reads. An earlier result for an equal input may be reused."""
    spec, settings, owner = context.spec, context.observed.settings, context.observed.owner
    upstream = context.ledger.upstream
    preflight = stage is Stage.RESOLVE and not recovers
    return StageInput(
        stage=stage,
        run=run_ref(owner, context.ledger.run.id),
        storage=spec.storage,
        output=spec.output,
        base_model_uri=spec.model.uri,
        base_model_storage=spec.model.storage,
        base_model_secret_key_ref=spec.model.secret_key_ref,
        input_key="" if stage is Stage.RESOLVE else input_key(stage, upstream, context.params),
        reuse=spec.reuse is Reuse.ALLOWED or (stage is Stage.RESOLVE and bool(recovers)),
        reuse_own=spec.reuse is Reuse.NEVER and stage is not Stage.RESOLVE,
        upstream=upstream,
        params=context.params,
        tracking=spec.tracking,
        retention=spec.retention,
        hardware=_hardware(context, stage) if preflight or stage is not Stage.RESOLVE else None,
        alternatives=other_facts(settings, spec.profile) if preflight else [],
        runtimes=offered_facts(settings) if preflight else [],
        time_budget_seconds=time_budget_seconds(context) if stage is Stage.TRAIN else None,
        # Results that this budget ended early may be reused under it.
        max_cost=ending_budget(context) if stage in (Stage.RESOLVE, Stage.TRAIN) else "",
        operator_version=__version__,
        image=_image(context, stage),
    )


def _image(context: RunContext, stage: Stage) -> str:
    """A blocker reports a generator that has none."""
    images = context.observed.settings.images
    return images.evaluate_vllm if _with_vllm(context, stage) else images.of(stage)


def _with_vllm(context: RunContext, stage: Stage) -> bool:
    return stage is Stage.EVALUATE and context.spec.evaluation.generator is Generator.VLLM


def _answers(given: StageInput) -> StageInput | None:
    """The first part of an evaluation with metric containers: the evaluation without them, under its own key. So it is
    reused when the pod is lost after it, and when other metrics are asked for. None: there are no such containers."""
    params = given.params.evaluate
    if given.stage is not Stage.EVALUATE or params is None or not params.metrics:
        return None
    alone = given.params.model_copy(update={"evaluate": params.model_copy(update={"metrics": []})})
    key = input_key(Stage.EVALUATE, given.upstream, alone)
    return given.model_copy(update={"params": alone, "input_key": key, "hands_over": params.metrics})


def _shape(profile: Profile, stage: Stage, gpus: int) -> PodShape:
    if stage in _ALONE:
        return shape_alone(profile, gpus)
    return profile.accelerator if stage is Stage.TRAIN else profile.cpu


def _hardware(context: RunContext, stage: Stage) -> HardwareFacts | None:
    """Resolve judges whether the training fits, so it is told of training's."""
    name = context.spec.profile
    facts = hardware_facts(name, context.observed.settings.profiles[name])
    if stage in _ALONE:
        return alone(facts, gpus_alone(stage, context.ledger.fit, context.spec.evaluation.generator))
    return facts if stage in (Stage.RESOLVE, Stage.TRAIN) else None
