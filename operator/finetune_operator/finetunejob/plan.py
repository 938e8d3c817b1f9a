"""FineTuneJob: what to do next, as a pure function of what was observed.

The story: find the run that the spec asks for, record what its Jobs reported, and take one step: start the next stage,
watch the one that is running, or end the run. A stage starts only when no blocker is found, and nothing of an older run
goes on.
"""

from datetime import datetime, timedelta
from typing import Final, assert_never

from finetune_api.hashing import short
from finetune_api.job_status import FineTuneJobStatus, Phase, RunStatus, StageState
from finetune_api.reasons import UNSCHEDULABLE_MINUTES, Reason
from finetune_api.stages import Stage
from finetune_operator.blockers import first_blocker
from finetune_operator.finetunejob.blockers import BLOCKERS
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.cost import within_budget
from finetune_operator.finetunejob.ledger import STAGES, RunLedger
from finetune_operator.finetunejob.observe import ObservedJob, StageJob, UnplannedJob, means_hash, spec_hash
from finetune_operator.finetunejob.pipeline import Await, Fail, Finish, Start, Watch, next_step
from finetune_operator.finetunejob.stage_jobs import stage_request
from finetune_operator.finetunejob.status import Headline, compose, compose_unplanned, transition_events
from finetune_operator.finetunejob.upkeep import restore, upkeep
from finetune_operator.framework.actions import Action, Create, Delete, Plan
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, SERVICES
from finetune_operator.framework.reading import Unplanned
from finetune_operator.outcome.job import NOT_STARTED, SUSPENDED, State, Verdict
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS, look_after
from finetune_operator.resources.peers import peers_service
from finetune_operator.resources.stage_job import input_config_map, stage_job
from finetune_operator.resources.stage_request import StageRequest

RECHECK_SECONDS: Final = 10.0
"""How often a stage that waits for pods to end is looked at again; their events come sooner."""
UNSCHEDULABLE_PATIENCE: Final = timedelta(minutes=UNSCHEDULABLE_MINUTES)
_NEEDS_SOMEBODY: Final = frozenset(
    {
        Reason.SECRET_MISSING,
        Reason.IMAGE_PULL_FAILED,
        Reason.QUOTA_EXCEEDED,
        Reason.POD_REJECTED,
        Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
        Reason.NODE_LOST,
    }
)
"""Causes of waiting that do not pass without somebody's help; no node may pass by itself, for a while."""


def plan(observed: ObservedJob | UnplannedJob, now: datetime) -> Plan[FineTuneJobStatus]:
    """Actions, new status, events and the time of the next pass."""
    if isinstance(observed, Unplanned):
        status = compose_unplanned(observed, now)
        return Plan(status, events=transition_events(observed.status, status))
    run = current_run(observed, now)
    context = RunContext(observed, RunLedger(observed.spec, observed.status, run, now), upkeep(observed, run), now)
    if run.outcome is not Phase.RUNNING:
        return _plan(context, Headline(run.outcome, Reason(run.reason), run.message))
    match within_budget(context, next_step(context)):
        case Start(stage, recovers):
            return _start(context, stage, recovers)
        case Watch(stage, job):
            return _watch(context, stage, job)
        case Fail(stage, reason, message):
            # A Job that is still running is deleted in the next turn, when the status says that the run has ended.
            again = 0.0 if any(job.unfinished for job in observed.jobs) else None
            return _plan(context, Headline(Phase.FAILED, reason, f"{stage}: {message}"), requeue_after=again)
        case Await() as step:
            return _await(context, step)
        case Finish():
            return _plan(context, Headline(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED, _success(context.ledger)))
        case unknown:
            assert_never(unknown)


def undecidable(status: FineTuneJobStatus) -> str:
    """The word of a newer version on which the next step would hang; empty if there is none.

    A run that has ended needs its outcome only: whatever else its status says is kept, and nothing is started.
    """
    run = status.run
    if run is None:
        return ""
    if run.outcome not in (Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED):
        return f"status.run.outcome is {str(run.outcome)!r}, which this version does not know"
    for number, row in enumerate(status.stages if run.outcome is Phase.RUNNING else ()):
        for field, value, known in (("name", row.name, row.name in STAGES), ("state", row.state, row.state.is_known)):
            if not known:
                return f"status.stages[{number}].{field} is {str(value)!r}, which this version does not know"
    return ""


