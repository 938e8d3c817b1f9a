"""FineTuneJob's plan: tables from what was observed to what is done and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.base import ObjectMeta
from finetune_api.dataset import Task, TaskType
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, Phase, Reuse, RunStatus, StageState
from finetune_api.hashing import digest
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import PIPELINE, Found, Outcome, Stage, StageInput, StageResult, Upstream, input_key
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_operator.finetunejob.expiry import ExpiredObject, has_expired
from finetune_operator.finetunejob.kind import with_conflict
from finetune_operator.finetunejob.observe import ObservedJob, StageJob, UnplannedJob, spec_hash
from finetune_operator.finetunejob.params import params_of
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.finetunejob.progress import Sample
from finetune_operator.framework.actions import Create, Delete, Patch, Plan
from finetune_operator.framework.apply import NameTaken
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, SERVICES
from finetune_operator.framework.ownership import Owner
from finetune_operator.framework.reading import Unplanned
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.resources.stage_job import QUEUE_LABEL
from finetune_operator.settings import Images, Profile, Settings
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
THEN = "2026-01-01T10:00:00Z"
SETTINGS = Settings(
    images=Images(data="data", prepare="prepare", jobs="jobs", quantize="quantize"), profiles={"small": Profile()}
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
    """A FineTuneJob; new and unhindered unless told otherwise."""
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


@dataclass(frozen=True)
class Case:
    """What is observed, and the stage that is started for it, if any, or what is said."""

    observed: ObservedJob | UnplannedJob
    starts: Stage | None = None
    says: tuple[Phase, Reason] | None = None
    in_words: str = ""
    """Parts of Ready's message."""


