"""The analysis of a canary's step: a Job that compares what the servers of both revisions count. Pure.

It begins when the step has its share, and gives its verdict when the pause is over, or as soon as the canary is worse.
Only that verdict ends the canary; whatever else becomes of the Job, there is no verdict. Then the spec decides: the
step lasts, and another Job looks for as long as the step has lasted so far, or the canary goes on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_api import meta
from finetune_api.endpoint_stages import AnalyseParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome, CanaryAnalysisStatus, RevisionState, RevisionStatus
from finetune_api.stages import Params, Stage, StageInput
from finetune_api.strategy import CanaryAnalysis, WithoutVerdict
from finetune_operator.adapterdeployment.candidate import MESSAGE_LIMIT
from finetune_operator.adapterdeployment.context import CanaryContext
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import Outlook, ServerProblem
from finetune_operator.adapterdeployment.record import recorded
from finetune_operator.adapterdeployment.revision_objects import is_proxied
from finetune_operator.adapterdeployment.side_jobs import stage_objects
from finetune_operator.framework.actions import Action, Event
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, Object
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.resources.stage_request import StageRequest, run_ref, stage_name
from finetune_operator.settings import PodShape

LATE_SECONDS: Final = 300.0
"""For how long a verdict may be late: its pod waited for a node or an image, and had to look for a while."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 60.0, 86400.0
"""For how long a step without a verdict is looked at again."""
_RECORD_SECONDS: Final = 1.0
"""After which to look again, once the status says what is under way."""
_CHECKS: Final = 16
"""So many checks of a revision have room in the status."""
_SHAPE: Final = PodShape(
    requests={"cpu": "50m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"}, scratch_size="100Mi"
)


@dataclass(frozen=True)
class Analysis:
    """Where the analysis of a step stands after this pass."""

    status: CanaryAnalysisStatus
    goes_on: bool
    """Whether the step may end, once its pause is over."""
    actions: tuple[Action, ...] = ()
    due_after: float | None = None
    """Seconds until something is due, if nothing else happens."""

    @property
    def holds(self) -> bool:
        """Whether the step lasts for want of a verdict."""
        return self.status.outcome is AnalysisOutcome.INCONCLUSIVE and not self.goes_on

    def problem(self, candidate: RevisionStatus) -> ServerProblem | None:
        """Why the canary must not go on, if it is worse than what serves."""
        if self.status.outcome is not AnalysisOutcome.FAILED:
            return None
        room = _CHECKS - len(self.status.checks)
        checks = (*candidate.verification[:room], *self.status.checks)
        return ServerProblem(Reason.ANALYSIS_FAILED, self.status.message, Outlook.FAIL, checks)

    def events(self, candidate: RevisionStatus) -> tuple[Event, ...]:
        """News since the pass before, which left the candidate so. What holds a step is told by its condition."""
        before = candidate.canary.analysis if candidate.canary else None
        reasons = {
            AnalysisOutcome.PASSED: Reason.ANALYSIS_PASSED,
            AnalysisOutcome.INCONCLUSIVE: Reason.ANALYSIS_INCONCLUSIVE,
        }
        reason = reasons.get(self.status.outcome)
        if reason is None or self.holds or (before is not None and before.outcome is self.status.outcome):
            return ()
        return (Event("Normal", reason, self.status.message),)


def analysis_of(context: CanaryContext, candidate: RevisionStatus) -> Analysis | None:
    """The analysis of the step that a canary has its share of; None if the spec asks for none, or it has none yet."""
    observed, now = context.observed, context.now
    asked, canary = observed.resource.spec.strategy.canary.analysis, candidate.canary
    if asked is None or canary is None or canary.until is None or canary.reached_at is None:
        return None
    known = canary.analysis
    # A verdict stays one, also if somebody deletes the Job while the step waits for its last pods.
    if known is not None and known.outcome is AnalysisOutcome.PASSED and known.until >= canary.until:
        return Analysis(known, goes_on=True)
    again = known is not None and known.outcome is AnalysisOutcome.INCONCLUSIVE
    until = known.until if known is not None and again else canary.until
    name, left = _name(observed, candidate, asked, until), (parse_timestamp(until) - now).total_seconds()
    patient = asked.on_inconclusive is WithoutVerdict.HOLD
    job = observed.child(JOBS, name)
    if job is None and left > 0 and not _is_recorded(observed):
        return Analysis(_running(known, until, again), goes_on=False, due_after=_RECORD_SECONDS)
    if job is None and left > 0:
        made = stage_objects(observed, _request(context, candidate, until))
        return Analysis(_running(known, until, again), again and not patient, made, left)
    verdict = judge(job, observed.job_pods(job), observed.job_events.get(name, ()), now) if job is not None else None
    if verdict is not None and verdict.state in UNFINISHED and left > -LATE_SECONDS:
        return Analysis(
            _running(known, until, again), again and not patient, (), left if left > 0 else left + LATE_SECONDS
        )
    found = _ended(verdict, until)
    if found.outcome is not AnalysisOutcome.INCONCLUSIVE or not patient:
        return Analysis(found, goes_on=found.outcome is not AnalysisOutcome.FAILED)
    return _looked_at_again(found, canary.reached_at, now)


