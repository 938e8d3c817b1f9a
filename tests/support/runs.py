"""A FineTuneJob as observed, the Jobs of its run, and what a plan does and says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finetune_api.base import ObjectMeta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import FineTuneJobStatus, Phase, RunStatus
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Outcome, Stage, StageInput, StageResult
from finetune_operator.finetunejob.observe import ObservedJob, StageJob, spec_hash
from finetune_operator.finetunejob.plan import current_run
from finetune_operator.framework.actions import Create, Plan
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.settings import Images, Profile, Settings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
THEN = "2026-01-01T10:00:00Z"
SETTINGS = Settings(
    images=Images(data="data", prepare="prepare", jobs="jobs", quantize="quantize", proxy="proxy"),
    profiles={"small": Profile()},
)
GIVEN = {
    "profile": "small",
    "model": {"uri": "s3://models/base"},
    "dataset": {"sources": [{"uri": "s3://data/rows.csv"}]},
    "output": {"uri": "s3://artifacts/team", "name": "ft"},
}
SPEC = FineTuneJobSpec.model_validate(GIVEN)
METADATA = ObjectMeta(name="ft", namespace="team", uid="uid", generation=3)
IDENTITY = {"sourceDigest": "5" * 64, "modelDigest": "6" * 64}


def observed(spec: FineTuneJobSpec = SPEC, **more: Any) -> ObservedJob:
    """A FineTuneJob; new and without blockers unless told otherwise."""
    changes: dict[str, Any] = {name: more.pop(name) for name in ("labels", "generation") if name in more}
    metadata = METADATA.model_copy(update=changes)
    owner = Owner.of(FINETUNEJOBS, metadata)
    status = more.pop("status", FineTuneJobStatus())
    return ObservedJob(owner=owner, metadata=metadata, spec=spec, status=status, settings=SETTINGS, **more)


RUN = current_run(observed(), NOW).id


def job(stage: Stage, state: State = State.RUNNING, **more: Any) -> StageJob:
    """A Job of the first run."""
    verdict = more.pop("verdict", Verdict(state, Reason.STAGE_STARTED, attempts=1, started_at=THEN))
    base: dict[str, Any] = {"run": RUN, "recovers": "", "suspended": state is State.SUSPENDED, "queued": False}
    name = more.pop("name", f"ft-{stage}-1")
    return StageJob(name=name, uid=f"{name}-uid", stage=stage.value, verdict=verdict, **(base | more))


def done(stage: Stage, **more: Any) -> StageJob:
    """A Job whose stage has its result."""
    scalars = IDENTITY if stage is Stage.RESOLVE else {}
    output = "" if stage is Stage.RESOLVE else f"{PIPELINE.index(stage)}" * 64
    reason, base = Reason.STAGE_SUCCEEDED, {"output_digest": output, "scalars": scalars}
    result = StageResult(stage=stage, outcome=Outcome.SUCCEEDED, reason=reason, **(base | more))
    return job(stage, verdict=Verdict(State.SUCCEEDED, reason, "done", result, 1, THEN, THEN))


def told(plan_: Plan[FineTuneJobStatus]) -> tuple[Phase | None, Reason]:
    """Phase, and reason of Ready."""
    ready = next(each for each in plan_.status.conditions if each.type == "Ready")
    return plan_.status.phase, Reason(ready.reason)


def started(plan_: Plan[FineTuneJobStatus]) -> list[StageInput]:
    """Inputs of the stages that a plan starts; each ConfigMap comes before its Job, of the same name."""
    creates = [action.object for action in plan_.actions if isinstance(action, Create)]
    assert [each["kind"] for each in creates] == ["ConfigMap", "Job"] * (len(creates) // 2)
    assert {each["metadata"]["name"] for each in creates[::2]} == {each["metadata"]["name"] for each in creates[1::2]}
    return [StageInput.model_validate_json(each["data"]["input.json"]) for each in creates[::2]]


def ended(outcome: Phase, reason: Reason, **more: Any) -> FineTuneJobStatus:
    """The status of a run that has ended."""
    run = RunStatus(
        id=RUN, number=1, spec_hash=spec_hash(SPEC), started_at=THEN, finished_at=THEN, outcome=outcome, reason=reason
    )
    return FineTuneJobStatus(phase=outcome, run=run, **more)


RESOLVED = done(Stage.RESOLVE)


def conditions(plan_: Plan[FineTuneJobStatus]) -> dict[str, str]:
    """Status of each condition."""
    return {each.type: each.status for each in plan_.status.conditions}