RESOLVED = done(Stage.RESOLVE)
TENANCY = Tenancy(rules=[TenancyRule(namespaces=["*"], outputs=["s3://models/{namespace}"])])
UNSHARED = SPEC.model_copy(update={"reuse": Reuse.NEVER})
CASES = {
    "new": Case(observed(), Stage.RESOLVE),
    "resolving": Case(observed(jobs=(job(Stage.RESOLVE),)), says=(Phase.RUNNING, Reason.STAGE_STARTED)),
    "resolved": Case(observed(jobs=(RESOLVED,)), Stage.PREPARE),
    "next in Kueue's queue": Case(
        observed(labels={QUEUE_LABEL: "gpus"}, jobs=(RESOLVED,)),
        Stage.PREPARE,
        says=(Phase.PENDING, Reason.QUEUED),
        in_words="prepare … queued … Kueue",
    ),
    "prepared": Case(observed(jobs=(RESOLVED, done(Stage.PREPARE))), Stage.TRAIN),
    "evaluated": Case(observed(jobs=(RESOLVED, *map(done, PIPELINE[:4]))), Stage.PUBLISH),
    "published": Case(observed(jobs=(RESOLVED, *map(done, PIPELINE))), says=(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)),
    "two of five found": Case(
        observed(jobs=(done(Stage.RESOLVE, found=[Found(stage=s, output_digest="7" * 64) for s in PIPELINE[:2]]),)),
        Stage.EXPORT,
    ),
    "all found": Case(
        observed(jobs=(done(Stage.RESOLVE, found=[Found(stage=s, output_digest="7" * 64) for s in PIPELINE]),)),
        says=(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED),
    ),
    "found, but not from the first on": Case(
        observed(jobs=(done(Stage.RESOLVE, found=[Found(stage=Stage.TRAIN, output_digest="7" * 64)]),)), Stage.PREPARE
    ),
    "found, but not wanted": Case(
        observed(
            UNSHARED,
            status=FineTuneJobStatus(
                phase=Phase.RUNNING, run=RunStatus(id=RUN, number=1, spec_hash=spec_hash(UNSHARED), started_at=THEN)
            ),
            jobs=(done(Stage.RESOLVE, found=[Found(stage=Stage.PREPARE, output_digest="7" * 64)]),),
        ),
        Stage.PREPARE,
    ),
    "failed": Case(
        observed(jobs=(job(Stage.RESOLVE, verdict=Verdict(State.FAILED, Reason.BUCKET_NOT_FOUND, "s3://x: none")),)),
        says=(Phase.FAILED, Reason.BUCKET_NOT_FOUND),
        in_words=f"resolve: s3://x: none {REMEDIES[Reason.BUCKET_NOT_FOUND]}",
    ),
    "unschedulable": Case(
        observed(jobs=(job(Stage.RESOLVE, verdict=Verdict(State.WAITING, Reason.UNSCHEDULABLE, "no node.")),)),
        says=(Phase.PENDING, Reason.UNSCHEDULABLE),
        in_words=f"resolve: no node. {REMEDIES[Reason.UNSCHEDULABLE]}",
    ),
    "invalid": Case(
        Unplanned(METADATA, FineTuneJobStatus(), Reason.SPEC_INVALID, "spec.profile: Field required"),
        says=(Phase.PENDING, Reason.SPEC_INVALID),
        in_words="spec.profile: Field required.",
    ),
    "unknown profile": Case(
        observed(SPEC.model_copy(update={"profile": "huge"})),
        says=(Phase.PENDING, Reason.PROFILE_UNKNOWN),
        in_words="spec.profile is 'huge' … small",
    ),
    "not for this namespace": Case(
        replace(observed(), settings=SETTINGS.model_copy(update={"tenancy": TENANCY})),
        says=(Phase.PENDING, Reason.NOT_ALLOWED),
        in_words="spec.output.uri is 's3://artifacts/team' … 'team' … below s3://models/team. … "
        f"{REMEDIES[Reason.NOT_ALLOWED]}",
    ),
    "no longer for this namespace": Case(
        replace(observed(jobs=(RESOLVED,)), settings=SETTINGS.model_copy(update={"tenancy": TENANCY})),
        says=(Phase.PENDING, Reason.NOT_ALLOWED),
    ),
    "what runs may end though it is no longer for this namespace": Case(
        replace(observed(jobs=(job(Stage.RESOLVE),)), settings=SETTINGS.model_copy(update={"tenancy": TENANCY})),
        says=(Phase.RUNNING, Reason.STAGE_STARTED),
    ),
    "no service account": Case(
        observed(service_account=False),
        says=(Phase.PENDING, Reason.RUNNER_SERVICE_ACCOUNT_MISSING),
        in_words="'finetune-runner' … profile 'small' … namespace 'team'",
    ),
    "another job publishes to the output": Case(
        observed(conflicting_job="first"),
        says=(Phase.PENDING, Reason.OUTPUT_NAME_CONFLICT),
        in_words="The older FineTuneJob 'first' … 'ft' … s3://artifacts/team",
    ),
    "refused by a quota on Jobs": Case(
        observed(refusal='jobs.batch "x" is forbidden: exceeded quota: few'),
        says=(Phase.PENDING, Reason.QUOTA_EXCEEDED),
        in_words="exceeded quota: few",
    ),
    "refused by a policy": Case(
        observed(refusal='admission webhook "policy" denied the request'), says=(Phase.PENDING, Reason.POD_REJECTED)
    ),
    "suspended from the start": Case(
        observed(SPEC.model_copy(update={"suspend": True})), says=(Phase.SUSPENDED, Reason.SUSPENDED)
    ),
    "hindered in the middle": Case(
        observed(jobs=(RESOLVED,), service_account=False),
        says=(Phase.PENDING, Reason.RUNNER_SERVICE_ACCOUNT_MISSING),
    ),
    "a pod of an earlier Job still runs": Case(
        observed(orphan_pods=("ft-train-1-abc",)),
        says=(Phase.PENDING, Reason.WAITING),
        in_words="resolve waits … pod ft-train-1-abc",
    ),
    "succeeded, Jobs gone": Case(
        observed(status=ended(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)), says=(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)
    ),
    "failed before": Case(
        observed(status=ended(Phase.FAILED, Reason.S3_ACCESS_DENIED)), says=(Phase.FAILED, Reason.S3_ACCESS_DENIED)
    ),
    "rerun": Case(
        observed(SPEC.model_copy(update={"rerun": "2"}), status=ended(Phase.FAILED, Reason.S3_ACCESS_DENIED)),
        Stage.RESOLVE,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_step(case: Case) -> None:
    """One stage is started, or nothing is; a run's first stage is told of in the next turn."""
    result = plan(case.observed, NOW)
    assert [given.stage for given in started(result)] == ([case.starts] if case.starts else [])
    assert result.defer_status is (case.starts is Stage.RESOLVE)
    if case.says:
        assert told(result) == case.says
        ready = next(each.message for each in result.status.conditions if each.type == "Ready")
        assert_says(ready, *case.in_words.split(" … "))
        assert result.status.observed_generation == 3


def test_a_started_stage_knows_its_place_in_the_chain() -> None:
    """Upstream addresses, input key and run are in its input; labels and names follow from it."""
    result = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE))), NOW)
    given = started(result)[0]
    assert (given.upstream.source, given.upstream.dataset) == ("5" * 64, "0" * 64)
    assert len(given.input_key) == 64
    assert given.run.id == RUN
    again = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE))), NOW + timedelta(hours=1))
    assert result.actions == again.actions, "a crash repeats itself"


