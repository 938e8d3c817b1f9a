"""FineTuneJob: what to do next, as a pure function of what was observed.

The story: find the run that the spec asks for, record what its Jobs answered, and take one step: start the next stage,
watch the one under way, or end the run. Nothing is started while something stands in the way, and nothing of an older
run goes on.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final, assert_never

from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, Phase, RunStatus, StageState
from finetune_api.hashing import short
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.finetunejob.claims import claims_of
from finetune_operator.finetunejob.cost import allowance_seconds, ending_budget, within_budget
from finetune_operator.finetunejob.ledger import RunLedger
from finetune_operator.finetunejob.observe import ObservedJob, StageJob, spec_hash
from finetune_operator.finetunejob.pipeline import Fail, Finish, Start, Watch, next_step
from finetune_operator.finetunejob.stage_jobs import stage_request
from finetune_operator.finetunejob.status import Headline, compose, edges
from finetune_operator.framework.actions import Action, Create, Delete, Patch, Plan
from finetune_operator.framework.apply import NameTaken
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, SERVICES, Object
from finetune_operator.outcome.job import NOT_STARTED, State
from finetune_operator.outcome.pod import refusal
from finetune_operator.resources.peers import peers_service
from finetune_operator.resources.stage_job import input_config_map, stage_job
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.tenancy import tenancy_violation

RECHECK_SECONDS: Final = 10.0
"""How often it is checked whether what stands in the way has gone."""
START_SECONDS: Final = 10.0
"""When a Job that waits for its pod is looked at without an event; then at growing intervals."""
MAX_WAIT_SECONDS: Final = 120.0
_NEEDS_SOMEBODY: Final = frozenset(
    {
        Reason.SECRET_MISSING,
        Reason.IMAGE_PULL_FAILED,
        Reason.QUOTA_EXCEEDED,
        Reason.POD_REJECTED,
        Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
    }
)
"""What a pod waits for that does not come by itself."""


def plan(observed: ObservedJob, now: datetime) -> Plan[FineTuneJobStatus]:
    """Actions, new status, events and the time of the next look."""
    spec = observed.spec
    if observed.failure:
        kept = _kept(observed, Reason.API_CALLS_FAIL, f"The Kubernetes API fails: {observed.failure}.")
        return _told(observed, compose(observed, kept, None, now))
    if spec is None:
        kept = _kept(observed, Reason.SPEC_INVALID, f"{observed.spec_error}.")
        return _told(observed, compose(observed, kept, None, now))
    run = current_run(observed, spec, now)
    upkeep = _upkeep(observed, spec, run)
    ledger = RunLedger(spec, observed.status, run, now)
    if run.outcome is not Phase.RUNNING:
        headline = Headline(run.outcome, Reason(run.reason), run.message)
        return _told(observed, compose(observed, headline, ledger, now), upkeep)
    match within_budget(observed, spec, ledger, next_step(spec, observed.jobs, ledger), now):
        case Start(stage, recovers):
            return _start(observed, spec, ledger, stage, recovers, upkeep, now)
        case Watch(stage, job):
            return _watch(observed, spec, ledger, stage, job, upkeep, now)
        case Fail(stage, reason, message):
            headline = Headline(Phase.FAILED, reason, f"{stage}: {message}")
            told = _told(observed, compose(observed, headline, ledger, now), upkeep)
            # A Job that is still under way goes in the next turn, when the status says that the run has ended.
            return replace(told, requeue_after=0.0) if any(job.unfinished for job in observed.jobs) else told
        case Finish():
            headline = Headline(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED, _success(ledger))
            return _told(observed, compose(observed, headline, ledger, now), upkeep)
        case unknown:
            assert_never(unknown)


def _kept(observed: ObservedJob, reason: Reason, message: str) -> Headline:
    """Nothing can be planned. A run that has worked on this spec, or does, is all the same what it was."""
    run = observed.status.run
    mine = run if run is not None and run.generation == observed.metadata.generation else None
    if mine is not None and mine.outcome is not Phase.RUNNING:
        return Headline(mine.outcome, Reason(mine.reason), mine.message)
    phase = observed.status.phase if mine is not None else None
    return Headline(phase or Phase.PENDING, reason, message, stalled=True)


def blocked(observed: ObservedJob, taken: NameTaken) -> ObservedJob:
    """What was observed, and that an object of somebody else has a name which we need."""
    return replace(observed, conflicting_object=f"{taken.resource.kind} {taken.name}")


def refused(observed: ObservedJob, said: str) -> ObservedJob:
    """What was observed, and that the API server did not take the stage's objects."""
    return replace(observed, refusal=said)


