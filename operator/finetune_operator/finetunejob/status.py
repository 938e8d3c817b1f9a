"""The status of a FineTuneJob: phase and conditions for what was decided, and events for its transitions. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from finetune_api.budget import FitStatus
from finetune_api.dataset import TaskType
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import (
    DatasetStatus,
    FineTuneJobStatus,
    Phase,
    Progress,
    RunStatus,
    StageState,
    StageStatus,
)
from finetune_api.meta import FINETUNEJOB
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import Stage
from finetune_api.training import training_warnings
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.cost import cost_status, deadline_warning
from finetune_operator.finetunejob.ledger import RunLedger
from finetune_operator.finetunejob.observe import UnplannedJob
from finetune_operator.finetunejob.progress import Sample
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, Finding, merge_conditions, timestamp
from finetune_operator.framework.events import advice_events

MAX_RUNS: Final = 10
_EARLY_ENDS: Final = frozenset({Reason.OVERFITTING, Reason.PLATEAU, Reason.BUDGET_EXCEEDED})
"""Ends of a training that get a warning event, although its best weights are kept."""


@dataclass(frozen=True)
class Headline:
    """Phase, reason and message of the whole resource."""

    phase: Phase
    reason: Reason
    message: str
    stalled: bool = False
    """Somebody has to act before it continues."""


def compose(context: RunContext, headline: Headline) -> FineTuneJobStatus:
    """The whole new status. Until the run has begun, its tables stay those of the run before it."""
    observed, now = context.observed, context.now
    ledger = context.ledger
    known = (ledger.dataset, ledger.fit) if context.has_begun else (None, None)
    late = deadline_warning(context) if context.has_begun else ""
    findings = [*_findings(headline), *_advice(observed.spec, *known, late)]
    status = _with_conditions(observed.status, observed.metadata.generation, headline, findings, now)
    if not context.has_begun:
        return status
    run = context.ledger.run
    # What has ended stays as it was recorded, also in words that only a newer version knows.
    return status.model_copy(update=_run_fields(context, headline) if _open(run) else {"run": run})


def compose_unplanned(unplanned: UnplannedJob, now: datetime) -> FineTuneJobStatus:
    """The status where nothing can be planned. A run that works on this spec, or did, stays what it is."""
    before, generation = unplanned.status, unplanned.metadata.generation
    run = before.run if before.run is not None and before.run.generation == generation else None
    if run is not None and run.outcome is not Phase.RUNNING:
        headline = Headline(run.outcome, Reason(run.reason), run.message)
    else:
        phase = (before.phase if run is not None else None) or Phase.PENDING
        headline = Headline(phase, unplanned.reason, _problem(unplanned), stalled=True)
    known = (before.dataset, before.fit) if run is not None else (None, None)
    findings = [*_findings(headline), *_advice(unplanned.spec, *known)]
    return _with_conditions(before, generation, headline, findings, now)


def _problem(unplanned: UnplannedJob) -> str:
    if unplanned.reason is Reason.API_CALLS_FAIL:
        return f"Calls to the Kubernetes API fail: {unplanned.problem}."
    return f"{unplanned.problem}."


def _with_conditions(
    before: FineTuneJobStatus, generation: int, headline: Headline, findings: list[Finding], now: datetime
) -> FineTuneJobStatus:
    return before.model_copy(
        update={
            "observed_generation": generation,
            "phase": headline.phase,
            "conditions": merge_conditions(before.conditions, findings, FINETUNEJOB, generation, now),
        }
    )


def _run_fields(context: RunContext, headline: Headline) -> dict[str, object]:
    before, ledger, now = context.observed.status, context.ledger, context.now
    run = _ended(ledger.run, headline, now)
    progress = _progress(before.progress, _current(ledger), context.observed.sample, now) if _open(run) else None
    return {
        "run": run,
        "runs": _history(before, run, now),
        "stages": list(ledger.rows.values()),
        "stages_done": ledger.stages_done,
        "progress": progress,
        "fit": ledger.fit,
        "cost": cost_status(context, ended=not _open(run)),
        "dataset": ledger.dataset,
        "evaluation": ledger.evaluation,
        "artifact": ledger.artifact,
        "candidate": ledger.candidate,
    }


def _findings(headline: Headline) -> list[Finding]:
    phase, reason = headline.phase, headline.reason
    succeeded, failed = phase is Phase.SUCCEEDED, phase is Phase.FAILED
    working = phase in (Phase.RUNNING, Phase.PENDING) and not headline.stalled
    stalled, ended = headline.stalled or failed, succeeded or failed
    return [
        Finding(ConditionType.READY, succeeded, reason, headline.message),
        Finding(ConditionType.RECONCILING, working, reason, headline.message if working else _rest(headline)),
        Finding(ConditionType.STALLED, stalled, reason, headline.message if stalled else ""),
        Finding(ConditionType.COMPLETE, succeeded, reason),
        Finding(ConditionType.FAILED, failed, reason, headline.message if failed else ""),
        Finding(ConditionType.FINISHED, ended, reason, headline.message if ended else ""),
        Finding(ConditionType.SUSPENDED, phase is Phase.SUSPENDED, reason),
    ]


def _rest(headline: Headline) -> str:
    """Why nothing is in progress."""
    if headline.phase is Phase.SUSPENDED:
        return "spec.suspend is true."
    return "Waiting for a person to act." if headline.phase is not Phase.SUCCEEDED else "The run has ended."


def _advice(
    spec: FineTuneJobSpec | None, dataset: DatasetStatus | None, fit: FitStatus | None, late: str = ""
) -> list[Finding]:
    """A warning for settings that are allowed but known to work badly; no condition without one."""
    warnings = training_warnings(spec.training) if spec else []
    if fit is not None and fit.warning:
        warnings.append(fit.warning)
    if late:
        warnings.append(late)
    if spec and dataset and dataset.answers_masked and spec.task.type is TaskType.EXTRACTION:
        warnings.append(
            f"{dataset.answers_masked} records to extract contain placeholders for personal data, and the model learns "
            "to answer with them: set spec.dataset.pii.mode to Report, or name in spec.dataset.pii.entities only what "
            "no record needs."
        )
    if not warnings:
        return []
    return [Finding(ConditionType.DISCOURAGED, True, Reason.SETTINGS_DISCOURAGED, " ".join(warnings))]


def _open(run: RunStatus) -> bool:
    return run.outcome is Phase.RUNNING


def _ended(run: RunStatus, headline: Headline, now: datetime) -> RunStatus:
    """The run, closed if this is its end."""
    if not _open(run) or headline.phase not in (Phase.SUCCEEDED, Phase.FAILED):
        return run
    end = {"outcome": headline.phase, "reason": headline.reason.value, "message": headline.message[:1024]}
    return run.model_copy(update={**end, "finished_at": timestamp(now)})


def _history(before: FineTuneJobStatus, run: RunStatus, now: datetime) -> list[RunStatus]:
    """Earlier runs, newest first; a run that a new spec cut short is closed."""
    last = before.run
    if last is None or last.id == run.id:
        return list(before.runs)
    if _open(last):
        end = {"outcome": Phase.FAILED, "reason": Reason.SPEC_CHANGED.value, "finished_at": timestamp(now)}
        last = last.model_copy(update={**end, "message": f"The spec changed: run {run.number} replaced this one."})
    return [last, *before.runs][:MAX_RUNS]


def _current(ledger: RunLedger) -> StageStatus | None:
    return next((row for row in ledger.rows.values() if row.state is StageState.RUNNING), None)


def _progress(
    before: Progress | None, current: StageStatus | None, sample: Sample | None, now: datetime
) -> Progress | None:
    """Progress of the running stage; it changes by whole percents."""
    if current is None:
        return before
    fresh = before is None or before.stage != current.name
    if sample is not None and sample.stage == current.name and (fresh or before is None or _moved(before, sample)):
        return Progress(
            stage=sample.stage,
            percent=sample.percent,
            eta_seconds=sample.eta_seconds,
            message=sample.message,
            updated_at=timestamp(now),
        )
    return Progress(stage=current.name, percent=0, updated_at=timestamp(now)) if fresh else before


def _moved(before: Progress, sample: Sample) -> bool:
    return before.percent != sample.percent


def transition_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> tuple[Event, ...]:
    """Events for what changed between two statuses."""
    return (
        *_begin_events(before, after),
        *_stage_events(before, after),
        *_phase_events(before, after),
        *_blocker_events(before, after),
        *advice_events(before.conditions, after.conditions),
    )


def _begin_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    run = after.run
    if run is not None and (before.run is None or before.run.id != run.id):
        yield Event("Normal", Reason.RUN_STARTED, f"Run {run.number} ({run.id}) started.")


def _phase_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    run, phase = after.run, after.phase
    if phase is before.phase or run is None:
        return
    if phase is Phase.SUCCEEDED:
        yield Event("Normal", Reason.RUN_SUCCEEDED, run.message)
    elif phase is Phase.FAILED:
        yield Event("Warning", Reason(run.reason), f"Run {run.number} failed: {run.message}")
    elif phase is Phase.SUSPENDED:
        yield Event("Normal", Reason.SUSPENDED, "spec.suspend is true; finished stages are kept.")
    elif phase is Phase.RUNNING and before.phase is Phase.SUSPENDED:
        yield Event("Normal", Reason.RESUMED, "spec.suspend is false.")


def _stage_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    same = before.run is not None and after.run is not None and before.run.id == after.run.id
    rows = {row.name: row for row in before.stages} if same else {}
    for row in after.stages:
        old = rows.get(row.name, StageStatus(name=row.name))
        if row.state is StageState.RUNNING and row.job != old.job and row.name != Stage.RESOLVE:
            yield Event("Normal", Reason.STAGE_STARTED, f"{row.name} started: Job {row.job}.")
        if row.state is not old.state and row.state in (StageState.SUCCEEDED, StageState.REUSED):
            succeeded = row.state is StageState.SUCCEEDED
            reason = Reason.STAGE_SUCCEEDED if succeeded else Reason.STAGE_REUSED
            yield Event("Normal", reason, f"{row.name}: {row.message or row.output_digest}")
            if succeeded and row.ended in _EARLY_ENDS:
                yield Event("Warning", Reason(row.ended), f"{row.name}: {row.message}")
        if row.job == old.job and 1 <= old.attempts < row.attempts and row.state is StageState.RUNNING:
            yield Event("Warning", Reason.STAGE_RETRIED, f"{row.name}: attempt {row.attempts}. {row.message}")


def _blocker_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    """A warning for a blocker that a person can act on, when it appears."""
    now, then = _ready(after), _ready(before)
    open_phase = after.phase in (Phase.PENDING, Phase.RUNNING)
    if now is not None and open_phase and now in REMEDIES and now != then:
        message = next(each.message for each in after.conditions if each.type == ConditionType.READY)
        yield Event("Normal" if now is Reason.AWAITING_REVIEW else "Warning", now, message)


def _ready(status: FineTuneJobStatus) -> Reason | None:
    return next((Reason(each.reason) for each in status.conditions if each.type == ConditionType.READY), None)