@dataclass(frozen=True)
class Hold:
    """A Job, whether the spec suspends the run, and what is done and said."""

    state: State
    suspend: bool = False
    queued: bool = False
    by_us: bool = False
    done: type | None = None
    says: tuple[Phase, Reason] = (Phase.SUSPENDED, Reason.SUSPENDED)


RUNNING = (Phase.RUNNING, Reason.STAGE_STARTED)
HOLDS = {
    "to be suspended": Hold(State.RUNNING, suspend=True, done=Patch),
    "suspended": Hold(State.SUSPENDED, suspend=True, by_us=True),
    "suspended by others too": Hold(State.SUSPENDED, suspend=True),
    "resumed by others against us": Hold(State.RUNNING, suspend=True, by_us=True, done=Delete),
    "queued, and to be suspended": Hold(State.RUNNING, suspend=True, queued=True, done=Delete),
    "being deleted": Hold(State.TERMINATING, suspend=True),
    "to be resumed": Hold(State.SUSPENDED, by_us=True, done=Patch, says=(Phase.RUNNING, Reason.RESUMED)),
    "resumed by others for us": Hold(State.RUNNING, by_us=True, done=Patch, says=RUNNING),
    "running": Hold(State.RUNNING, says=RUNNING),
    "queued": Hold(State.SUSPENDED, queued=True, says=(Phase.PENDING, Reason.QUEUED)),
    "suspended by others": Hold(State.SUSPENDED, says=(Phase.PENDING, Reason.JOB_SUSPENDED)),
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
def test_suspend(hold: Hold) -> None:
    """What we suspended is resumed, and nothing else; what others start against us is deleted."""
    reason = Reason.SUSPENDED if hold.state is State.SUSPENDED else Reason.STAGE_STARTED
    spec = SPEC.model_copy(update={"suspend": hold.suspend})
    verdict = Verdict(hold.state, reason)
    found = job(
        Stage.RESOLVE, hold.state, queued=hold.queued, suspended_by_us=hold.by_us, verdict=verdict, name="ft-resolve-1"
    )
    result = plan(observed(spec, jobs=(found,)), NOW)
    assert [type(action) for action in result.actions] == ([hold.done] if hold.done else [])
    assert told(result) == hold.says
    for action in result.actions:
        if isinstance(action, Patch):
            assert action.body["spec"] == {"suspend": hold.suspend}
            assert action.body["metadata"]["annotations"] == {
                meta.ANNOTATION_SUSPENDED: "true" if hold.suspend else None
            }


def test_somebody_elses_suspension_is_told_with_the_job_and_the_remedy() -> None:
    held = job(Stage.RESOLVE, State.SUSPENDED, verdict=Verdict(State.SUSPENDED, Reason.SUSPENDED), name="ft-resolve-1")
    result = plan(observed(jobs=(held,)), NOW)
    stalled = next(each for each in result.status.conditions if each.type == "Stalled")
    assert stalled.status == "True"
    assert_says(stalled.message, "resolve:", "Job ft-resolve-1", "spec.suspend", "false", QUEUE_LABEL)
    assert [(event.type, event.reason) for event in result.events][-1] == ("Warning", Reason.JOB_SUSPENDED)


def conditions(plan_: Plan[FineTuneJobStatus]) -> dict[str, str]:
    """Status of each condition."""
    return {each.type: each.status for each in plan_.status.conditions}


@pytest.mark.parametrize(
    ("state", "reason", "running", "frozen"),
    [
        (State.RUNNING, Reason.STAGE_STARTED, True, True),
        (State.WAITING, Reason.WAITING, True, False),  # a pod that is starting
        (State.WAITING, Reason.UNSCHEDULABLE, False, False),
        (State.WAITING, Reason.SECRET_MISSING, False, False),
        (State.WAITING, Reason.QUOTA_EXCEEDED, False, False),
        (State.WAITING, Reason.IMAGE_PULL_FAILED, False, False),
        (State.SUSPENDED, Reason.SUSPENDED, False, False),
    ],
)
def test_a_run_that_waits_for_a_place_may_be_changed(state: State, reason: Reason, running: bool, frozen: bool) -> None:
    """The remedies say "choose another profile": then a new run begins, in which finished stages are reused."""
    waiting = job(Stage.TRAIN, state, verdict=Verdict(state, reason, "It waits."))
    first = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE), waiting)), NOW)
    assert (first.status.at_work, first.status.phase is Phase.RUNNING) == (frozen, running)
    changed = SPEC.model_copy(update={"rerun": "2"})
    after = observed(changed, generation=4, status=first.status, jobs=(RESOLVED, done(Stage.PREPARE), waiting))
    run = current_run(after, NOW)
    assert (run.number == 1) is frozen
    if not frozen:
        assert plan(after, NOW).actions == (Delete(JOBS, waiting.name, waiting.uid),)