def current_run(observed: ObservedJob, spec: FineTuneJobSpec, now: datetime) -> RunStatus:
    """The run that works on this spec, or did; a new one where the spec has changed.

    Its id follows from resource, spec and number alone: if the operator dies between creating the first Job and
    writing the status, the next attempt finds that Job under the same id.
    """
    last, wanted, generation = observed.status.run, spec_hash(spec), observed.metadata.generation
    # A spec changes with its generation only, and not at all in phase Running, where the API server freezes it. Another
    # hash is otherwise another version's way to compute it: with other defaults, say.
    same = last is not None and (last.generation == generation or observed.status.phase is Phase.RUNNING)
    if last is not None and (same or last.spec_hash == wanted):
        return last.model_copy(update={"spec_hash": wanted, "generation": generation})
    number = 1 if last is None else last.number + 1
    identity = short([observed.owner.uid, wanted, number])
    return RunStatus(id=identity, number=number, spec_hash=wanted, generation=generation, started_at=timestamp(now))


def _start(
    observed: ObservedJob,
    spec: FineTuneJobSpec,
    ledger: RunLedger,
    stage: Stage,
    recovers: str,
    upkeep: tuple[Action, ...],
    now: datetime,
) -> Plan[FineTuneJobStatus]:
    begun = _has_begun(observed, ledger.run)
    if waits := _waits(observed, spec, stage):
        status = compose(observed, waits, ledger if begun else None, now)
        return replace(_told(observed, status, upkeep), requeue_after=RECHECK_SECONDS)
    request = _request(observed, spec, ledger, stage, recovers)
    actions = (*upkeep, *_creations(request))
    if not begun:
        return Plan(status=observed.status, actions=actions, tell=False)
    job = _just_made(request, recovers)
    subject = Stage(recovers) if recovers else stage
    if not recovers:
        ledger.enter(stage, job, StageState.RUNNING, job.verdict.message, request.input.input_key)
    status = compose(observed, _under_way(subject, job), ledger, now)
    return replace(_told(observed, status, actions), requeue_after=START_SECONDS)


def _creations(request: StageRequest) -> tuple[Create, ...]:
    """A stage's objects, the Job last: its pods need the others."""
    service = peers_service(request.owner, request.name, request.input.run.id, request.stage)
    peers = (Create(SERVICES, service),) if request.nodes > 1 else ()
    return (Create(CONFIG_MAPS, input_config_map(request)), *peers, Create(JOBS, stage_job(request)))


def _request(
    observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger, stage: Stage, recovers: str
) -> StageRequest:
    allowance, max_cost = allowance_seconds(observed, spec, ledger), ending_budget(observed, spec)
    return stage_request(observed, spec, ledger.run.id, stage, ledger.upstream, recovers, allowance, max_cost)


def _waits(observed: ObservedJob, spec: FineTuneJobSpec, stage: Stage) -> Headline | None:
    """Why a stage is not started now."""
    if spec.suspend:
        return Headline(Phase.SUSPENDED, Reason.SUSPENDED, f"Suspended before stage {stage}.")
    if blocker := _blocker(observed, spec):
        return blocker
    # What may still write to the run's folder: other Jobs, and pods whose Job is gone already.
    ending = [f"Job {job.name}" for job in observed.jobs if job.unfinished]
    ending += [f"pod {name}" for name in observed.orphan_pods]
    if ending:
        return Headline(Phase.PENDING, Reason.WAITING, f"Stage {stage} waits for the end of {', '.join(ending)}.")
    return None


def _just_made(request: StageRequest, recovers: str) -> StageJob:
    """The Job as the next observation will find it, so that the status is the same then."""
    return StageJob(
        name=request.name,
        uid="",
        run=request.input.run.id,
        stage=request.stage,
        recovers=recovers,
        suspended=False,
        queued=bool(request.queue),
        verdict=NOT_STARTED,
    )


def _watch(
    observed: ObservedJob,
    spec: FineTuneJobSpec,
    ledger: RunLedger,
    stage: Stage,
    job: StageJob,
    upkeep: tuple[Action, ...],
    now: datetime,
) -> Plan[FineTuneJobStatus]:
    actions = (*upkeep, *_restore_peers(observed, job), *_restore_input(observed, spec, ledger, job))
    headline = _suspended(stage) if spec.suspend else _under_way(stage, job)
    status = compose(observed, headline, ledger, now)
    return replace(_told(observed, status, actions), requeue_after=_next_look(observed, job))


def _upkeep(observed: ObservedJob, spec: FineTuneJobSpec, run: RunStatus) -> tuple[Action, ...]:
    """What Jobs that are under way need: those of other runs go, and all once the run has ended; spec.suspend holds.

    Of runs that are over, everything goes.
    """
    ended = run.outcome is not Phase.RUNNING
    actions: list[Action] = []
    for job in observed.jobs:
        if not job.unfinished or job.verdict.state is State.TERMINATING:
            continue
        if ended or job.run != run.id:
            actions.append(Delete(JOBS, job.name, job.uid))
        else:
            actions.extend(_toggle(spec, job))
    over = [left for left in observed.expired if ended or left.run != run.id]
    return (*actions, *(Delete(left.resource, left.name, left.uid) for left in over))


