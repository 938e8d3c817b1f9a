"""What the objects of a FineTuneJob's runs need, whatever the next step is: suspend, resume, delete, restore. Pure."""

from finetune_api import meta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import Phase, RunStatus
from finetune_api.stages import Stage
from finetune_operator.blockers import first_blocker
from finetune_operator.finetunejob.blockers import BLOCKERS
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.observe import ObservedJob, StageJob
from finetune_operator.finetunejob.stage_jobs import stage_request
from finetune_operator.framework.actions import Action, Create, Delete, Patch
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, SERVICES, Object
from finetune_operator.outcome.job import State
from finetune_operator.resources.peers import peers_service
from finetune_operator.resources.stage_job import input_config_map


def upkeep(observed: ObservedJob, run: RunStatus) -> tuple[Action, ...]:
    """Unfinished Jobs follow ``spec.suspend``; those of other runs are deleted, and all once the run has ended.

    Expired objects are deleted too, and labels come back to Jobs that lost them: by these they are found.
    """
    ended = run.outcome is not Phase.RUNNING
    actions: list[Action] = []
    for job in observed.jobs:
        if job.lost_labels:
            actions.append(Patch(JOBS, job.name, {"metadata": {"uid": job.uid, "labels": dict(job.lost_labels)}}))
        if not job.unfinished or job.verdict.state is State.TERMINATING:
            continue
        if ended or job.run != run.id:
            actions.append(Delete(JOBS, job.name, job.uid))
        else:
            actions.extend(_suspend_or_resume(observed.spec, job))
    expired = [each for each in observed.expired if ended or each.run != run.id]
    return (*actions, *(Delete(each.resource, each.name, each.uid) for each in expired))


def restore(context: RunContext, job: StageJob) -> tuple[Action, ...]:
    """What somebody deleted though the Job that is under way needs it."""
    return (*_restore_peers(context, job), *_restore_input(context, job))


def _suspend_or_resume(spec: FineTuneJobSpec, job: StageJob) -> tuple[Action, ...]:
    """A Job that others resume against us (as Kueue would) is deleted, and created again when the run goes on.

    What others suspended, they resume: only they know why it must not run.
    """
    if spec.suspend:
        if job.queued or (job.suspended_by_us and not job.suspended):
            return (Delete(JOBS, job.name, job.uid),)
        return () if job.suspended else (_suspension(job, suspend=True),)
    return (_suspension(job, suspend=False),) if job.suspended_by_us else ()


def _suspension(job: StageJob, *, suspend: bool) -> Patch:
    """Suspends or resumes the Job, and notes that this was us."""
    annotations = {meta.ANNOTATION_SUSPENDED: "true" if suspend else None}
    body: Object = {"metadata": {"uid": job.uid, "annotations": annotations}, "spec": {"suspend": suspend}}
    return Patch(JOBS, job.name, body)


def _restore_input(context: RunContext, job: StageJob) -> tuple[Action, ...]:
    """The ConfigMap that the stage's pod waits for."""
    if not job.input_missing or first_blocker(BLOCKERS, context.observed):
        return ()
    request = stage_request(context, Stage(job.stage), job.recovers)
    if request.name != job.name:
        # The Job was created by another version, and its input cannot be made again: the stage starts again.
        return (Delete(JOBS, job.name, job.uid),)
    return (Create(CONFIG_MAPS, input_config_map(request)),)


def _restore_peers(context: RunContext, job: StageJob) -> tuple[Action, ...]:
    """The Service by which the Job's pods find each other: a pod that restarts would find nobody."""
    service = peers_service(context.observed.owner, job.name, job.run, job.stage)
    return (Create(SERVICES, service),) if job.peers_missing else ()