@pytest.mark.parametrize(("minutes", "stalled"), [(0, "False"), (9.9, "False"), (10, "True"), (600, "True")])
def test_a_pod_without_a_node_is_stalled_after_a_while(minutes: float, stalled: str) -> None:
    since = timestamp(NOW - timedelta(minutes=minutes))
    verdict = Verdict(State.WAITING, Reason.UNSCHEDULABLE, "no node.", unschedulable_since=since)
    made = plan(observed(jobs=(job(Stage.RESOLVE, verdict=verdict),)), NOW)
    told = conditions(made)
    assert (told["Stalled"], told["Reconciling"]) == (stalled, "True" if stalled == "False" else "False")
    if stalled == "False":
        assert made.requeue_after is not None
        assert timedelta(seconds=made.requeue_after) <= timedelta(minutes=10 - minutes)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_status_says_what_is_in_progress_and_whether_it_has_ended(case: Case) -> None:
    """``Finished`` is what a script can wait for: it is reached whether the run succeeds or fails."""
    made = plan(case.observed, NOW)
    if made.defer_status:
        return
    told = conditions(made)
    ended = made.status.phase in (Phase.SUCCEEDED, Phase.FAILED)
    assert told["Finished"] == str(ended)
    assert (told["Complete"], told["Failed"]) == (
        str(made.status.phase is Phase.SUCCEEDED),
        str(made.status.phase is Phase.FAILED),
    )
    reconciling = next(each for each in made.status.conditions if each.type == "Reconciling")
    assert reconciling.message


def test_the_queue_label_goes_through() -> None:
    """To the Job alone: pods and ConfigMaps are not Kueue's business."""
    result = plan(observed(labels={QUEUE_LABEL: "gpus", "other": "x"}), NOW)
    config_map, made = (action.object for action in result.actions if isinstance(action, Create))
    assert made["metadata"]["labels"][QUEUE_LABEL] == "gpus"
    assert "other" not in made["metadata"]["labels"]
    for labels in (config_map["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]):
        assert QUEUE_LABEL not in labels


def test_nothing_of_another_run_goes_on() -> None:
    """Its unfinished Jobs are deleted, and the new run waits for their end."""
    old = job(Stage.TRAIN, run="before", name="old")
    finished = done(Stage.PREPARE)
    result = plan(observed(jobs=(old, replace(finished, run="before", name="older"))), NOW)
    assert result.actions == (Delete(JOBS, "old", "old-uid"),)
    assert told(result) == (Phase.PENDING, Reason.WAITING)


def test_a_job_that_would_try_in_vain_goes_when_the_run_has_ended() -> None:
    """First the status says so, or a crash in between would start the stage again."""
    late = job(Stage.RESOLVE, verdict=Verdict(State.FAILED, Reason.DEADLINE_EXCEEDED, "too late.", tries_again=True))
    first = plan(observed(jobs=(late,)), NOW)
    assert told(first) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    assert (first.actions, first.requeue_after) == ((), 0.0)
    second = plan(observed(jobs=(late,), status=first.status), NOW)
    assert second.actions == (Delete(JOBS, late.name, late.uid),)
    assert second.status == first.status


@pytest.mark.parametrize(
    ("run", "ended_at", "over"),
    [
        (RUN, None, False),
        (RUN, "2026-01-01T11:00:01Z", False),
        (RUN, "2026-01-01T11:00:00Z", True),
        ("earlier", "2026-01-01T11:00:01Z", False),
        ("earlier", "2026-01-01T11:00:00Z", True),
        ("forgotten", THEN, True),
    ],
)
def test_when_a_run_is_over(run: str, ended_at: str | None, over: bool) -> None:
    """It is kept for an hour here. A resource that has lost its status knows of no end."""
    known = RunStatus(id=RUN, number=2, spec_hash="x", started_at=THEN, finished_at=ended_at if run == RUN else None)
    earlier = known.model_copy(update={"id": "earlier", "number": 1, "finished_at": ended_at or THEN})
    assert has_expired(FineTuneJobStatus(run=known, runs=[earlier]), run, timedelta(hours=1), NOW) is over
    assert not has_expired(FineTuneJobStatus(), run, timedelta(), NOW)


def test_what_is_left_of_runs_that_are_over_goes() -> None:
    """The run at hand keeps its own until it has ended, though the status may know nothing of it yet."""
    old = [
        ExpiredObject(resource, f"old-{number}", "uid", "before") for number, resource in enumerate((CONFIG_MAPS, JOBS))
    ]
    own = ExpiredObject(JOBS, "own", "uid", RUN)
    gone = tuple(Delete(left.resource, left.name, left.uid) for left in old)
    begun = plan(observed(jobs=(job(Stage.RESOLVE),), expired=(*old, own)), NOW)
    assert begun.actions == gone
    over = plan(observed(status=ended(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED), expired=(*old, own)), NOW)
    assert over.actions == (*gone, Delete(JOBS, "own", "uid"))


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (None, "start"),
        (State.RUNNING, Phase.RUNNING),
        (State.FAILED, Phase.FAILED),
        (State.LOST, Phase.FAILED),
        ("found", "export"),
        ("not found", Phase.FAILED),
        ("of another chain", Phase.FAILED),
    ],
)
def test_a_lost_result(search: object, expected: object) -> None:
    """Looked up by one more resolve; taken only if it belongs to what this run made."""
    lost = job(Stage.TRAIN, verdict=Verdict(State.LOST, Reason.RESULT_LOST, "gone", attempts=1))
    before = (RESOLVED, done(Stage.PREPARE), lost)
    found = {
        "found": [("0" * 64), ("8" * 64)],
        "not found": [("0" * 64)],
        "of another chain": [("9" * 64), ("8" * 64)],
    }
    searching: tuple[StageJob, ...] = ()
    if isinstance(search, str) and search in found:
        entries = [Found(stage=s, output_digest=d) for s, d in zip(PIPELINE, found[search], strict=False)]
        searching = (replace(done(Stage.RESOLVE, found=entries), recovers="train", name="search"),)
    elif isinstance(search, State):
        searching = (job(Stage.RESOLVE, search, recovers="train", name="search"),)
    result = plan(observed(jobs=(*before, *searching)), NOW)
    if expected == "start":
        given = started(result)[0]
        assert (given.stage, given.reuse, given.upstream.dataset) == (Stage.RESOLVE, True, "0" * 64)
    elif expected == "export":
        assert started(result)[0].upstream.adapter == "8" * 64
    else:
        assert result.status.phase is expected