def _toggle(spec: FineTuneJobSpec, job: StageJob) -> tuple[Action, ...]:
    """Suspend or resume a Job. Kueue would resume one that we suspended: there, the Job goes and is queued anew."""
    if job.queued:
        return (Delete(JOBS, job.name, job.uid),) if spec.suspend else ()
    if spec.suspend == job.suspended:
        return ()
    body: Object = {"metadata": {"uid": job.uid}, "spec": {"suspend": spec.suspend}}
    return (Patch(JOBS, job.name, body),)


def _restore_input(
    observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger, job: StageJob
) -> tuple[Action, ...]:
    """Somebody deleted the ConfigMap that the stage's pod waits for."""
    if not job.input_missing or _blocker(observed, spec):
        return ()
    request = _request(observed, spec, ledger, Stage(job.stage), job.recovers)
    # A Job of another version has another input, which cannot be made again: it goes, and the stage starts anew.
    return (
        (Create(CONFIG_MAPS, input_config_map(request)),)
        if request.name == job.name
        else (Delete(JOBS, job.name, job.uid),)
    )


def _restore_peers(observed: ObservedJob, job: StageJob) -> tuple[Action, ...]:
    """Somebody deleted the Service by which the Job's pods find each other: one that begins again would find nobody."""
    service = peers_service(observed.owner, job.name, job.run, job.stage)
    return (Create(SERVICES, service),) if job.peers_missing else ()


def _blocker(observed: ObservedJob, spec: FineTuneJobSpec) -> Headline | None:
    """What stands in the way of starting a stage."""
    profiles = observed.settings.profiles
    if spec.profile not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        return _stuck(Reason.PROFILE_UNKNOWN, f"spec.profile is {spec.profile!r}; the platform offers: {known}.")
    claims = claims_of(spec, profiles[spec.profile])
    if forbidden := tenancy_violation(observed.settings.tenancy, observed.owner.namespace, claims):
        return _stuck(Reason.NOT_ALLOWED, forbidden)
    if not observed.service_account:
        account = profiles[spec.profile].service_account_name
        return _stuck(
            Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
            f"ServiceAccount {account!r} of profile {spec.profile!r} does not exist in namespace "
            f"{observed.owner.namespace!r}.",
        )
    if observed.conflicting_job:
        return _stuck(
            Reason.OUTPUT_NAME_CONFLICT,
            f"{observed.conflicting_job} publishes {spec.output.name!r} under {spec.output.uri} already.",
        )
    if observed.conflicting_object:
        return _stuck(
            Reason.NAME_TAKEN, f"{observed.conflicting_object} exists already and does not belong to this FineTuneJob."
        )
    return _stuck(*refusal(observed.refusal)) if observed.refusal else None


def _stuck(reason: Reason, message: str) -> Headline:
    return Headline(Phase.PENDING, reason, message, stalled=True)


def _suspended(stage: Stage) -> Headline:
    return Headline(Phase.SUSPENDED, Reason.SUSPENDED, f"Suspended in stage {stage}.")


def _under_way(stage: Stage, job: StageJob) -> Headline:
    verdict = job.verdict
    message = f"{stage}: {verdict.message}" if verdict.message else f"{stage} is running."
    if verdict.state is State.SUSPENDED:
        message = f"{stage} waits in Kueue's queue." if job.queued else f"{stage} is being resumed."
    return Headline(Phase.RUNNING, verdict.reason, message, stalled=verdict.reason in _NEEDS_SOMEBODY)


def _next_look(observed: ObservedJob, job: StageJob) -> float | None:
    if job.verdict.state is State.RUNNING:
        return float(observed.settings.progress_seconds)
    if job.verdict.state is State.WAITING:
        return min(MAX_WAIT_SECONDS, max(START_SECONDS, job.age.total_seconds() / 2))
    return None


def _has_begun(observed: ObservedJob, run: RunStatus) -> bool:
    recorded = observed.status.run is not None and observed.status.run.id == run.id
    return recorded or any(job.run == run.id for job in observed.jobs)


def _success(ledger: RunLedger) -> str:
    scores = ledger.evaluation.accuracy if ledger.evaluation else None
    accuracy = f"accuracy {scores.artifact} (base model: {scores.base}), " if scores and scores.artifact else ""
    where = ledger.artifact.uri if ledger.artifact else ""
    return f"Published: {accuracy}{where}"


def _told(
    observed: ObservedJob, status: FineTuneJobStatus, actions: tuple[Action, ...] = ()
) -> Plan[FineTuneJobStatus]:
    return Plan(status=status, actions=actions, events=edges(observed.status, status))
