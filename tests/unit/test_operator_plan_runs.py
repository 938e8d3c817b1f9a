"""FineTuneJob's plan over several runs: when another one begins, what is kept of earlier ones, and a lost result."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.hashing import digest
from finetune_api.job_status import FineTuneJobStatus, Phase, RunStatus
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Found, Stage, Upstream, input_key
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_operator.finetunejob.expiry import ExpiredObject, has_expired
from finetune_operator.finetunejob.observe import StageJob, spec_hash
from finetune_operator.finetunejob.params import params_of
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.framework.actions import Delete
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS
from finetune_operator.outcome.job import State, Verdict
from tests.support.runs import GIVEN, NOW, RESOLVED, RUN, SPEC, THEN, done, ended, job, observed, started, told

pytestmark = pytest.mark.unit


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