def test_history_is_capped() -> None:
    """Ten earlier runs, newest first."""
    status = ended(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)
    assert status.run is not None
    runs = [status.run.model_copy(update={"id": f"r{n}", "number": n}) for n in range(20, 10, -1)]
    status = status.model_copy(update={"runs": runs, "run": status.run.model_copy(update={"number": 21})})
    changed = SPEC.model_copy(update={"rerun": "x"})
    run = current_run(observed(changed, status=status), NOW)
    result = plan(observed(changed, status=status, jobs=(job(Stage.RESOLVE, run=run.id),)), NOW)
    assert result.status.run is not None
    assert result.status.run.number == 22
    assert [each.number for each in result.status.runs] == [21, 20, 19, 18, 17, 16, 15, 14, 13, 12]


@pytest.mark.parametrize(
    ("before", "sample", "percent"),
    [(None, None, 0), (None, 7, 7), (7, 7, 7), (7, 8, 8), (7, None, 7), (50, 3, 3)],
)
def test_progress_moves_by_whole_percents(before: int | None, sample: int | None, percent: int) -> None:
    """A reading of the same percent changes nothing, not even the time."""
    running = (job(Stage.RESOLVE),)
    reading: Callable[[int], Sample] = lambda value: Sample("resolve", value, 60, "step")  # noqa: E731
    status = FineTuneJobStatus()
    if before is not None:
        status = plan(observed(jobs=running, sample=reading(before)), NOW - timedelta(minutes=1)).status
    later = observed(jobs=running, status=status, sample=None if sample is None else reading(sample))
    progress = plan(later, NOW).status.progress
    assert progress is not None
    assert progress.percent == percent
    assert (progress == status.progress) is (sample is None or sample == before) or before is None


def test_times_move_on_transitions_only() -> None:
    """The same observation an hour later gives the same status and no event."""
    first = plan(observed(jobs=(job(Stage.RESOLVE),)), NOW)
    second = plan(observed(jobs=(job(Stage.RESOLVE),), status=first.status), NOW + timedelta(hours=1))
    assert second.status == first.status
    assert second.events == ()
    assert [event.reason for event in first.events] == [Reason.RUN_STARTED]


