"""FineTuneJob's plan over several runs: when another one begins, what is kept of earlier ones, and a lost result."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.finetunejob import FineTuneJobSpec, Reuse
from finetune_api.hashing import digest
from finetune_api.job_status import FineTuneJobStatus, Phase, RunStatus
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Found, Stage, Upstream, input_key
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_operator.finetunejob.expiry import ExpiredObject, has_expired
from finetune_operator.finetunejob.observe import StageJob, spec_hash
from finetune_operator.finetunejob.params import params_of
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.framework.actions import Delete, Plan
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS
from finetune_operator.outcome.job import State, Verdict
from tests.support.runs import GIVEN, NOW, RESOLVED, RUN, SPEC, THEN, done, ended, job, observed, started, told
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

LOST_PUBLISH = job(Stage.PUBLISH, verdict=Verdict(State.LOST, Reason.RESULT_LOST, "gone", None, 1, THEN, THEN))
NO_KEY = Verdict(State.FAILED, Reason.SECRET_MISSING, "no key", None, 1, THEN, THEN)


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
        [given] = started(result)
        assert (given.upstream.adapter, given.reuse, given.reuse_own) == ("8" * 64, True, False)
    else:
        assert result.status.phase is expected


@pytest.mark.parametrize(("made_by", "taken"), [("itself", True), ("earlier", False), ("", False)])
def test_a_run_that_reuses_nothing_recovers_its_own_result_only(made_by: str, taken: bool) -> None:
    """The key leads to the first output that its input has given, maybe in another run."""
    spec = SPEC.model_copy(update={"reuse": Reuse.NEVER})
    run = current_run(observed(spec), NOW).id
    entries = [Found(stage=stage, output_digest=digit * 64) for stage, digit in zip(PIPELINE, "08", strict=False)]
    entries[-1] = entries[-1].model_copy(update={"run": run if made_by == "itself" else made_by})
    lost = job(Stage.TRAIN, verdict=LOST_PUBLISH.verdict)
    search = replace(done(Stage.RESOLVE, found=entries), recovers="train", name="search")
    jobs = tuple(replace(each, run=run) for each in (RESOLVED, done(Stage.PREPARE), lost, search))
    result = plan(observed(spec, jobs=jobs), NOW)
    if taken:
        [given] = started(result)
        assert (given.upstream.adapter, given.reuse, given.reuse_own) == ("8" * 64, False, True)
    else:
        assert told(result) == (Phase.FAILED, Reason.RESULT_LOST)


@pytest.mark.parametrize("reuse", Reuse)
def test_a_lost_result_of_publish(reuse: Reuse) -> None:
    """Whether it has signed and copied all, only publish can tell: it runs again, once, with the same input."""
    signing = {"secretKeyRef": {"name": "release", "key": "key.pem"}}
    output = {"uri": "s3://artifacts/team", "name": "ft", "signing": signing}
    spec = FineTuneJobSpec.model_validate({**GIVEN, "reuse": reuse, "output": output})
    run = current_run(observed(spec), NOW).id
    before = tuple(replace(each, run=run) for each in (RESOLVED, *map(done, PIPELINE[:-1])))
    first = plan(observed(spec, jobs=before), NOW)
    lost = replace(LOST_PUBLISH, run=run)
    again = plan(observed(spec, jobs=(*before, lost), status=first.status), NOW)
    assert started(again) == started(first)
    assert again.actions[0] != first.actions[0], "under another name"
    assert told(again) == (Phase.RUNNING, Reason.WAITING)

    def after(found: StageJob) -> Plan[FineTuneJobStatus]:
        second = replace(found, run=run, recovers="publish", name="again")
        return plan(observed(spec, jobs=(*before, lost, second), status=again.status), NOW)

    assert told(after(job(Stage.PUBLISH))) == (Phase.RUNNING, Reason.STAGE_STARTED)
    published = after(done(Stage.PUBLISH, reused=True, scalars={"channel": "stable", "signedBy": "5" * 64}))
    assert told(published) == (Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)
    assert published.status.artifact is not None
    assert (published.status.artifact.digest, published.status.artifact.signed_by) == ("4" * 64, "5" * 64)
    assert published.status.stages[-1].job == "again"
    assert told(after(job(Stage.PUBLISH, verdict=NO_KEY))) == (Phase.FAILED, Reason.SECRET_MISSING)
    twice = after(LOST_PUBLISH)
    assert (told(twice), twice.actions) == ((Phase.FAILED, Reason.RESULT_LOST), ())
    assert_says(twice.status.stages[-1].message, "completed twice", "gone before its result was read")


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