def current_run(observed: ObservedJob, now: datetime) -> RunStatus:
    """The run that works on this spec, or did; a new one where the spec has changed.

    Its id follows from resource, spec and number alone: if the operator dies between creating the first Job and
    writing the status, the next attempt finds that Job under the same id.
    """
    last, spec, generation = observed.status.run, observed.spec, observed.metadata.generation
    hashes = {"spec_hash": spec_hash(spec), "means_hash": means_hash(spec)}
    if last is not None and (last.generation == generation or _goes_on(observed.status, last, **hashes)):
        return last.model_copy(update={**hashes, "generation": generation})
    number = 1 if last is None else last.number + 1
    identity = short([observed.owner.uid, hashes["spec_hash"], number])
    return RunStatus(id=identity, number=number, **hashes, generation=generation, started_at=timestamp(now))


def _goes_on(status: FineTuneJobStatus, last: RunStatus, spec_hash: str, means_hash: str) -> bool:
    """Whether the last run is still the one that the spec asks for, though the spec is of another generation.

    While a stage is at work, the API server accepts only changes that end no run: if the hash differs nevertheless,
    another version computed it, with other defaults for example.
    """
    if status.at_work:
        return True
    # With other means, what they ended may now succeed: a run that failed, or a training that a budget cut short.
    cut_short = any(row.ended == Reason.BUDGET_EXCEEDED for row in status.stages)
    ended_by_means = last.outcome is Phase.FAILED or (last.outcome is Phase.SUCCEEDED and cut_short)
    tried_again = ended_by_means and last.means_hash not in ("", means_hash)
    return last.spec_hash == spec_hash and not tried_again


def _start(context: RunContext, stage: Stage, recovers: str) -> Plan[FineTuneJobStatus]:
    if waits := _waits(context, stage):
        return waits
    request = stage_request(context, stage, recovers)
    if not context.has_begun:
        actions = (*context.upkeep, *_creations(request))
        return Plan(status=context.observed.status, actions=actions, defer_status=True)
    job = _just_made(request, recovers)
    if not recovers:
        context.ledger.enter(stage, job, StageState.RUNNING, job.verdict.message, request.input.input_key)
    headline = _headline(context, Stage(recovers) if recovers else stage, job)
    return _plan(context, headline, _creations(request), requeue_after=FIRST_LOOK_SECONDS)


def _waits(context: RunContext, stage: Stage) -> Plan[FineTuneJobStatus] | None:
    """What to say, and when to look again, where a stage cannot start now; None if it can."""
    observed = context.observed
    if context.spec.suspend:
        return _plan(context, Headline(Phase.SUSPENDED, Reason.SUSPENDED, f"Suspended before stage {stage}."))
    if found := first_blocker(BLOCKERS, observed):
        headline = Headline(Phase.PENDING, found.reason, found.message, stalled=not found.waiting)
        return _plan(context, headline, requeue_after=found.requeue_after, blocked=not found.watched)
    # Other Jobs, and pods whose Job is gone, may still write to the run's folder.
    ending = [f"Job {job.name}" for job in observed.jobs if job.unfinished]
    ending += [f"pod {name}" for name in observed.orphan_pods]
    if not ending:
        return None
    message = f"Stage {stage} waits for these to end: {', '.join(ending)}."
    return _plan(context, Headline(Phase.PENDING, Reason.WAITING, message), requeue_after=RECHECK_SECONDS)


def _creations(request: StageRequest) -> tuple[Create, ...]:
    """A stage's objects, the Job last: its pods need the others."""
    service = peers_service(request.owner, request.name, request.input.run.id, request.stage)
    peers = (Create(SERVICES, service),) if request.nodes > 1 else ()
    return (Create(CONFIG_MAPS, input_config_map(request)), *peers, Create(JOBS, stage_job(request)))


def _just_made(request: StageRequest, recovers: str) -> StageJob:
    """The Job as the next pass will observe it, so that the status does not change then."""
    return StageJob(
        name=request.name,
        uid="",
        run=request.input.run.id,
        stage=request.stage,
        recovers=recovers,
        suspended=bool(request.queue),
        queued=bool(request.queue),
        verdict=SUSPENDED if request.queue else NOT_STARTED,
    )