def test_a_conflicting_object_blocks_until_it_is_gone() -> None:
    """What an action ran into becomes part of what was observed."""
    result = plan(with_conflict(observed(), NameTaken(JOBS, "ft-resolve-1")), NOW)
    assert told(result) == (Phase.PENDING, Reason.NAME_TAKEN)
    assert result.actions == ()
    assert result.blocked


def test_the_input_that_somebody_deleted_is_made_again() -> None:
    """Of our own version; a Job of another version cannot start without its own, so it starts anew with ours."""
    name = next(each.object["metadata"]["name"] for each in plan(observed(), NOW).actions if isinstance(each, Create))
    waiting = Verdict(State.WAITING, Reason.WAITING, "starting")
    ours = plan(observed(jobs=(job(Stage.RESOLVE, verdict=waiting, name=name, input_missing=True),)), NOW)
    assert [action.object["kind"] for action in ours.actions if isinstance(action, Create)] == ["ConfigMap"]
    theirs = plan(observed(jobs=(job(Stage.RESOLVE, verdict=waiting, name="other", input_missing=True),)), NOW)
    assert [type(action) for action in theirs.actions] == [Delete]


@pytest.mark.parametrize("state", [State.WAITING, State.RUNNING])
def test_the_service_of_pods_that_train_together_is_made_again(state: State) -> None:
    """Of any version's Job, which goes on: the Service follows from its name."""
    verdict = Verdict(state, Reason.STAGE_STARTED, attempts=1, started_at=THEN)
    training = job(Stage.TRAIN, verdict=verdict, name="of-another-version", peers_missing=True)
    [action] = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE), training)), NOW).actions
    assert isinstance(action, Create)
    assert (action.resource, action.object["metadata"]["name"]) == (SERVICES, "of-another-version")
    assert action.object["spec"]["selector"] == {meta.LABEL_JOB: "of-another-version"}


def test_long_messages_fit() -> None:
    """The API server refuses more than 1 KiB."""
    verdict = Verdict(State.FAILED, Reason.DATASET_INVALID, "x" * 5000)
    status = plan(observed(jobs=(job(Stage.RESOLVE, verdict=verdict),)), NOW).status
    assert status.run is not None
    messages = [each.message for each in status.conditions] + [row.message for row in status.stages]
    assert max(map(len, [*messages, status.run.message])) <= 1024
    assert next(each.message for each in status.conditions).endswith(REMEDIES[Reason.DATASET_INVALID])


def test_spec_hash_knows_no_defaults() -> None:
    """A field that a later version adds with a default, or writes out, starts no run again; suspend never does."""
    assert spec_hash(SPEC) == digest(GIVEN), "what was written, and nothing else"
    explicit = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True))
    assert spec_hash(explicit) == spec_hash(SPEC)
    assert spec_hash(SPEC.model_copy(update={"suspend": True})) == spec_hash(SPEC)
    assert spec_hash(SPEC.model_copy(update={"rerun": "1"})) != spec_hash(SPEC)


def test_how_the_store_encrypts_is_no_part_of_a_stages_identity() -> None:
    """It reaches every stage, and what was made before is reused."""
    storage = Storage(encryption=Encryption(algorithm=EncryptionAlgorithm.KMS, kms_key_id="alias/models"))
    encrypted = SPEC.model_copy(update={"storage": storage})
    [given] = started(plan(observed(encrypted), NOW))
    assert given.storage == storage
    upstream = Upstream(source="1", model="2", dataset="3", adapter="4", export="5", evaluation="6")
    for stage in PIPELINE:
        assert input_key(stage, upstream, params_of(encrypted)) == input_key(stage, upstream, params_of(SPEC))


def test_the_artifact_keeps_the_storage_with_which_it_was_published() -> None:
    """A run that begins with another store, or fails, has published nothing there; how to encrypt, no reader needs."""
    storage = Storage(
        endpoint="http://s3.storage.svc:8333", encryption=Encryption(algorithm=EncryptionAlgorithm.AES256)
    )
    stored = SPEC.model_copy(update={"storage": storage})
    run = current_run(observed(stored), NOW).id
    jobs = tuple(replace(each, run=run) for each in (RESOLVED, *map(done, PIPELINE)))
    status = plan(observed(stored, jobs=jobs), NOW).status
    assert status.artifact is not None
    assert status.artifact.storage == Storage(endpoint="http://s3.storage.svc:8333")
    moved = stored.model_copy(update={"storage": Storage(endpoint="http://other.svc:1")})
    again = current_run(observed(moved, generation=4, status=status), NOW).id
    begun = plan(observed(moved, generation=4, status=status, jobs=(job(Stage.RESOLVE, run=again),)), NOW).status
    assert begun.phase is Phase.RUNNING
    assert begun.artifact == status.artifact