def names_in_use(observed: ObservedDeployment, candidate: RevisionStatus | None) -> set[str]:
    """Names of the Jobs and inputs that are not to be deleted: of the step under way, or of a canary that has failed
    its analysis, so that the log can be read."""
    asked = observed.resource.spec.strategy.canary.analysis
    if candidate is None:
        return set()
    if candidate.state is RevisionState.FAILED and candidate.reason == Reason.ANALYSIS_FAILED:
        labels = {meta.LABEL_STAGE: Stage.ANALYSE.value, meta.LABEL_REVISION: candidate.revision}
        children = [each for kind in (JOBS, CONFIG_MAPS) for each in observed.children.get(kind, {}).values()]
        return {each["metadata"]["name"] for each in children if labels.items() <= _labels(each).items()}
    under_way = candidate.state is RevisionState.CANARY and candidate.canary is not None
    if not under_way or asked is None or candidate.canary is None or candidate.canary.analysis is None:
        return set()
    return {_name(observed, candidate, asked, candidate.canary.analysis.until)}


def is_of_analysis(child: Object) -> bool:
    """Whether a Job or ConfigMap is one of an analysis."""
    return _labels(child).get(meta.LABEL_STAGE) == Stage.ANALYSE.value


def _is_recorded(observed: ObservedDeployment) -> bool:
    """Whether the status says that the step has its share. Before, there is no Job: what the API server refuses keeps
    the status as it was, which would not say that the canary has clients, so that nobody saw it crash."""
    candidate = observed.resource.status.candidate
    return candidate is not None and candidate.canary is not None and candidate.canary.reached_at is not None


def _running(known: CanaryAnalysisStatus | None, until: str, again: bool) -> CanaryAnalysisStatus:
    """It is looked at. The second time and later, the status tells why: what was lacking the time before."""
    return known if known is not None and again else CanaryAnalysisStatus(outcome=AnalysisOutcome.RUNNING, until=until)


def _ended(verdict: Verdict | None, until: str) -> CanaryAnalysisStatus:
    """What a Job has found that has ended, or has taken too long; None: there is none, and it is too late for one."""
    outcome, message = AnalysisOutcome.INCONCLUSIVE, "The analysis did not finish in time."
    checks = verdict.result.checks if verdict is not None and verdict.result is not None else []
    if verdict is not None and verdict.state is State.SUCCEEDED and verdict.result is not None:
        passed = verdict.result.scalars.get("analysis") == AnalysisOutcome.PASSED
        outcome, message = AnalysisOutcome.PASSED if passed else outcome, verdict.message
    elif verdict is not None and verdict.state is State.FAILED and verdict.reason == Reason.ANALYSIS_FAILED:
        outcome, message = AnalysisOutcome.FAILED, verdict.message
    elif verdict is not None:
        message = f"The metrics could not be compared. {verdict.message}"
    return CanaryAnalysisStatus(outcome=outcome, until=until, message=message[:MESSAGE_LIMIT], checks=checks[:4])


def _looked_at_again(found: CanaryAnalysisStatus, reached_at: str, now: datetime) -> Analysis:
    """For as long as the step has lasted so far: with few clients it takes a longer time to have enough requests."""
    lasted = (now - parse_timestamp(reached_at)).total_seconds()
    until = timestamp(now + timedelta(seconds=min(max(lasted, _SHORTEST_SECONDS), _LONGEST_SECONDS)))
    return Analysis(found.model_copy(update={"until": until}), goes_on=False, due_after=_RECORD_SECONDS)


def _name(observed: ObservedDeployment, candidate: RevisionStatus, asked: CanaryAnalysis, until: str) -> str:
    """Name of the Job that gives its verdict at a time, and of its input."""
    return stage_name(observed.owner, Stage.ANALYSE, _identity(candidate, asked, until))


def _identity(candidate: RevisionStatus, asked: CanaryAnalysis, until: str) -> list[Any]:
    """With other limits it is another analysis, and so it is with another end."""
    limits = asked.model_dump(mode="json", exclude={"on_inconclusive"})
    return [candidate.revision, candidate.spec_hash, candidate.canary and candidate.canary.step, until, limits]


def _request(context: CanaryContext, candidate: RevisionStatus, until: str) -> StageRequest:
    """The stage, told which pods there are now. Their metrics are all that it reads: it gets no keys of any store."""
    observed, target, stable = context.observed, context.target, context.stable
    asked = observed.resource.spec.strategy.canary.analysis or CanaryAnalysis()
    owner, settings = observed.owner, observed.settings
    record, (uri, digest) = recorded(observed, stable), target.serving.first
    engine = target.serving.runtime.engine
    params = AnalyseParams(
        engine=engine.value,
        stable_engine=(record.serving.runtime.engine if record else engine).value,
        canary=_addresses(observed, candidate),
        stable=_addresses(observed, stable),
        until=until,
        min_requests=asked.min_requests,
        max_error_increase=float(asked.max_error_increase),
        max_latency_increase=float(asked.max_latency_increase),
    )
    run = run_ref(owner, f"{candidate.revision}-{candidate.spec_hash[:6]}")
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.ANALYSE,
            run=run,
            artifact_uri=uri,
            artifact_digest=digest,
            params=Params(analyse=params),
        ),
        image=settings.images.of(Stage.ANALYSE),
        images=settings.images,
        shape=_SHAPE,
        service_account=target.serving.runtime.service_account_name,
        labels={meta.LABEL_REVISION: candidate.revision},
        identity=_identity(candidate, asked, until),
        deadline_seconds=int((parse_timestamp(until) - context.now).total_seconds() + LATE_SECONDS),
    )


def _addresses(observed: ObservedDeployment, revision: RevisionStatus) -> list[str]:
    """Where the metrics of a revision's pods are, as far as they have addresses."""
    port = meta.INNER_PORT if is_proxied(observed, revision.revision) else meta.SERVING_PORT
    found = (str(pod["status"].get("podIP") or "") for pod in observed.server_pods(revision.revision))
    return [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in sorted(found) if host]


def _labels(child: Object) -> dict[str, str]:
    return child["metadata"].get("labels") or {}