def _watch(context: RunContext, stage: Stage, job: StageJob) -> Plan[FineTuneJobStatus]:
    suspended = Headline(Phase.SUSPENDED, Reason.SUSPENDED, f"Suspended during stage {stage}.")
    headline = suspended if context.spec.suspend else _headline(context, stage, job)
    if headline.stalled and job.verdict.state is State.WAITING:
        return _plan(context, headline, restore(context, job), blocked=True)
    return _plan(context, headline, restore(context, job), requeue_after=_next_look(context, job))


def _await(context: RunContext, step: Await) -> Plan[FineTuneJobStatus]:
    """A stage waits for people. To look again, its Job is deleted: the next pass finds none and starts it."""
    if context.spec.suspend:
        return _plan(context, Headline(Phase.SUSPENDED, Reason.SUSPENDED, f"Suspended before stage {step.stage}."))
    headline = Headline(Phase.PENDING, Reason.AWAITING_REVIEW, f"{step.stage}: {step.message}")
    if step.again_in > timedelta():
        return _plan(context, headline, requeue_after=step.again_in.total_seconds())
    return _plan(context, headline, (Delete(JOBS, step.job.name, step.job.uid),), requeue_after=RECHECK_SECONDS)


def _headline(context: RunContext, stage: Stage, job: StageJob) -> Headline:
    """Of a stage with a Job. A look at votes is a part of the wait for them, not the end of it."""
    headline = _running(stage, job, context.now)
    if stage is Stage.PUBLISH and context.ledger.awaits_review and not headline.stalled:
        return Headline(Phase.PENDING, Reason.AWAITING_REVIEW, f"{stage} counts the votes.")
    return headline


def _running(stage: Stage, job: StageJob, now: datetime) -> Headline:
    verdict = job.verdict
    if verdict.state is State.SUSPENDED:
        return _held(stage, job)
    message = f"{stage}: {verdict.message}" if verdict.message else f"{stage} is running."
    if verdict.reason is Reason.UNSCHEDULABLE:
        return Headline(Phase.PENDING, verdict.reason, message, stalled=_patience_left(verdict, now) <= timedelta())
    stalled = verdict.state is State.WAITING and verdict.reason in _NEEDS_SOMEBODY
    return Headline(Phase.PENDING if stalled else Phase.RUNNING, verdict.reason, message, stalled)


def _patience_left(verdict: Verdict, now: datetime) -> timedelta:
    """How long a node may still take to appear before somebody has to act."""
    since = parse_timestamp(verdict.unschedulable_since) if verdict.unschedulable_since else now
    return since + UNSCHEDULABLE_PATIENCE - now


def _held(stage: Stage, job: StageJob) -> Headline:
    """A Job is suspended although the spec does not ask for it."""
    if job.queued:
        return Headline(Phase.PENDING, Reason.QUEUED, f"{stage} is queued in Kueue.")
    if job.suspended_by_us:
        return Headline(Phase.RUNNING, Reason.RESUMED, f"{stage} is being resumed.")
    message = f"{stage}: Job {job.name} was suspended, and not by the operator."
    return Headline(Phase.PENDING, Reason.JOB_SUSPENDED, message, stalled=True)


def _next_look(context: RunContext, job: StageJob) -> float | None:
    if job.verdict.state is State.RUNNING:
        return float(context.observed.settings.progress_seconds)
    if job.verdict.unschedulable_since:
        return max(0.0, _patience_left(job.verdict, context.now).total_seconds())
    if job.verdict.state is State.WAITING:
        return look_after(job.age)
    return None


def _success(ledger: RunLedger) -> str:
    found = ledger.evaluation
    name, scores = ("chrF", found.chrf) if found and found.chrf else ("accuracy", found and found.accuracy)
    reached = f"{name} {scores.artifact} (base model: {scores.base}), " if scores and scores.artifact else ""
    where = ledger.artifact.uri if ledger.artifact else ""
    return f"Published: {reached}{where}"


def _plan(
    context: RunContext,
    headline: Headline,
    actions: tuple[Action, ...] = (),
    requeue_after: float | None = None,
    *,
    blocked: bool = False,
) -> Plan[FineTuneJobStatus]:
    before, status = context.observed.status, compose(context, headline)
    actions, events = (*context.upkeep, *actions), transition_events(before, status)
    return Plan(status, actions, events, requeue_after, blocked)