@pytest.mark.parametrize(
    ("prepared", "published", "tokens"),
    [
        ({"longest": "300"}, {"goldenPromptTokens": "270", "answerTokens": "12"}, (270, 12, 300)),
        ({"longest": "9000"}, {}, (0, 0, SPEC.training.max_length)),  # longer ones were cut or left out
        ({}, {}, (0, 0, 0)),
    ],
)
def test_the_artifact_knows_how_long_it_is_asked(
    prepared: dict[str, str], published: dict[str, str], tokens: tuple[int, int, int]
) -> None:
    scalars = {Stage.PREPARE: prepared, Stage.PUBLISH: published}
    jobs = (RESOLVED, *(done(stage, scalars=scalars.get(stage, {})) for stage in PIPELINE))
    artifact = plan(observed(jobs=jobs), NOW).status.artifact
    assert artifact is not None
    assert artifact.tokens is not None
    assert (artifact.tokens.golden_prompt, artifact.tokens.answer, artifact.tokens.example) == tokens


def test_reused_and_done_stages_count() -> None:
    """The table says who did what."""
    found = [Found(stage=stage, output_digest="7" * 64) for stage in PIPELINE[:2]]
    status = plan(observed(jobs=(done(Stage.RESOLVE, found=found), job(Stage.EXPORT))), NOW).status
    assert status.stages_done == "2/5"
    assert [row.state for row in status.stages] == [
        StageState.SUCCEEDED,
        StageState.REUSED,
        StageState.REUSED,
        StageState.RUNNING,
        StageState.PENDING,
        StageState.PENDING,
    ]


@pytest.mark.parametrize(("task", "masked", "told"), [("Extraction", "7", 1), ("Extraction", "0", 0), ("Text", "7", 0)])
def test_records_with_placeholders_are_discouraged(task: str, masked: str, told: int) -> None:
    asked = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True) | {"task": {"type": task}})
    run = current_run(observed(asked), NOW).id
    prepared = done(Stage.PREPARE, scalars={"answersMasked": masked, "rowsTestMasked": "3"})
    status = plan(observed(asked, jobs=tuple(replace(each, run=run) for each in (RESOLVED, prepared))), NOW).status
    advice = [each.message for each in status.conditions if each.type == "Discouraged"]
    assert len(advice) == told
    assert status.dataset is not None
    assert (status.dataset.answers_masked, status.dataset.test_masked) == (int(masked), 3)
    for message in advice:
        assert_says(
            message, "7 records", "placeholders", "spec.dataset.pii.mode to Report", "spec.dataset.pii.entities"
        )


def test_settings_that_do_badly_are_taken_and_said_once() -> None:
    training = {"learningRate": "3e-5", "targetModules": ["q_proj", "v_proj"]}
    asked = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True) | {"training": training})
    jobs = (job(Stage.RESOLVE, run=current_run(observed(asked), NOW).id),)
    first = plan(observed(asked, jobs=jobs), NOW)
    [advice] = [each for each in first.status.conditions if each.type == "Discouraged"]
    assert (advice.status, advice.reason) == ("True", Reason.SETTINGS_DISCOURAGED)
    assert "spec.training.learningRate 3e-5" in advice.message
    assert "(q_proj, v_proj)" in advice.message
    assert [e.message for e in first.events if e.reason is Reason.SETTINGS_DISCOURAGED] == [advice.message]
    second = plan(observed(asked, status=first.status, jobs=jobs), NOW)
    assert not [e for e in second.events if e.reason is Reason.SETTINGS_DISCOURAGED]
    assert all(each.type != "Discouraged" for each in plan(observed(jobs=(job(Stage.RESOLVE),)), NOW).status.conditions)


@pytest.mark.parametrize(("generation", "same"), [(3, True), (2, False)])
def test_an_upgrade_begins_no_finished_run_again(generation: int, same: bool) -> None:
    """Another version computes another hash of the same spec; only another generation is another spec."""
    run = RunStatus(
        id=RUN,
        number=1,
        spec_hash="as an older version had it",
        generation=generation,
        started_at=THEN,
        finished_at=THEN,
        outcome=Phase.SUCCEEDED,
    )
    found = observed(status=FineTuneJobStatus(phase=Phase.SUCCEEDED, run=run))
    current = current_run(found, NOW)
    assert (current.number == 1) is same
    assert (current.spec_hash, current.generation) == (spec_hash(SPEC), 3)


@pytest.mark.parametrize(
    ("ended", "told"), [("Overfitting", True), ("BudgetExceeded", True), ("TrainingCompleted", False)]
)
def test_an_early_end_of_the_training_is_an_event(ended: str, told: bool) -> None:
    before = plan(observed(jobs=(done(Stage.RESOLVE), done(Stage.PREPARE), job(Stage.TRAIN))), NOW).status
    jobs = (done(Stage.RESOLVE), done(Stage.PREPARE), done(Stage.TRAIN, scalars={"ended": ended}))
    after = plan(observed(jobs=jobs, status=before), NOW)
    assert next(row for row in after.status.stages if row.name == "train").ended == ended
    assert any(event.reason == ended and event.type == "Warning" for event in after.events) is told


def test_a_reused_training_says_how_it_ended_but_that_is_no_news() -> None:
    results = {Stage.TRAIN: {"ended": "Overfitting"}}
    found = [Found(stage=s, output_digest="7" * 64, scalars=results.get(s, {})) for s in PIPELINE[:2]]
    made = plan(observed(jobs=(done(Stage.RESOLVE, found=found),)), NOW)
    assert [row.ended for row in made.status.stages if row.ended] == ["Overfitting"]
    assert not any(event.reason == "Overfitting" for event in made.events)


PENDING_BASELINE = "8 passed, 2 warnings (balance, baseline), 0 failed"


@pytest.mark.parametrize(
    ("task", "told", "scalars", "expected"),
    [
        pytest.param(
            TaskType.CLASSIFICATION,
            PENDING_BASELINE,
            {"accuracyBase": "0.1200", "samples": "200"},
            "9 passed, 1 warning (balance), 0 failed; base model: accuracy 12.0 % on 200 test examples",
            id="measured",
        ),
        pytest.param(
            TaskType.CLASSIFICATION,
            PENDING_BASELINE,
            {"accuracyBase": "0.9700", "samples": "1200"},
            "8 passed, 2 warnings (balance, baseline), 0 failed; base model: accuracy 97.0 % on 1,200 test examples",
            id="little left to win",
        ),
        pytest.param(
            TaskType.TEXT,
            "9 passed, 1 warning (baseline), 1 failed (leakage)",
            {"accuracyBase": "0.0000", "f1Base": "0.2140", "samples": "60"},
            "10 passed, 0 warnings, 1 failed (leakage); base model: F1 21.4 % on 60 test examples",
            id="free text",
        ),
        pytest.param(TaskType.TEXT, PENDING_BASELINE, {}, PENDING_BASELINE, id="nothing measured"),
        pytest.param(TaskType.EXTRACTION, PENDING_BASELINE, {"accuracyBase": "nan"}, PENDING_BASELINE, id="no number"),
        pytest.param(
            TaskType.CLASSIFICATION, "all is well", {"accuracyBase": "0.5"}, "all is well", id="no summary of ours"
        ),
    ],
)
def test_the_evaluation_completes_the_readiness(
    task: TaskType, told: str, scalars: dict[str, str], expected: str
) -> None:
    """By a Job that ends, in later turns, and where all results are found in the store."""
    spec = SPEC.model_copy(update={"task": Task(type=task)})
    run = current_run(observed(spec), NOW).id
    prepared = replace(done(Stage.PREPARE, scalars={"readiness": told}), run=run)
    jobs = [replace(RESOLVED, run=run), prepared]
    before = plan(observed(spec, jobs=tuple(jobs)), NOW).status
    assert before.dataset is not None
    assert before.dataset.readiness == told

    jobs += [replace(done(stage), run=run) for stage in (Stage.TRAIN, Stage.EXPORT)]
    jobs += [replace(done(Stage.EVALUATE, scalars=scalars), run=run)]
    evaluated = plan(observed(spec, status=before, jobs=tuple(jobs)), NOW).status
    again = plan(observed(spec, status=evaluated, jobs=tuple(jobs)), NOW).status
    results = {Stage.PREPARE: {"readiness": told}, Stage.EVALUATE: scalars}
    found = [Found(stage=s, output_digest="7" * 64, scalars=results.get(s, {})) for s in PIPELINE]
    reused = plan(observed(spec, jobs=(replace(done(Stage.RESOLVE, found=found), run=run),)), NOW).status

    for status in (evaluated, again, reused):
        assert status.dataset is not None
        assert status.dataset.readiness == expected
